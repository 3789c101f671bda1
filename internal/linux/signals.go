package linux

import (
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"
)

// ForwardableSignals returns the signals that a gate passes on to its command:
// all that can be caught, but for those that mean something to the receiver
// alone (SIGCHLD, SIGPIPE, SIGURG), those that the C library (nptl(7)) and the
// Go runtime keep for themselves, and those that are ignored here, as SIGHUP is
// under nohup(1).
func ForwardableSignals() []os.Signal {
	var list []os.Signal
	for n := unix.Signal(1); n <= 64; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG, unix.SIGPROF, 32, 33, 34:
			continue
		}
		if !signal.Ignored(n) {
			list = append(list, n)
		}
	}
	return list
}

// IsTyped says whether a terminal sends s to its foreground process group
// (termios(3); SIGHUP and SIGCONT when it goes away, SIGWINCH when it changes).
func IsTyped(s os.Signal) bool {
	switch s {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGHUP, unix.SIGCONT, unix.SIGWINCH:
		return true
	}
	return false
}

// InForeground says whether this process is in the foreground process group of
// its controlling terminal, and so gets the signals that are typed there.
func InForeground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false // ENXIO: no controlling terminal
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// StopWithCommand stops this process after a command of it was stopped, so that the
// shell which waits for it gets the terminal back. It returns true once the process
// is continued, and then the terminal is the command's process group's again if it
// was (an interactive shell has one of its own). Without a terminal nobody is there
// to continue it: it does nothing and returns false.
func StopWithCommand() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	fd := int(tty.Fd())
	before, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if err != nil {
		return false
	}
	// Sent to the thread, which thus stops here and not a little later.
	runtime.LockOSThread()
	err = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP)
	runtime.UnlockOSThread()
	if err != nil {
		return false
	}
	// In the foreground the kernel lets us hand the terminal on.
	now, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if own := unix.Getpgrp(); err == nil && now == own && before != own {
		_ = unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, before) // it may have ended
	}
	return true
}
