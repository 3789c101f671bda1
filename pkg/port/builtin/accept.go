package builtin

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/port"
)

// The acceptor takes connections off all TCP listeners.
//
// accept4(2) fails when the process or the host is out of descriptors or memory.
// Nothing is lost then: the connection stays in the listener's queue. The
// listener rests for a while, twice as long after each failure, and goes on; it
// ends only with its forward. Errors that belong to one connection, which
// Linux reports through accept4 too, are counted and passed over.

// Rests after a failure, and the most connections taken off one listener before
// the others have their turn.
const (
	minRest     = 5 * time.Millisecond
	maxRest     = time.Second
	acceptBurst = 64
)

// listener is a listening socket, owned by the acceptor's loop.
type listener struct {
	fd      int
	family  port.Families
	forward *forward
	token   uint64 // 0 before it is watched

	rest   time.Duration // the last rest; 0 after a success
	resume time.Time     // the end of the rest
}

type acceptor struct {
	driver  *Driver
	loop    *loop
	take    func(fd int) (int, netip.Addr, error) // linux.Accept, but in tests of what it may fail with
	pacing  bool                                  // accepted sockets pace what they send
	all     map[*listener]struct{}                // the loop's own, as is resting
	resting []*listener
}

func newAcceptor(d *Driver) (*acceptor, error) {
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	return &acceptor{driver: d, loop: l, take: linux.Accept, pacing: linux.Pacing(), all: map[*listener]struct{}{}}, nil
}

// run serves until the loop is stopped, and closes all listeners then.
func (a *acceptor) run() error {
	defer a.loop.close()
	err := a.loop.run(a.wake)
	for l := range a.all {
		a.close(l)
	}
	return err
}

// add takes over the listeners of forwards. They are the acceptor's from here
// on, also when it fails.
func (a *acceptor) add(forwards []*forward) error {
	var err error
	if !a.loop.do(func() {
		for _, fw := range forwards {
			for _, l := range fw.listeners {
				a.all[l] = struct{}{}
				if err == nil {
					l.token, err = a.loop.watch(l.fd, unix.EPOLLIN, func(uint32) { a.accept(l) })
				}
			}
		}
	}) {
		for _, fw := range forwards {
			for _, l := range fw.listeners {
				unix.Close(l.fd)
			}
		}
		return errNotRunning
	}
	return err
}

// remove closes the listeners of forwards.
func (a *acceptor) remove(forwards []*forward) {
	a.loop.do(func() {
		for _, fw := range forwards {
			for _, l := range fw.listeners {
				a.close(l)
			}
		}
	})
}

func (a *acceptor) close(l *listener) {
	if _, ok := a.all[l]; !ok {
		return
	}
	delete(a.all, l)
	a.resting = slices.DeleteFunc(a.resting, func(r *listener) bool { return r == l })
	a.loop.unwatch(l.fd, l.token)
	unix.Close(l.fd)
}

// accept takes what has come to l.
func (a *acceptor) accept(l *listener) {
	for range acceptBurst {
		fd, peer, err := a.take(l.fd)
		switch {
		case err == nil:
			l.rest = 0
			if a.pacing && peer.IsLoopback() {
				_ = linux.Unpace(fd) // slower without, and no worse
			}
			a.driver.admit(l, fd)
		case errors.Is(err, unix.EAGAIN):
			return
		case ofOneConn(err):
			a.driver.count.acceptErrors.Add(1)
		default:
			a.driver.count.acceptErrors.Add(1)
			a.driver.log.warn("cannot accept connections for the moment; they wait",
				"forward", l.forward.status.ID, "spec", l.forward.status.Spec, "error", err)
			a.pause(l)
			return
		}
	}
}

// ofOneConn tells the errors of accept4(2) that belong to the connection which
// would have been accepted.
func ofOneConn(err error) bool {
	for _, e := range [...]error{unix.ECONNABORTED, unix.ENETDOWN, unix.EPROTO, unix.ENOPROTOOPT, unix.EHOSTDOWN,
		unix.ENONET, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ETIMEDOUT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pause lets l rest.
func (a *acceptor) pause(l *listener) {
	l.rest = min(max(2*l.rest, minRest), maxRest)
	l.resume = time.Now().Add(l.rest)
	a.resting = append(a.resting, l)
	_ = a.loop.epoll.Modify(l.fd, l.token, 0) // fails only for a descriptor that is not there
}

// wake ends the rests that are over and returns when the next one is.
func (a *acceptor) wake(now time.Time) (next time.Time) {
	a.resting = slices.DeleteFunc(a.resting, func(l *listener) bool {
		if !l.resume.After(now) {
			_ = a.loop.epoll.Modify(l.fd, l.token, unix.EPOLLIN)
			return true
		}
		if next.IsZero() || l.resume.Before(next) {
			next = l.resume
		}
		return false
	})
	return next
}
