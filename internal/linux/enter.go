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
//	                               \ second: ids, directory, pdeathsig, descriptors,
//	                                         execveat
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
// with it grants the capabilities that the others ask for. Namespaces that no
// process is in are joined by their files, one after the other, in that order
// too. New namespaces are the second copy's: clone makes them, owned by the user
// namespace that the first has joined.
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
	"sync"
	"syscall"
	_ "unsafe" // for go:linkname

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
	// Target is the process whose namespaces are joined. nil joins those of
	// Files.
	Target *Process

	// Namespaces are the CLONE_NEW* flags of those that are joined; 0 joins
	// none.
	Namespaces int

	// Files are namespaces that are joined, in this order, where there is no
	// Target. The first is a user namespace.
	Files []*os.File

	// New are the CLONE_NEW* flags of namespaces that are made for the program.
	New uintptr

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

	// Inherit are the program's descriptors from 0 on. None leaves it the caller's 0
	// to 2.
	Inherit []*os.File

	// Outlive lets the program live on when the thread that called Start ends.
	Outlive bool
}

// Start starts the program in the namespaces, in the caller's session and
// process group, with the descriptors of Inherit, and whatever else is not
// close-on-exec. If a user namespace is joined, it has user and group 0 there,
// where these are mapped, and with them all capabilities.
//
// The program is a child of the caller. Without Outlive it gets SIGKILL when the
// thread that called Start ends: the caller has locked it, and keeps it until the
// program has ended.
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
	defer f.closeHigh()
	syscall.ForkLock.Lock() // no descriptor is between its making and FD_CLOEXEC
	first, errno := f.fork()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(e)
	w.Close()
	f.closeHigh() // the copies have theirs; the end of the pipe must be the last
	if errno != 0 {
		return 0, fmt.Errorf("clone: %w", errno)
	}
	pid, err = e.readReports(r)
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
func (e Entry) readReports(r io.Reader) (pid int, err error) {
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
			err = fmt.Errorf("join the namespaces of process %d: setns: %w", e.Target.PID, errno)
			if errno == unix.EINVAL || errno == unix.EBADF {
				err = fmt.Errorf("%w (Linux 5.8 or newer is needed)", err)
			}
		case stepJoin:
			err = fmt.Errorf("join the namespace %s: setns: %w", e.Files[rec.PID].Name(), errno)
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
	stepJoin
	stepClone
	stepGroups
	stepGID
	stepUID
	stepChdir
	stepDeathSignal
	stepDescriptors
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
	stepDescriptors: "dup3",
	stepExec:        "execveat",
}

// report is one record on the pipe. PID is that of the second copy or, with
// stepJoin, which file it was.
type report struct {
	Step, Errno, PID uint32
}

// forked is all that the copies need, as the system calls take it.
type forked struct {
	target, namespaces uintptr
	files              []uintptr
	made               uintptr // flags of new namespaces
	inherit            []uintptr
	self               uintptr // a pidfd of the caller
	pipe               uintptr
	program            uintptr
	dir, root, empty   *byte
	argv, envv         []*byte
	dropGroups         bool
	becomeRoot         bool
	outlive            bool
	high               []int // descriptors of Start's own

	// Written by the copies alone, each in its own memory.
	report report
	poll   unix.PollFd
	now    unix.Timespec
}

func (e Entry) prepare(self *Process, pipe *os.File) (*forked, error) {
	f := &forked{
		namespaces: uintptr(e.Namespaces),
		self:       self.file.Fd(),
		pipe:       pipe.Fd(),
		program:    e.Program.Fd(),
		made:       e.New,
		dropGroups: e.DropGroups,
		becomeRoot: e.Namespaces&unix.CLONE_NEWUSER != 0 || len(e.Files) > 0,
		outlive:    e.Outlive,
		root:       &[]byte("/\x00")[0],
		empty:      &[]byte("\x00")[0],
	}
	if e.Target != nil {
		f.target = e.Target.file.Fd()
	}
	for _, file := range e.Files {
		f.files = append(f.files, file.Fd())
	}
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
	if err := f.moveUp(e.Inherit); err != nil {
		f.closeHigh()
		return nil, err
	}
	f.poll = unix.PollFd{Fd: int32(f.self), Events: unix.POLLIN}
	return f, nil
}

// moveUp copies the descriptors that the second copy uses to numbers above those
// that the program inherits, where it does not overwrite them.
func (f *forked) moveUp(inherit []*os.File) error {
	if len(inherit) == 0 {
		return nil
	}
	above := func(fd uintptr) (uintptr, error) {
		n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, len(inherit))
		if err != nil {
			return 0, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
		}
		f.high = append(f.high, n)
		return uintptr(n), nil
	}
	var err error
	for _, fd := range []*uintptr{&f.self, &f.pipe, &f.program} {
		if *fd, err = above(*fd); err != nil {
			return err
		}
	}
	for _, file := range inherit {
		fd, err := above(file.Fd())
		if err != nil {
			return err
		}
		f.inherit = append(f.inherit, fd)
	}
	return nil
}

// closeHigh closes the copies of moveUp.
func (f *forked) closeHigh() {
	for _, fd := range f.high {
		unix.Close(fd)
	}
	f.high = nil
}

// lowered is held while the limit on open files is lowered.
var lowered sync.Mutex

// firstFileLimit is the limit that RestoreFileLimit puts back, which it does once: Go
// forgets that limit when it is set, and from then on leaves programs that os/exec
// starts the one of this process.
var firstFileLimit = sync.OnceValues(func() (limit syscall.Rlimit, err error) {
	RestoreFileLimit()
	err = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	return limit, err
})

// LowerFileLimit is RestoreFileLimit for a while: until the function that it
// returns is called. Others who call it wait for that.
func LowerFileLimit() (restore func()) {
	lowered.Lock()
	var raised syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &raised)
	if first, ferr := firstFileLimit(); ferr == nil {
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &first) // it was so, and is lower
	}
	return func() {
		defer lowered.Unlock()
		if err == nil {
			_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) // it was so before
		}
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
