package linux

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Mounts are made with mount(2), and copied and put in place with open_tree(2)
// and move_mount(2) (Linux 5.2): a copy made by open_tree hangs on a descriptor
// and needs no directory to wait in.

// Mount calls mount(2). flags are MS_* values. The error names the type of file
// system, where one is given, and the target.
func Mount(source, target, fstype string, flags uintptr, data string) error {
	err := retry(func() error { return unix.Mount(source, target, fstype, flags, data) })
	if err == nil {
		return nil
	}
	op := "mount"
	if fstype != "" {
		op = "mount " + fstype + " on"
	}
	return &os.PathError{Op: op, Path: target, Err: err}
}

// CloneTree copies the mount that path is on, from path down, with all mounts
// below it. The copy is attached nowhere until AttachTree; closing the file
// before that drops it. Symbolic links in path are followed.
//
// The copy is always recursive: in a user namespace the kernel refuses another,
// as it would uncover what lies under the mounts below.
func CloneTree(path string) (*os.File, error) {
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.OpenTree(unix.AT_FDCWD, path, flags)
		return err
	})
	if errors.Is(err, unix.ENOSYS) {
		return nil, fmt.Errorf("open_tree %s: %w (Linux 5.2 or newer is needed)", path, err)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// NewTree makes a file system of a kind that takes no options, mounted nowhere
// until AttachTree. attr are MOUNT_ATTR_* values (mount_setattr(2)). Other than
// Mount, AttachTree also puts one on another of the same kind, which mount(2)
// refuses where the kernel has a single file system of it, as for cgroup2.
func NewTree(fstype string, attr int) (*os.File, error) {
	var fs, fd int
	err := retry(func() (err error) {
		fs, err = unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	if err := retry(func() error { return unix.FsconfigCreate(fs) }); err != nil {
		return nil, fmt.Errorf("fsconfig %s: %w", fstype, err)
	}
	err = retry(func() (err error) {
		fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fsmount %s: %w", fstype, err)
	}
	return os.NewFile(uintptr(fd), fstype), nil
}

// AttachTree puts a tree made by CloneTree or NewTree on target, following symbolic links.
// The file still names the mount afterwards, and closing it leaves the mount in
// place. Source and target are both files or both directories.
func AttachTree(tree *os.File, target string) error {
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_SYMLINKS
	err := retry(func() error {
		return unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, target, flags)
	})
	if err != nil {
		return &os.PathError{Op: "move_mount " + tree.Name() + " to", Path: target, Err: err}
	}
	return nil
}

// OpenPath opens path without access to its contents (O_PATH): a name for a
// file that mounts made on top of it later do not hide.
func OpenPath(path string) (*os.File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// FDPath names an open file by its descriptor, for calls that take a path. The
// name holds as long as the file is open.
func FDPath(f *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}

// AtimeFlags returns the MS_* flags by which the mount at path keeps access
// times. In a user namespace a new proc or sysfs must have those of the mount
// that is there already (mount_namespaces(7)).
func AtimeFlags(path string) (uintptr, error) {
	st, err := statfs(path)
	if err != nil {
		return 0, err
	}
	var flags uintptr
	switch {
	case st.Flags&unix.ST_NOATIME != 0:
		flags = unix.MS_NOATIME
	case st.Flags&unix.ST_RELATIME != 0:
		flags = unix.MS_RELATIME
	default:
		flags = unix.MS_STRICTATIME
	}
	if st.Flags&unix.ST_NODIRATIME != 0 {
		flags |= unix.MS_NODIRATIME
	}
	return flags, nil
}

// OnCgroup2 says whether path is on a cgroup version 2 file system.
func OnCgroup2(path string) (bool, error) {
	st, err := statfs(path)
	return err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC, err
}

func statfs(path string) (unix.Statfs_t, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(path, &st) }); err != nil {
		return st, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st, nil
}
