package slirp

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
)

// loop moves the bytes of all flows that are assigned to it. It has two
// goroutines, so that a flow needs none and an idle flow costs only its state:
//
//	host side:  waits for events of host sockets (epoll, parked in Go's
//	            poller)
//	guest side: waits for endpoints of gVisor that became readable or writable
//
// Either of them may have to do either direction of a flow: a full buffer on one
// side is waited for on that side. pump makes sure that only one does at a time.
type loop struct {
	epoll     *linux.Epoll
	datagrams *linux.Batch // of the host side, made when first needed

	// halfOpen is after how long a silence a peer that has ended its half of a
	// connection is probed (relay.probeGuest).
	halfOpen time.Duration

	mu       sync.Mutex // guards watchers and stopped
	watchers map[int]watcher
	stopped  bool

	ready readyQueue
}

// watcher is what owns a host socket.
type watcher interface {
	// hostEvent is called on the loop's host side with a set of EPOLL flags. It
	// may be called in error, when a descriptor's number is used again.
	hostEvent(l *loop, events uint32)

	// abort ends the flow and closes the socket. It is called when the engine
	// stops, after the loop's goroutines have ended.
	abort()
}

// The room for datagrams that are received with one call.
const (
	datagramBatch = 16
	datagramSize  = 64 << 10
)

// eventBatch is how many events one wait returns.
const eventBatch = 64

// newLoop returns a loop. runHost and runGuest are its goroutines; stop ends them.
func newLoop() (*loop, error) {
	epoll, err := linux.NewEpoll()
	if err != nil {
		return nil, err
	}
	l := &loop{epoll: epoll, halfOpen: halfOpenIdle, watchers: make(map[int]watcher)}
	l.ready.init()
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
	delete(l.watchers, fd)
	l.mu.Unlock()
}

// runHost serves host sockets until stop.
func (l *loop) runHost() error {
	events := make([]linux.Ready, eventBatch)
	for {
		n, err := l.epoll.Wait(events)
		if errors.Is(err, os.ErrClosed) {
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
	}
}

// runGuest serves endpoints of the stack until stop.
func (l *loop) runGuest() {
	var batch []*relay
	for {
		var ok bool
		if batch, ok = l.ready.take(batch); !ok {
			return
		}
		for i, r := range batch {
			batch[i] = nil
			r.guestEvent()
		}
	}
}

// stop ends both goroutines. watch fails from here on.
func (l *loop) stop() {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	l.epoll.Close()
	l.ready.close()
}

// abort ends all flows, after stop and after the goroutines have ended.
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
			r.end(true)
		}
	}
}

// receiveBuffers returns the room for datagrams. Only the host side may use it.
func (l *loop) receiveBuffers() *linux.Batch {
	if l.datagrams == nil {
		l.datagrams = linux.NewBatch(datagramBatch, datagramSize)
	}
	return l.datagrams
}

// readyQueue holds the relays whose endpoint has events. It is not bounded by
// itself: each relay is in it once at most.
type readyQueue struct {
	mu     sync.Mutex // guards relays and closed
	relays []*relay
	closed bool
	wake   chan struct{}
}

func (q *readyQueue) init() { q.wake = make(chan struct{}, 1) }

// put appends a relay. It does not block.
func (q *readyQueue) put(r *relay) {
	q.mu.Lock()
	q.relays = append(q.relays, r)
	first := len(q.relays) == 1
	q.mu.Unlock()
	if first {
		q.signal()
	}
}

func (q *readyQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits for relays and returns all of them; it is false when the queue is
// closed. The memory of the last batch is used again.
func (q *readyQueue) take(last []*relay) ([]*relay, bool) {
	for {
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return nil, false
		}
		if len(q.relays) > 0 {
			batch := q.relays
			q.relays = last[:0]
			q.mu.Unlock()
			return batch, true
		}
		q.mu.Unlock()
		<-q.wake
	}
}

// close ends take.
func (q *readyQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}
