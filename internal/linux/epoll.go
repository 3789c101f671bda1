package linux

import (
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Epoll waits for many descriptors with one goroutine and no thread: the epoll
// instance is itself a descriptor that Go's poller waits for. A thousand idle
// sockets cost a thousand entries in the kernel and nothing here.
//
// Descriptors are level-triggered: one that stays ready is reported again.
// A descriptor leaves the set when it is deleted or when it is closed, provided
// that no duplicate of it is open.
//
// Wait, Poll and Yield are for one goroutine; the other methods are for any, also
// while the set is being closed, and after it.
type Epoll struct {
	file *os.File
	raw  syscall.RawConn
	wake int // an eventfd, to be used while raw holds the set only

	// For Wait, Poll and Wake, so that they allocate nothing.
	ask    func(fd uintptr) (done bool)
	look   func(fd uintptr)
	ring   func(fd uintptr)
	drain  func(fd uintptr)
	events [64]unix.EpollEvent
	space  int // how many of events may be used
	n      int // how many were
	errno  unix.Errno
	yield  bool
}

// Ready is a descriptor that is ready, by the token it was added with.
type Ready struct {
	Token  uint64
	Events uint32 // unix.EPOLLIN, EPOLLERR ...
}

// wakeToken is the eventfd's own; callers' tokens are smaller.
const wakeToken = ^uint64(0)

// NewEpoll makes an empty set.
func NewEpoll() (*Epoll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd2", err)
	}
	e := &Epoll{file: os.NewFile(uintptr(fd), "epoll"), wake: wake}
	e.ask, e.look = e.poll, func(fd uintptr) { e.poll(fd) }
	e.ring, e.drain = func(uintptr) { e.ringNow() }, func(uintptr) { e.silence() }
	if e.raw, err = e.file.SyscallConn(); err == nil {
		err = e.Add(wake, wakeToken, unix.EPOLLIN)
	}
	if err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// Add puts fd into the set. Its events are reported with the token.
func (e *Epoll) Add(fd int, token uint64, events uint32) error {
	return e.ctl(unix.EPOLL_CTL_ADD, fd, token, events)
}

// Modify changes the events that are waited for; 0 waits for none but errors.
func (e *Epoll) Modify(fd int, token uint64, events uint32) error {
	return e.ctl(unix.EPOLL_CTL_MOD, fd, token, events)
}

// Delete takes fd out of the set.
func (e *Epoll) Delete(fd int) error { return e.ctl(unix.EPOLL_CTL_DEL, fd, 0, 0) }

func (e *Epoll) ctl(op, fd int, token uint64, events uint32) error {
	var errno unix.Errno
	if err := e.raw.Control(func(efd uintptr) {
		ev := unix.EpollEvent{Events: events, Fd: int32(uint32(token)), Pad: int32(uint32(token >> 32))}
		errno = epollControl(int(efd), op, fd, &ev)
	}); err != nil {
		return err
	}
	if errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
}

// Wait fills ready with what is ready and returns how many there are. It returns
// 0 and no error when Wake was called or the deadline has passed.
func (e *Epoll) Wait(ready []Ready) (int, error) {
	e.space = min(len(e.events), len(ready))
	err := e.raw.Read(e.ask)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return e.report(ready)
}

// Poll is Wait that does not wait: it returns 0 where nothing is ready.
func (e *Epoll) Poll(ready []Ready) (int, error) {
	e.space = min(len(e.events), len(ready))
	if err := e.raw.Control(e.look); err != nil {
		return 0, err
	}
	return e.report(ready)
}

// Yield is Wait for a goroutine that has had the processor for long: first,
// those run that wait for a descriptor of their own in Go's poller. The poller
// is asked only when a goroutine has nothing to do, so one that never waits would
// starve them.
func (e *Epoll) Yield(ready []Ready) (int, error) {
	e.yield = true
	return e.Wait(ready)
}

// report turns what poll has found into ready.
func (e *Epoll) report(ready []Ready) (int, error) {
	if e.errno != 0 {
		return 0, os.NewSyscallError("epoll_wait", e.errno)
	}
	count := 0
	for _, ev := range e.events[:e.n] {
		token := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
		if token == wakeToken {
			_ = e.raw.Control(e.drain) // it fails when the set is closed
			continue
		}
		ready[count] = Ready{Token: token, Events: ev.Events}
		count++
	}
	return count, nil
}

// poll asks the set without waiting, and reports whether that has an outcome.
// Only when nothing is ready does Go's edge-triggered poller wait for the set's
// next change.
func (e *Epoll) poll(fd uintptr) (done bool) {
	if e.yield {
		e.yield = false
		e.ringNow() // now, as Go's poller has just begun to wait for a change
		return false
	}
	e.n, e.errno = epollPoll(int(fd), e.events[:e.space])
	return e.errno != 0 || e.n > 0
}

// SetDeadline makes Wait return at t; the zero time takes the deadline away.
func (e *Epoll) SetDeadline(t time.Time) error { return e.file.SetReadDeadline(t) }

// Wake makes the present or the next Wait return.
func (e *Epoll) Wake() { _ = e.raw.Control(e.ring) } // it fails when the set is closed

// ringNow is Wake for who holds the set.
func (e *Epoll) ringNow() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// Fails only when the counter is full, and then a wake-up is due anyway.
	_, _ = unix.Write(e.wake, one[:])
}

// silence takes back what ringNow has done.
func (e *Epoll) silence() {
	var count [8]byte
	_, _ = unix.Read(e.wake, count[:])
}

// Close ends the set: Wait returns with an error.
func (e *Epoll) Close() error {
	err := e.file.Close() // and waits for all who hold it
	unix.Close(e.wake)
	return err
}
