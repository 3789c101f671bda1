package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Holder is a process that does nothing but hold a new user namespace and a new
// network namespace below it, until somebody has bound them to files. It is a
// forked copy of this process that never runs Go (enter.go has the rules):
//
//	caller   fork ------------------------------- ids are mapped; binds; Close
//	            \ copy: ids; unshare; "ready"; wait for the end of a pipe; exit
//
// The kernel makes the one who calls unshare(2) the owner of a user namespace, so
// the copy takes on the owner's ids first. It keeps its capabilities on the way
// (PR_SET_KEEPCAPS), so that what the host forbids to its users it does not forbid
// here. When the caller dies, so does the holder.
type Holder struct {
	// PID is the process' id.
	PID int

	release *os.File
}

// NewHolder makes the namespaces, owned by the user uid with the group gid. Their
// ids are not mapped yet. The caller has CAP_SETUID and CAP_SETGID, or these ids.
func NewHolder(uid, gid int) (*Holder, error) {
	answer, tell, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	defer tell.Close()
	wait, release, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer wait.Close()
	h := &held{
		uid: uintptr(uid), gid: uintptr(gid), tell: tell.Fd(), wait: wait.Fd(), release: release.Fd(),
		changeIDs: uid != os.Geteuid() || gid != os.Getegid(),
		header:    unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3},
	}
	if err := unix.Capget(&h.header, &h.caps[0]); err != nil {
		release.Close()
		return nil, os.NewSyscallError("capget", err)
	}
	syscall.ForkLock.Lock() // no descriptor is between its making and FD_CLOEXEC
	pid, errno := h.fork()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(wait)
	tell.Close()
	if errno != 0 {
		release.Close()
		return nil, fmt.Errorf("clone: %w", errno)
	}
	holder := &Holder{pid, release}
	if err := readHeld(answer); err != nil {
		holder.Close()
		return nil, err
	}
	return holder, nil
}

// Namespace is the path of one of its namespaces: "user" or "net".
func (h *Holder) Namespace(name string) string {
	return "/proc/" + strconv.Itoa(h.PID) + "/ns/" + name
}

// Close ends the process.
func (h *Holder) Close() error {
	err := h.release.Close()
	_, _, werr := Wait(h.PID)
	return errors.Join(err, werr)
}

// readHeld reads what the copy says.
func readHeld(r io.Reader) error {
	var rec report
	if err := binary.Read(r, binary.NativeEndian, &rec); err != nil {
		return fmt.Errorf("the process that makes the namespaces died: %w", err)
	}
	if rec.Errno != 0 {
		return fmt.Errorf("%s: %w", heldSteps[rec.Step], syscall.Errno(rec.Errno))
	}
	return nil
}

// The steps that the copy reports; the last when all is done.
const (
	heldKeepCaps = iota
	heldGroups
	heldGID
	heldUID
	heldCaps
	heldUnshare
	heldReady
)

var heldSteps = [...]string{
	heldKeepCaps: "prctl(PR_SET_KEEPCAPS)",
	heldGroups:   "setgroups",
	heldGID:      "setresgid",
	heldUID:      "setresuid",
	heldCaps:     "capset",
	heldUnshare:  "unshare(CLONE_NEWUSER|CLONE_NEWNET)",
}

// held is all that the copy needs.
type held struct {
	uid, gid            uintptr
	tell, wait, release uintptr
	changeIDs           bool
	header              unix.CapUserHeader
	caps                [2]unix.CapUserData

	// Written by the copy alone, in its own memory.
	report report
	byte   [1]byte
}

// fork makes the copy, which does not return.
//
//go:noinline
//go:norace
func (h *held) fork() (pid int, errno syscall.Errno) {
	runtimeBeforeFork()
	n, errno := rawClone(uintptr(unix.SIGCHLD))
	if errno != 0 || n != 0 {
		runtimeAfterFork()
		return int(n), errno
	}

	// The copy.
	syscall.RawSyscall(unix.SYS_CLOSE, h.release, 0, 0)
	step, errno := h.makeNamespaces()
	h.report.Step, h.report.Errno = step, uint32(errno)
	syscall.RawSyscall(unix.SYS_WRITE, h.tell, uintptr(unsafe.Pointer(&h.report)), unsafe.Sizeof(h.report))
	for errno == 0 {
		n, _, rerr := syscall.RawSyscall(unix.SYS_READ, h.wait, uintptr(unsafe.Pointer(&h.byte)), 1)
		if n == 0 || rerr != unix.EINTR {
			break
		}
	}
	exit(0)
	return 0, 0
}

//go:nosplit
//go:norace
func (h *held) makeNamespaces() (step uint32, errno syscall.Errno) {
	if h.changeIDs {
		if step, errno = h.becomeOwner(); errno != 0 {
			return step, errno
		}
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWUSER|unix.CLONE_NEWNET, 0, 0)
	if errno != 0 {
		return heldUnshare, errno
	}
	return heldReady, 0
}

// becomeOwner takes on the ids. The change clears the effective capabilities; they
// are raised again from the permitted ones.
//
//go:nosplit
//go:norace
func (h *held) becomeOwner() (step uint32, errno syscall.Errno) {
	if _, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0, 0); errno != 0 {
		return heldKeepCaps, errno
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return heldGroups, errno
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESGID, h.gid, h.gid, h.gid); errno != 0 {
		return heldGID, errno
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESUID, h.uid, h.uid, h.uid); errno != 0 {
		return heldUID, errno
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&h.header)), uintptr(unsafe.Pointer(&h.caps[0])), 0)
	return heldCaps, errno
}
