package linux

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// UserNamespace is a user namespace held open: its identity is not used again
// while it is.
type UserNamespace struct {
	file *os.File
	link string // as readlink(/proc/PID/ns/user) gives it
}

// OpenUserNamespace opens the user namespace of the process pid; 0 means the
// caller's own.
func OpenUserNamespace(pid int) (*UserNamespace, error) {
	path := "/proc/self/ns/user"
	if pid != 0 {
		path = fmt.Sprintf("/proc/%d/ns/user", pid)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &UserNamespace{f, link}, nil
}

// Close lets go of the namespace.
func (u *UserNamespace) Close() error { return u.file.Close() }

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
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	own, err := os.Readlink("/proc/self/ns/user")
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
		path := "/proc/" + name + "/ns/user"
		link, err := os.Readlink(path)
		if err != nil {
			continue // not ours to see, so not in our namespace; or gone
		}
		if link != u.link && (link == own || !u.encloses(path)) {
			continue
		}
		m, err := openMember(pid)
		if err != nil {
			continue // gone
		}
		// The number may have come to mean another process since the link was
		// read. What is read now is of the one that is held, if that still lives;
		// a zombie is in /proc, and in its namespace, too.
		again, err := os.Readlink(path)
		if err != nil || again != link || m.wait(0) {
			m.close()
			continue
		}
		found = append(found, m)
	}
	return found, nil
}

// member is a process held by a pidfd, so that its number cannot come to mean
// another (pidfd_open(2)).
type member struct{ pidfd int }

func openMember(pid int) (member, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	return member{fd}, os.NewSyscallError("pidfd_open", err)
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

// encloses says whether the namespace at path is nested in this one.
func (u *UserNamespace) encloses(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	for {
		fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_PARENT)
		f.Close()
		if err != nil {
			return false // EPERM: outside of the caller's own (ioctl_ns(2))
		}
		f = os.NewFile(uintptr(fd), path)
		link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err != nil {
			f.Close()
			return false
		}
		if link == u.link {
			f.Close()
			return true
		}
	}
}
