package builtin

import (
	"sync"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
)

// loop waits for many descriptors with one goroutine and calls the handler of
// each that is ready. The goroutine owns the descriptors, the handlers and
// whatever the handlers work on, so that none of it needs a lock. Others ask it
// to do things with do and post. Handlers must not wait for anything.
type loop struct {
	epoll    *linux.Epoll
	handlers map[uint64]handler // the loop's own, as is all up to mu
	token    uint64
	now      time.Time // of this round
	deadline time.Time
	stopped  bool

	mu    sync.Mutex // guards inbox and ended
	inbox []func()
	ended bool
}

// handler works on a descriptor that is ready for events (unix.EPOLLIN ...).
type handler func(events uint32)

func newLoop() (*loop, error) {
	epoll, err := linux.NewEpoll()
	if err != nil {
		return nil, err
	}
	return &loop{epoll: epoll, handlers: map[uint64]handler{}}, nil
}

// watch calls h in the loop whenever fd is ready for events. It returns the
// token that unwatch and pause take.
func (l *loop) watch(fd int, events uint32, h handler) (uint64, error) {
	if err := l.epoll.Add(fd, l.token+1, events); err != nil {
		return 0, err
	}
	l.token++
	l.handlers[l.token] = h
	return l.token, nil
}

// unwatch forgets a descriptor, which the caller then closes.
func (l *loop) unwatch(fd int, token uint64) {
	delete(l.handlers, token)
	_ = l.epoll.Delete(fd) // fails only for a descriptor that is not there
}

// do runs f in the loop and returns when it has. It reports false, without
// running f, when the loop has ended.
func (l *loop) do(f func()) bool {
	done := make(chan struct{})
	if !l.post(func() { defer close(done); f() }) {
		return false
	}
	<-done
	return true
}

// post runs f in the loop, soon. It reports false when the loop has ended.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.inbox = append(l.inbox, f)
	l.epoll.Wake() // under mu, because close follows ended
	return true
}

// stop makes run return.
func (l *loop) stop() { l.post(func() { l.stopped = true }) }

// run serves until stop is called. After each round it calls tick, which does
// what is due and says when it is to be called next; the zero time means that
// nothing is. What was posted before run returns has run.
func (l *loop) run(tick func(now time.Time) (next time.Time)) error {
	var (
		ready [64]linux.Ready
		err   error
	)
	for !l.stopped && err == nil {
		var n int
		n, err = l.epoll.Wait(ready[:])
		l.now = time.Now()
		for _, r := range ready[:n] {
			// An earlier handler of this round may have unwatched it.
			if h := l.handlers[r.Token]; h != nil {
				h(r.Events)
			}
		}
		l.mu.Lock()
		inbox := l.inbox
		l.inbox = nil
		l.mu.Unlock()
		for _, f := range inbox {
			f()
		}
		if next := tick(l.now); err == nil && l.mustSet(next) {
			l.deadline = next
			err = l.epoll.SetDeadline(next)
		}
	}
	l.mu.Lock()
	l.ended = true
	inbox := l.inbox
	l.inbox = nil
	l.mu.Unlock()
	for _, f := range inbox {
		f()
	}
	return err
}

// mustSet reports whether the deadline has to be changed for next. One that
// comes too early does no harm, and costs less than a change in each round.
func (l *loop) mustSet(next time.Time) bool {
	switch {
	case next.Equal(l.deadline):
		return false
	case l.deadline.IsZero() || !l.deadline.After(l.now):
		return true
	default:
		return !next.IsZero() && next.Before(l.deadline)
	}
}

// close frees the loop's own descriptors, after run.
func (l *loop) close() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.epoll.Close()
}
