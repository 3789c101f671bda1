package linux

// How a program is started in the namespaces of another process.
//
// setns(2) into a user namespace asks for a process of one thread, which a Go
// process never is. A forked copy of it has one: the thread that forked. But
// that copy cannot run Go: the other threads, which the runtime counts on, are
// missing, and any lock may be held by one of them, forever. So between fork
// and execve there are only raw system calls, on memory that was laid out
// before. Package syscall lives by the same rules in forkAndExecInChild, and so
// does gVisor where it starts the processes of its ptrace and systrap
// platforms. All three lean on the runtime:
//
//	runtime_BeforeFork        blocks all signals, so that no Go handler runs in
//	                          the copy; makes any growth of the stack fatal
//	runtime_AfterFork         undoes both, in the original
//	runtime_AfterForkInChild  in the copy: default handlers, the old mask
//
// All functions that run in the copy are norace (the race detector's hooks are
// Go), and those that it calls nosplit (their check of the stack would trip).
// They store no pointers, for a write barrier may be on.
//
// A process joins a pid namespace only by its children (setns(2)), and a process
// that has asked for one can start no more threads, so it can never be Go. So
// there are two copies, and the second is what becomes the program:
//
//	caller   fork ----------------------------------------------- wait
//	            \ first: setns; clone(CLONE_PARENT); tell its pid; exit
//	                               \ second: ids, directory, pdeathsig, execveat
//
// CLONE_PARENT makes the second a child of the caller, which can wait for it
// and so sees it stop and end like any other.
//
// In the namespaces, what runs there could trace a copy, and speak in its name to
// the caller, which has more rights: the copies are not dumpable (prctl(2),
// PR_SET_DUMPABLE), which execve ends.
//
// The copies report through a pipe in records of one write each. It is
// close-on-exec, and so its end is the sign that the program runs.
//
// setns takes all namespaces at once from a pidfd, so that they are those of one
// process for sure (Linux 5.8). The kernel joins the user namespace first and
// with it grants the capabilities that the others ask for.
//
// Limits: the program is executed by descriptor; scripts, which the kernel hands
// to their interpreter by path, do not work.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

//go:linkname runtimeAfterForkInChild syscall.runtime_AfterForkInChild
func runtimeAfterForkInChild()

// Entry says what to start, and where.
type Entry struct {
	// Target is the process whose namespaces are joined.
	Target *Process

	// Namespaces are the CLONE_NEW* flags of those that are joined; 0 joins
	// none.
	Namespaces int

	// DropGroups empties the list of supplementary groups.
	DropGroups bool

	// Dir is the working directory, by its path inside. If it is not to be had
	// there, it is "/".
	Dir string

	// Program is the program, a file opened with OpenPath.
	Program *os.File

	// Args are the program's arguments, the zeroth included, and Env its
	// environment.
	Args, Env []string
}

// Start starts the program in the namespaces, in the caller's session and
// process group, with descriptors 0 to 2 and whatever else is not
// close-on-exec. If a user namespace is joined, it has user and group 0 there,
// where these are mapped, and with them all capabilities.
//
// The program is a child of the caller and gets SIGKILL when the thread that
// called Start ends: the caller has locked it, and keeps it until the program
// has ended.
func (e Entry) Start() (pid int, err error) {
	self, err := OpenProcess(os.Getpid())
	if err != nil {
		return 0, err
	}
	defer self.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	f, err := e.prepare(self, w)
	if err != nil {
		w.Close()
		return 0, err
	}
	syscall.ForkLock.Lock() // no descriptor is between its making and FD_CLOEXEC
	first, errno := f.fork()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(e)
	w.Close()
	if errno != 0 {
		return 0, fmt.Errorf("clone: %w", errno)
	}
	pid, err = readReports(r, e.Target.PID)
	if _, _, werr := Wait(first); werr != nil && err == nil {
		err = werr
	}
	if pid != 0 && err != nil {
		// It is ending, or was never told of.
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _, _ = Wait(pid)
	}
	if err != nil {
		return 0, err
	}
	return pid, nil
}

// readReports reads what the copies say until the program runs, and returns its
// pid. With an error there is a pid as well if the second copy had begun.
func readReports(r io.Reader, target int) (pid int, err error) {
	for {
		var rec report
		switch rerr := binary.Read(r, binary.NativeEndian, &rec); {
		case rerr == io.EOF && pid == 0 && err == nil:
			return 0, errors.New("the process that joins the namespaces died")
		case rerr == io.EOF:
			return pid, err
		case rerr != nil:
			return pid, rerr
		}
		errno := syscall.Errno(rec.Errno)
		switch rec.Step {
		case stepStarted:
			pid = int(rec.PID)
		case stepSetns:
			if errno == unix.EINVAL || errno == unix.EBADF {
				err = fmt.Errorf("join the namespaces of process %d: setns: %w (Linux 5.8 or newer is needed)", target, errno)
			} else {
				err = fmt.Errorf("join the namespaces of process %d: setns: %w", target, errno)
			}
		default:
			err = fmt.Errorf("%s: %w", stepNames[rec.Step], errno)
		}
	}
}

// The steps that a report is about. All but the first tell of a failure.
const (
	stepStarted = iota
	stepDumpable
	stepSetns
	stepClone
	stepGroups
	stepGID
	stepUID
	stepChdir
	stepDeathSignal
	stepExec
)

var stepNames = [...]string{
	stepDumpable:    "prctl(PR_SET_DUMPABLE)",
	stepClone:       "clone",
	stepGroups:      "setgroups",
	stepGID:         "setresgid",
	stepUID:         "setresuid",
	stepChdir:       "chdir /",
	stepDeathSignal: "prctl(PR_SET_PDEATHSIG)",
	stepExec:        "execveat",
}

// report is one record on the pipe.
type report struct {
	Step, Errno, PID uint32
}

// forked is all that the copies need, as the system calls take it.
type forked struct {
	target, namespaces uintptr
	self               uintptr // a pidfd of the caller
	pipe               uintptr
	program            uintptr
	dir, root, empty   *byte
	argv, envv         []*byte
	dropGroups         bool
	becomeRoot         bool

	// Written by the copies alone, each in its own memory.
	report report
	poll   unix.PollFd
	now    unix.Timespec
}

func (e Entry) prepare(self *Process, pipe *os.File) (*forked, error) {
	f := &forked{
		target:     e.Target.file.Fd(),
		namespaces: uintptr(e.Namespaces),
		self:       self.file.Fd(),
		pipe:       pipe.Fd(),
		program:    e.Program.Fd(),
		dropGroups: e.DropGroups,
		becomeRoot: e.Namespaces&unix.CLONE_NEWUSER != 0,
		root:       &[]byte("/\x00")[0],
		empty:      &[]byte("\x00")[0],
	}
	f.poll = unix.PollFd{Fd: int32(f.self), Events: unix.POLLIN}
	var err error
	if f.dir, err = unix.BytePtrFromString(e.Dir); err != nil {
		return nil, fmt.Errorf("chdir %q: %w", e.Dir, err)
	}
	if f.argv, err = syscall.SlicePtrFromStrings(e.Args); err != nil {
		return nil, fmt.Errorf("argument: %w", err)
	}
	if f.envv, err = syscall.SlicePtrFromStrings(e.Env); err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	return f, nil
}

// fork makes the first copy, which does not return. See the rules at the top of
// this file.
//
//go:noinline
//go:norace
func (f *forked) fork() (pid int, errno syscall.Errno) {
	runtimeBeforeFork()
	n, errno := rawClone(uintptr(unix.SIGCHLD))
	if errno != 0 || n != 0 {
		runtimeAfterFork()
		return int(n), errno
	}

	// The first copy.
	if errno := untraceable(); errno != 0 {
		f.fail(stepDumpable, errno)
	}
	if errno := f.join(); errno != 0 {
		f.fail(stepSetns, errno)
	}
	n, errno = rawClone(unix.CLONE_PARENT | uintptr(unix.SIGCHLD))
	if errno != 0 {
		f.fail(stepClone, errno)
	}
	if n != 0 {
		f.tell(stepStarted, 0, uint32(n))
		exit(0)
	}

	// The second copy.
	if step, errno := f.changeIDs(); errno != 0 {
		f.fail(step, errno)
	}
	if errno := f.changeDir(); errno != 0 {
		f.fail(stepChdir, errno)
	}
	if errno := f.dieWithCaller(); errno != 0 {
		f.fail(stepDeathSignal, errno)
	}
	runtimeAfterForkInChild()
	f.fail(stepExec, f.execute())
	return 0, 0
}

// untraceable keeps processes without rights outside from tracing the copies.
//
//go:nosplit
//go:norace
func untraceable() syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0)
	return errno
}

//go:nosplit
//go:norace
func (f *forked) join() syscall.Errno {
	if f.namespaces == 0 {
		return 0
	}
	_, _, errno := syscall.RawSyscall(unix.SYS_SETNS, f.target, f.namespaces, 0)
	return errno
}

// changeIDs drops groups and becomes root, where there is a root and dropping is
// not denied.
//
//go:nosplit
//go:norace
func (f *forked) changeIDs() (step uint32, errno syscall.Errno) {
	if f.dropGroups {
		_, _, errno = syscall.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
		if errno != 0 && errno != unix.EPERM { // denied in this user namespace
			return stepGroups, errno
		}
	}
	if !f.becomeRoot {
		return 0, 0
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0)
	if errno != 0 && errno != unix.EINVAL { // not mapped
		return stepGID, errno
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0)
	if errno != 0 && errno != unix.EINVAL {
		return stepUID, errno
	}
	return 0, 0
}

//go:nosplit
//go:norace
func (f *forked) changeDir() syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(f.dir)), 0, 0)
	if errno != 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(f.root)), 0, 0)
	}
	return errno
}

// dieWithCaller asks for SIGKILL when the caller's thread ends. A change of ids
// clears that, so it comes after it. The caller may be gone by now, and then
// there will be no signal; getppid(2) does not tell inside a pid namespace, but
// a pidfd does.
//
//go:nosplit
//go:norace
func (f *forked) dieWithCaller() syscall.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	n, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&f.poll)), 1, uintptr(unsafe.Pointer(&f.now)), 0, 0, 0)
	if errno == 0 && n == 1 {
		exit(1)
	}
	return errno
}

//go:nosplit
//go:norace
func (f *forked) execute() syscall.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_EXECVEAT, f.program,
		uintptr(unsafe.Pointer(f.empty)),
		uintptr(unsafe.Pointer(&f.argv[0])),
		uintptr(unsafe.Pointer(&f.envv[0])),
		unix.AT_EMPTY_PATH, 0)
	return errno
}

// rawClone is clone(2) without a new stack: a fork.
//
//go:nosplit
//go:norace
func rawClone(flags uintptr) (uintptr, syscall.Errno) {
	if runtime.GOARCH == "s390x" {
		n, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, 0, flags, 0, 0, 0, 0)
		return n, errno
	}
	n, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	return n, errno
}

// fail reports a failure and ends the copy.
//
//go:nosplit
//go:norace
func (f *forked) fail(step uint32, errno syscall.Errno) {
	f.tell(step, errno, 0)
	exit(1)
}

//go:nosplit
//go:norace
func (f *forked) tell(step uint32, errno syscall.Errno, pid uint32) {
	f.report.Step, f.report.Errno, f.report.PID = step, uint32(errno), pid
	syscall.RawSyscall(unix.SYS_WRITE, f.pipe, uintptr(unsafe.Pointer(&f.report)), unsafe.Sizeof(f.report))
}

//go:nosplit
//go:norace
func exit(code uintptr) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, code, 0, 0)
	}
}

// RestoreFileLimit puts the soft limit on open files back to what it was when
// this process was executed, for the sake of programs that it starts other than
// through os/exec. Go raises the limit at the start (go.dev/issue/46279), and
// the only way to the old value is that syscall.Exec sets it, also when the
// execution fails: no program is called "".
func RestoreFileLimit() {
	_ = syscall.Exec("", []string{""}, []string{""})
}
