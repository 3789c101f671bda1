package slirp

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/gatekit/gatekit/internal/linux"
)

// loop moves the bytes of all flows that are assigned to it, on one goroutine, so
// that a flow needs none, takes no lock against the other direction, and costs
// only its state while it is idle. The first loop reads the TAP as well, and has all
// of TCP. A round:
//
//  1. events of host sockets and of the TAP (epoll): bytes and datagrams of the
//     host go to the namespace, frames to the relays and the stack
//  2. what other goroutines ask for (calls)
//  3. what is to be done once per round, and when its time has come (turn)
//
// Without any of these the loop spins for a while and then sleeps (idle.go).
type loop struct {
	epoll     *linux.Epoll
	datagrams *linux.Batch // made when first needed
	memory    *reclaimer   // counts what is watched

	mu       sync.Mutex // guards watchers and stopped
	watchers map[int]watcher
	stopped  bool

	calls calls
	idle  idleness
	tcp   *tcpForwarder // of the loop that reads the TAP, else nil
}

// watcher is what owns a descriptor.
type watcher interface {
	// hostEvent is called on the loop's goroutine with a set of EPOLL flags. It
	// may be called in error, when a descriptor's number is used again.
	hostEvent(l *loop, events uint32)

	// abort ends the flow and closes the socket. It is called when the engine
	// stops, after the loop's goroutine has ended.
	abort()
}

// The room for datagrams that are received with one call.
const (
	datagramBatch = 16
	datagramSize  = 64 << 10
)

// eventBatch is how many events one wait returns.
const eventBatch = 64

// newLoop returns a loop. run is its goroutine; stop ends it.
func newLoop(memory *reclaimer) (*loop, error) {
	epoll, err := linux.NewEpoll()
	if err != nil {
		return nil, err
	}
	l := &loop{epoll: epoll, memory: memory, watchers: make(map[int]watcher)}
	l.calls.wake = epoll.Wake
	return l, nil
}

// watch sends the events of fd to w, until forget. An fd that was watched
// already changes hands.
func (l *loop) watch(fd int, events uint32, w watcher) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return errStopped
	}
	if _, ok := l.watchers[fd]; !ok {
		if err := l.epoll.Add(fd, uint64(fd), events); err != nil {
			return err
		}
		l.memory.opened()
	}
	l.watchers[fd] = w
	return nil
}

// modify changes the events of an fd that is watched.
func (l *loop) modify(fd int, events uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return errStopped
	}
	return l.epoll.Modify(fd, uint64(fd), events)
}

// errStopped says that the engine is on its way down.
var errStopped = errors.New("the network is stopping")

// forget is called before fd is closed, which takes it out of the epoll set.
func (l *loop) forget(fd int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.watchers[fd]; ok {
		delete(l.watchers, fd)
		l.memory.ended()
	}
}

// unwatch takes an fd that stays open out of the set.
func (l *loop) unwatch(fd int) {
	l.forget(fd)
	_ = l.epoll.Delete(fd) // it fails when the set is closed
}

// run serves until stop.
func (l *loop) run() error {
	events := make([]linux.Ready, eventBatch)
	var asked []func()
	for {
		n, err := l.await(events)
		if l.isStopped() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for host sockets: %w", err)
		}
		if l.tcp != nil {
			l.tcp.tell()
		}
		for _, ev := range events[:n] {
			l.mu.Lock()
			w := l.watchers[int(ev.Token)]
			l.mu.Unlock()
			if w != nil {
				w.hostEvent(l, ev.Events)
			}
		}
		asked = l.calls.take(asked)
		for i, f := range asked {
			asked[i] = nil
			f()
		}
		if l.tcp != nil {
			l.tcp.turn()
		}
	}
}

// call has f called on the loop's goroutine, or by abort. It does not wait, and is false
// when it comes after that.
func (l *loop) call(f func()) bool { return l.calls.put(f) }

// isStopped says whether stop was called.
func (l *loop) isStopped() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopped
}

// stop ends run. watch fails from here on.
func (l *loop) stop() {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	l.epoll.Close()
}

// abort ends all flows, after stop and after run has returned.
func (l *loop) abort() {
	for _, f := range l.calls.end() {
		f()
	}
	for _, w := range l.all() {
		w.abort()
	}
}

// all are the watchers now.
func (l *loop) all() []watcher {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.AppendSeq(make([]watcher, 0, len(l.watchers)), maps.Values(l.watchers))
}

// receiveBuffers returns the room for datagrams. Only run may use it.
func (l *loop) receiveBuffers() *linux.Batch {
	if l.datagrams == nil {
		l.datagrams = linux.NewBatch(datagramBatch, datagramSize)
	}
	return l.datagrams
}

// calls are what other goroutines ask a loop for.
type calls struct {
	mu     sync.Mutex // guards all below
	asked  []func()
	asleep bool // the loop sleeps, or is about to
	ended  bool // nobody asks any more

	wake func() // ends its sleep
}

// put appends a call, and is false after end. It does not block.
func (c *calls) put(f func()) bool {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return false
	}
	c.asked = append(c.asked, f)
	wake := c.asleep
	c.asleep = false
	c.mu.Unlock()
	if wake {
		c.wake()
	}
	return true
}

// end returns the last calls.
func (c *calls) end() []func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	return c.asked
}

// take returns all calls, in the memory of the last batch.
func (c *calls) take(last []func()) []func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch := c.asked
	c.asked = last[:0]
	return batch
}

// empty says whether there are none.
func (c *calls) empty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.asked) == 0
}

// sleep says that the loop goes to sleep, and is false when there is work. From
// here on, put wakes it.
func (c *calls) sleep() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asleep = len(c.asked) == 0
	return c.asleep
}

// awake says that the loop no longer sleeps.
func (c *calls) awake() {
	c.mu.Lock()
	c.asleep = false
	c.mu.Unlock()
}
