package slirp

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
)

// loop moves the bytes of all flows that are assigned to it, on one goroutine, so
// that a flow needs none, takes no lock against the other direction, and costs
// only its state while it is idle. The first loop reads the TAP as well. A round:
//
//  1. events of host sockets and of the TAP (epoll): bytes and datagrams
//     of the host go to the namespace, frames to the relays and the stack
//  2. the stack's own goroutines run, which take the segments among these
//  3. endpoints of the stack that became readable or writable: bytes of the
//     namespace go to the host (readyQueue)
//
// Without any of these the loop spins for a while and then sleeps (idle.go).
type loop struct {
	epoll     *linux.Epoll
	datagrams *linux.Batch // made when first needed
	memory    *reclaimer   // counts what is watched

	// halfOpen is after how long a silence a peer that has ended its half of a
	// connection is probed (relay.probeGuest).
	halfOpen time.Duration

	mu       sync.Mutex // guards watchers and stopped
	watchers map[int]watcher
	stopped  bool

	ready readyQueue
	idle  idleness
	acks  *heldACKs // of the loop that reads the TAP, else nil
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
	l := &loop{epoll: epoll, memory: memory, halfOpen: halfOpenIdle, watchers: make(map[int]watcher)}
	l.ready.wake = epoll.Wake
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
	var relays []*relay
	for {
		n, err := l.await(events)
		if l.isStopped() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for host sockets: %w", err)
		}
		for _, ev := range events[:n] {
			l.mu.Lock()
			w := l.watchers[int(ev.Token)]
			l.mu.Unlock()
			if w != nil {
				w.hostEvent(l, ev.Events)
			}
		}
		if n > 0 {
			runtime.Gosched()
		}
		relays = l.ready.take(relays)
		for i, r := range relays {
			relays[i] = nil
			r.guestEvent()
		}
		if l.acks != nil {
			l.acks.round()
		}
	}
}

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

// revoke resets the namespace's connections that the policy, as it is now, does
// not allow.
func (l *loop) revoke(e *egress) {
	for _, w := range l.all() {
		r, ok := w.(*relay)
		if !ok || !r.outbound {
			continue
		}
		asked, err := r.ep.GetLocalAddress()
		if err == nil && !e.policy.AllowsStill(policy.TCP, netip.AddrPortFrom(fromAddress(asked.Addr), asked.Port)) {
			r.cut()
		}
	}
}

// cut resets the connections that take a lead.
func (l *loop) cut(d *lead) {
	for _, w := range l.all() {
		if r, ok := w.(*relay); ok && r.lead == d {
			r.cut()
		}
	}
}

// receiveBuffers returns the room for datagrams. Only run may use it.
func (l *loop) receiveBuffers() *linux.Batch {
	if l.datagrams == nil {
		l.datagrams = linux.NewBatch(datagramBatch, datagramSize)
	}
	return l.datagrams
}

// readyQueue holds the relays whose endpoint has events. It is not bounded by
// itself: each relay is in it once at most.
type readyQueue struct {
	mu     sync.Mutex // guards all below
	relays []*relay
	asleep bool // the loop sleeps, or is about to

	wake func() // ends its sleep
}

// put appends a relay. It does not block.
func (q *readyQueue) put(r *relay) {
	q.mu.Lock()
	q.relays = append(q.relays, r)
	wake := q.asleep
	q.asleep = false
	q.mu.Unlock()
	if wake {
		q.wake()
	}
}

// take returns all relays, in the memory of the last batch.
func (q *readyQueue) take(last []*relay) []*relay {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := q.relays
	q.relays = last[:0]
	return batch
}

// empty says whether there are none.
func (q *readyQueue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.relays) == 0
}

// sleep says that the loop goes to sleep, and is false when there is work. From
// here on, put wakes it.
func (q *readyQueue) sleep() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asleep = len(q.relays) == 0
	return q.asleep
}

// awake says that the loop no longer sleeps.
func (q *readyQueue) awake() {
	q.mu.Lock()
	q.asleep = false
	q.mu.Unlock()
}
