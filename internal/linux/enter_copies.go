package linux

// What the two copies of enter.go do, by the rules that stand there.

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

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
	f.joinFiles()
	n, errno = rawClone(unix.CLONE_PARENT | f.made | uintptr(unix.SIGCHLD))
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
	if errno := f.place(); errno != 0 {
		f.fail(stepDescriptors, errno)
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

//go:nosplit
//go:norace
func (f *forked) joinFiles() {
	for i := 0; i < len(f.files); i++ {
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETNS, f.files[i], 0, 0); errno != 0 {
			f.tell(stepJoin, errno, uint32(i))
			exit(1)
		}
	}
}

// place gives the inherited descriptors their numbers, and keeps them open.
//
//go:nosplit
//go:norace
func (f *forked) place() syscall.Errno {
	for i := 0; i < len(f.inherit); i++ {
		if _, _, errno := syscall.RawSyscall(unix.SYS_DUP3, f.inherit[i], uintptr(i), 0); errno != 0 {
			return errno
		}
	}
	return 0
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
	if f.outlive {
		return 0
	}
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
