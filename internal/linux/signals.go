package linux

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Signals is a set of signals.
type Signals struct{ set unix.Sigset_t }

// Forwardable returns the signals that a gate passes on: all but the two that
// cannot be caught, those that mean something to the receiver alone (SIGCHLD,
// SIGPIPE, SIGURG), and those by which the kernel reports a fault of the
// receiver's own and which the Go runtime keeps unblocked.
func Forwardable() Signals {
	var s Signals
	for n := unix.Signal(1); n <= 64; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG,
			unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGSYS, unix.SIGPROF:
			continue
		case 32, 33: // the C library's own (nptl(7))
			continue
		}
		s.set.Val[(n-1)/64] |= 1 << ((n - 1) % 64)
	}
	return s
}

// BlockSignals blocks the set in the calling thread, and with it in programs
// that this thread starts. It returns the mask that was in force. The caller has
// locked its thread.
func BlockSignals(s Signals) (old Signals, err error) {
	err = unix.PthreadSigmask(unix.SIG_BLOCK, &s.set, &old.set)
	return old, os.NewSyscallError("rt_sigprocmask", err)
}

// UnblockSignals takes the set out of the calling thread's mask.
func UnblockSignals(s Signals) error {
	return os.NewSyscallError("rt_sigprocmask", unix.PthreadSigmask(unix.SIG_UNBLOCK, &s.set, nil))
}

// SetSignalMask sets the calling thread's mask.
func SetSignalMask(s Signals) error {
	return os.NewSyscallError("rt_sigprocmask", unix.PthreadSigmask(unix.SIG_SETMASK, &s.set, nil))
}

// SignalFD reads signals that are blocked in every thread of the process, and
// tells who sent them, which os/signal does not (signalfd(2)).
type SignalFD struct{ file *os.File }

// ReceivedSignal is a signal and its sender.
type ReceivedSignal struct {
	Signal unix.Signal

	// FromTerminal is true when the kernel sent it on behalf of a terminal: to
	// the whole foreground process group (SI_KERNEL, sigaction(2)).
	FromTerminal bool
}

// NewSignalFD opens a descriptor for the set.
func NewSignalFD(s Signals) (*SignalFD, error) {
	fd, err := unix.Signalfd(-1, &s.set, unix.SFD_CLOEXEC|unix.SFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("signalfd", err)
	}
	return &SignalFD{os.NewFile(uintptr(fd), "signalfd")}, nil
}

// Read waits for the next signal. After Close it fails with os.ErrClosed.
func (s *SignalFD) Read() (ReceivedSignal, error) {
	const size, codeOffset = 128, 8 // struct signalfd_siginfo: ssi_signo, ssi_errno, ssi_code
	var info [size]byte
	n, err := s.file.Read(info[:])
	if err != nil {
		return ReceivedSignal{}, err
	}
	if n != size {
		return ReceivedSignal{}, fmt.Errorf("signalfd: read %d bytes, not %d", n, size)
	}
	const siKernel = 0x80
	return ReceivedSignal{
		Signal:       unix.Signal(binary.NativeEndian.Uint32(info[:])),
		FromTerminal: int32(binary.NativeEndian.Uint32(info[codeOffset:])) == siKernel,
	}, nil
}

// Close ends a Read.
func (s *SignalFD) Close() error { return s.file.Close() }
