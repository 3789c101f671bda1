package copyup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gatekit/gatekit/internal/linux"
	"golang.org/x/sys/unix"
)

// original is a directory as it was before it was copied up.
type original struct {
	dir     string // canonical
	tree    *os.File
	entries []os.DirEntry
	stat    unix.Stat_t
}

// open copies the mounts from dir down and notes what dir is. The caller closes
// tree.
func open(dir string) (*original, error) {
	o := &original{dir: dir}
	if err := unix.Stat(dir, &o.stat); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	var err error
	if o.entries, err = os.ReadDir(dir); err != nil {
		return nil, err
	}
	if o.tree, err = linux.CloneTree(dir); err != nil {
		return nil, err
	}
	return o, nil
}

// mountTmpfs puts a tmpfs on the directory.
func (o *original) mountTmpfs() error {
	return linux.Mount("tmpfs", o.dir, "tmpfs", 0, "mode=755")
}

// dress gives dir the mode, owner and times of the original. An owner that has
// no id in the user namespace becomes the caller.
func (o *original) dress(dir string) error {
	return dress(dir, &o.stat)
}

func dress(dir string, st *unix.Stat_t) error {
	uid, gid := int(st.Uid), int(st.Gid)
	if uid == overflowID("uid") {
		uid = -1
	}
	if gid == overflowID("gid") {
		gid = -1
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return err
	}
	if err := unix.Chmod(dir, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: dir, Err: err}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, times, 0); err != nil {
		return &os.PathError{Op: "utimensat", Path: dir, Err: err}
	}
	return nil
}

// overflowID returns the id by which the kernel shows owners that have none in
// the user namespace (/proc/sys/kernel/overflowuid and overflowgid, proc(5)).
func overflowID(kind string) int {
	id := 65534
	if b, err := os.ReadFile("/proc/sys/kernel/overflow" + kind); err == nil {
		fmt.Sscan(string(b), &id)
	}
	return id
}

// hide attaches the original below a new .ro directory inside the directory,
// which holds a tmpfs by now, and returns its path relative to the directory.
func (o *original) hide() (string, error) {
	root, err := os.MkdirTemp(o.dir, ".ro")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return "", err
	}
	// Level by level from the root down to the directory that holds ours.
	at := "/"
	for _, next := range strings.Split(o.dir[1:], "/") {
		linkNeighbours(at, filepath.Join(root, at), next)
		at = filepath.Join(at, next)
		if err := os.Mkdir(filepath.Join(root, at), 0o755); err != nil {
			return "", err
		}
		if err := os.Chmod(filepath.Join(root, at), 0o755); err != nil {
			return "", err
		}
	}
	if err := linux.AttachTree(o.tree, filepath.Join(root, o.dir)); err != nil {
		return "", err
	}
	return filepath.Join(filepath.Base(root), o.dir), nil
}

// linkNeighbours makes a link in mirror to every entry of dir but one. A
// directory that cannot be listed has no links: only relative links that lead
// through it miss.
func linkNeighbours(dir, mirror, but string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.Name() != but {
			os.Symlink(filepath.Join(dir, e.Name()), filepath.Join(mirror, e.Name()))
		}
	}
}
