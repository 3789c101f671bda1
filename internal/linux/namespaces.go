package linux

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// namespaces are the kinds of namespaces: their names in /proc/PID/ns and the
// flag of each (namespaces(7)).
var namespaces = [...]struct {
	name string
	flag int
}{
	{"user", unix.CLONE_NEWUSER},
	{"mnt", unix.CLONE_NEWNS},
	{"net", unix.CLONE_NEWNET},
	{"pid", unix.CLONE_NEWPID},
	{"uts", unix.CLONE_NEWUTS},
	{"ipc", unix.CLONE_NEWIPC},
	{"cgroup", unix.CLONE_NEWCGROUP},
	{"time", unix.CLONE_NEWTIME},
}

// Process is a process held by a pidfd, so that its number cannot come to mean
// another without notice (pidfd_open(2)).
type Process struct {
	// PID is the process id as the caller sees it.
	PID int

	file *os.File
}

// OpenProcess holds on to the process pid. The caller closes it. The error wraps
// os.ErrProcessDone when there is none.
func OpenProcess(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return nil, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	return &Process{pid, os.NewFile(uintptr(fd), "pidfd")}, nil
}

// Close lets go of the process.
func (p *Process) Close() error { return p.file.Close() }

// Signal sends a signal; 0 asks whether the process is there. The error wraps
// os.ErrProcessDone when it was waited for.
func (p *Process) Signal(s unix.Signal) error {
	err := unix.PidfdSendSignal(int(p.file.Fd()), s, nil, 0)
	if err == unix.ESRCH {
		return fmt.Errorf("process %d: %w", p.PID, os.ErrProcessDone)
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// Environ returns the environment with which the process was executed.
func (p *Process) Environ() ([]byte, error) {
	return os.ReadFile(p.proc("environ"))
}

// OtherNamespaces returns the CLONE_NEW* flags of the namespaces that the
// process has and the caller has not.
func (p *Process) OtherNamespaces() (int, error) {
	flags := 0
	for _, n := range namespaces {
		own, err := os.Stat("/proc/self/ns/" + n.name)
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without this kind
		}
		if err != nil {
			return 0, err
		}
		its, err := os.Stat(p.proc("ns/" + n.name))
		if err != nil {
			return 0, err
		}
		if !os.SameFile(own, its) {
			flags |= n.flag
		}
	}
	return flags, nil
}

// OwnerUID returns the user id of who made the process's user namespace, as the
// caller sees it (NS_GET_OWNER_UID in ioctl_ns(2)).
func (p *Process) OwnerUID() (int, error) {
	f, err := os.Open(p.proc("ns/user"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	uid, err := unix.IoctlGetUint32(int(f.Fd()), unix.NS_GET_OWNER_UID)
	if err != nil {
		return 0, os.NewSyscallError("ioctl(NS_GET_OWNER_UID)", err)
	}
	return int(uid), nil
}

// proc names a file of the process in /proc. What is read there is of this
// process if a Signal(0) that comes after it finds it.
func (p *Process) proc(name string) string {
	return "/proc/" + strconv.Itoa(p.PID) + "/" + name
}
