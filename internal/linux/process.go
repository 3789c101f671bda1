package linux

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// NoNewPrivs says whether no_new_privs is set for this process, under which
// set-user-ID programs gain nothing (prctl(2), PR_GET_NO_NEW_PRIVS).
func NoNewPrivs() (bool, error) {
	n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		return false, os.NewSyscallError("prctl(PR_GET_NO_NEW_PRIVS)", err)
	}
	return n == 1, nil
}

// SetSubreaper makes this process the parent of its orphaned descendants
// (prctl(2), PR_SET_CHILD_SUBREAPER).
func SetSubreaper() error {
	return os.NewSyscallError("prctl(PR_SET_CHILD_SUBREAPER)", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// AllCapabilities returns the numbers of the capabilities that this kernel
// knows (capabilities(7), /proc/sys/kernel/cap_last_cap).
func AllCapabilities() []uintptr {
	last := uintptr(unix.CAP_LAST_CAP)
	var caps []uintptr
	for c := uintptr(0); c <= last; c++ {
		// EINVAL: the kernel does not know it.
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break
		}
		caps = append(caps, c)
	}
	return caps
}

// DropInheritedCapabilities empties the ambient and inheritable sets of the
// calling thread, so that a program which it executes has the capabilities of
// its user id alone (capabilities(7)). The caller has locked its thread.
func DropInheritedCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl(PR_CAP_AMBIENT_CLEAR_ALL)", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	return os.NewSyscallError("capset", unix.Capset(&header, &data[0]))
}

// CloseOnExecFrom marks all descriptors from fd on close-on-exec, whoever
// opened them (close_range(2), Linux 5.11; before that, through
// /proc/self/fd).
func CloseOnExecFrom(fd int) error {
	err := unix.CloseRange(uint(fd), ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	if err != unix.ENOSYS && err != unix.EINVAL && err != unix.EPERM {
		return os.NewSyscallError("close_range", err)
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	for _, e := range entries {
		var n int
		if _, err := fmt.Sscan(e.Name(), &n); err == nil && n >= fd {
			unix.CloseOnExec(n)
		}
	}
	return nil
}

// Exit codes of a program that did not start, as shells give them.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
)

// ExplainExec says in one line why the program called name was not found or not
// executed, and the exit code that shells give then: 127 or 126. err is
// exec.LookPath's or execve(2)'s.
func ExplainExec(name string, err error) (reason string, code int) {
	var lookup *exec.Error
	if errors.As(err, &lookup) {
		err = lookup.Err
	}
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Sprintf("command not found: %s is in no directory of PATH", name), codeNotFound
	case errors.Is(err, os.ErrNotExist):
		return fmt.Sprintf("command not found: %s: no such file, or its interpreter is missing", name), codeNotFound
	case errors.Is(err, unix.ENOEXEC):
		return fmt.Sprintf("execute %s: not a program of this machine, and no #! line", name), codeNotExecutable
	case errors.Is(err, os.ErrPermission):
		return fmt.Sprintf("execute %s: permission denied: is it a file with the x bit, on a mount without noexec?", name), codeNotExecutable
	}
	return fmt.Sprintf("execute %s: %v", name, err), codeNotExecutable
}

// Wait waits for a state change of the process pid, or of any child if pid is
// -1: its end, or a stop by a signal (wait4(2), WUNTRACED).
func Wait(pid int) (int, unix.WaitStatus, error) {
	var status unix.WaitStatus
	var who int
	err := retry(func() (err error) {
		who, err = unix.Wait4(pid, &status, unix.WUNTRACED, nil)
		return err
	})
	return who, status, os.NewSyscallError("wait4", err)
}

// StillStopped says whether the child pid has stopped, as Wait has said, and has not
// changed its state since: neither gone on, nor ended, nor stopped again
// (waitid(2), WNOWAIT).
func StillStopped(pid int) bool {
	var change unix.Siginfo // its Signo stays 0 when there is none
	const changes = unix.WEXITED | unix.WSTOPPED | unix.WCONTINUED
	err := retry(func() error {
		return unix.Waitid(unix.P_PID, pid, &change, changes|unix.WNOHANG|unix.WNOWAIT, nil)
	})
	return err == nil && change.Signo == 0
}

// AwaitEnd waits for the end of the child pid, and leaves it to be waited for
// (waitid(2), WNOWAIT).
func AwaitEnd(pid int) error {
	err := retry(func() error { return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) })
	return os.NewSyscallError("waitid", err)
}
