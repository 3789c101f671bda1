package linux

import (
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// UserNamespace is a user namespace held open: its identity is not used again
// while it is. So is /proc as it was then, for what runs in the namespace may
// cover it, or change the root directory of the caller (pivot_root(2)).
type UserNamespace struct {
	file *os.File
	id   namespaceID
	proc *os.File
}

// OpenUserNamespace opens the user namespace of the process pid; 0 means the
// caller's own.
func OpenUserNamespace(pid int) (*UserNamespace, error) {
	name := "self"
	if pid != 0 {
		name = strconv.Itoa(pid)
	}
	return openUserNamespace(func(u *UserNamespace) (*os.File, error) { return u.open(name) })
}

// OpenUserNamespaceFile opens the user namespace that is bound to path.
func OpenUserNamespaceFile(path string) (*UserNamespace, error) {
	return openUserNamespace(func(*UserNamespace) (*os.File, error) { return os.Open(path) })
}

// openUserNamespace opens the namespace that open opens.
func openUserNamespace(open func(*UserNamespace) (*os.File, error)) (*UserNamespace, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	u := &UserNamespace{proc: proc}
	if u.file, err = open(u); err != nil {
		u.Close()
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(u.file.Fd()), &st); err != nil {
		u.Close()
		return nil, &os.PathError{Op: "fstat", Path: u.file.Name(), Err: err}
	}
	u.id = idOf(&st)
	return u, nil
}

// Processes lists the ids of the living processes in the namespace and in those
// nested in it, but for the caller.
func (u *UserNamespace) Processes() ([]int, error) {
	members, err := u.members()
	var pids []int
	for _, m := range members {
		pids = append(pids, m.pid)
		m.close()
	}
	return pids, err
}

// namespaceID is what tells namespaces apart (namespaces(7)).
type namespaceID struct{ dev, ino uint64 }

func idOf(st *unix.Stat_t) namespaceID { return namespaceID{uint64(st.Dev), st.Ino} }

// identify returns the identity of the user namespace of a process, named as in
// /proc.
func (u *UserNamespace) identify(process string) (namespaceID, error) {
	var st unix.Stat_t
	path := process + "/ns/user"
	err := retry(func() error { return unix.Fstatat(int(u.proc.Fd()), path, &st, 0) })
	if err != nil {
		return namespaceID{}, &os.PathError{Op: "stat", Path: "/proc/" + path, Err: err}
	}
	return idOf(&st), nil
}

// open opens the user namespace of a process, named as in /proc.
func (u *UserNamespace) open(process string) (*os.File, error) {
	path := process + "/ns/user"
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Openat(int(u.proc.Fd()), path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc/" + path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Close lets go of the namespace.
func (u *UserNamespace) Close() error {
	if u.file == nil {
		return u.proc.Close()
	}
	return errors.Join(u.file.Close(), u.proc.Close())
}

// Kill ends every process in the namespace and in those nested in it with
// SIGKILL, but not the caller. It looks again until none is left, since a
// process may fork while it looks; a process that does not die (it waits in the
// kernel) is named in the error.
//
// A process is found by its link in /proc, whatever its parent, session or
// cgroup is. The caller is in the namespace, or owns it (user_namespaces(7)).
func (u *UserNamespace) Kill() error {
	const rounds = 200
	for range rounds {
		members, err := u.members()
		if err != nil {
			return err
		}
		if len(members) == 0 {
			return nil
		}
		for _, m := range members {
			m.kill()
		}
		// Their end is the event to wait for. One that waits in the kernel may
		// take its time; the next round looks again.
		for _, m := range members {
			m.wait(50)
			m.close()
		}
	}
	return errors.New("processes do not die of SIGKILL: they wait in the kernel, or start others faster than they die")
}

// members lists the living processes in the namespace or below it.
func (u *UserNamespace) members() ([]member, error) {
	if _, err := u.proc.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	names, err := u.proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	own, err := u.identify("self")
	if err != nil {
		return nil, err
	}
	self := os.Getpid()
	var found []member
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == self {
			continue
		}
		id, err := u.identify(name)
		if err != nil {
			continue // not ours to see, so not in our namespace; or gone
		}
		if id != u.id && (id == own || !u.encloses(name)) {
			continue
		}
		m, err := openMember(pid)
		if err != nil {
			continue // gone
		}
		// The number may have come to mean another process since its namespace was
		// looked at. What is seen now is of the one that is held, if that still
		// lives; a zombie is in /proc, and in its namespace, too.
		again, err := u.identify(name)
		if err != nil || again != id || m.wait(0) {
			m.close()
			continue
		}
		found = append(found, m)
	}
	return found, nil
}

// member is a process held by a pidfd, so that its number cannot come to mean
// another (pidfd_open(2)).
type member struct{ pid, pidfd int }

func openMember(pid int) (member, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	return member{pid, fd}, os.NewSyscallError("pidfd_open", err)
}

// kill sends SIGKILL. The one error that matters, a process that is gone, is no
// error here.
func (m member) kill() { _ = unix.PidfdSendSignal(m.pidfd, unix.SIGKILL, nil, 0) }

func (m member) close() { unix.Close(m.pidfd) }

// wait waits for the end, ms milliseconds at most, and says whether it came.
func (m member) wait(ms int) bool {
	fds := []unix.PollFd{{Fd: int32(m.pidfd), Events: unix.POLLIN}}
	n := 0
	err := retry(func() (err error) {
		n, err = unix.Poll(fds, ms)
		return err
	})
	return err == nil && n == 1
}

// encloses says whether the namespace of a process is nested in this one.
func (u *UserNamespace) encloses(process string) bool {
	f, err := u.open(process)
	if err != nil {
		return false
	}
	for {
		fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_PARENT)
		f.Close()
		if err != nil {
			return false // EPERM: outside of the caller's own (ioctl_ns(2))
		}
		f = os.NewFile(uintptr(fd), "user namespace")
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || idOf(&st) == u.id {
			f.Close()
			return err == nil
		}
	}
}
