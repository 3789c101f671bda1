package linux

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Poller is an epoll instance (epoll(7)) whose waiting is done by Go's own
// poller: a goroutine in Wait is parked and holds no thread. One goroutine can
// therefore watch any number of descriptors.
type Poller struct {
	file *os.File
	raw  syscall.RawConn
	fd   int
}

// NewPoller returns an empty poller. The caller closes it.
func NewPoller() (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	// os.NewFile registers a descriptor with Go's poller when it is
	// non-blocking.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("fcntl(F_SETFL) of an epoll descriptor: %w", err)
	}
	file := os.NewFile(uintptr(fd), "epoll")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("watch an epoll descriptor: %w", err)
	}
	return &Poller{file: file, raw: raw, fd: fd}, nil
}

// Close ends Wait. The descriptors that are watched stay open.
func (p *Poller) Close() error { return p.file.Close() }

// Add watches fd for events, a set of unix.EPOLL* flags, until fd is closed.
// It must not be called after Close.
func (p *Poller) Add(fd int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("epoll_ctl(EPOLL_CTL_ADD): %w", err)
	}
	return nil
}

// Wait parks until there are events, fills events with them and returns how
// many there are. After Close the error wraps os.ErrClosed.
func (p *Poller) Wait(events []unix.EpollEvent) (int, error) {
	var n int
	var errno unix.Errno
	err := p.raw.Read(func(fd uintptr) bool {
		n, errno = epollPoll(int(fd), events)
		return n > 0 || errno != 0
	})
	if err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, fmt.Errorf("epoll_wait: %w", errno)
	}
	return n, nil
}
