package slirp

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/gatekit/gatekit/internal/linux"
)

// relay joins a TCP endpoint of the stack, on which the namespace's connection
// ends, to a connected socket of the host. It holds no buffer: bytes go from the
// stack's own receive queue into the socket, and from the socket into views that
// become the stack's send queue. A side that cannot take more is waited for, and
// in the meantime nothing is read from the other, so that its window closes.
//
//	guest                                            host
//	FIN       -> Read: ErrClosedForReceive     ->    shutdown(SHUT_WR)
//	RST       -> Read or Write: any other error ->   close with SO_LINGER 0: RST
//	FIN      <-  Shutdown(ShutdownWrite)      <-     read: end of stream
//	RST      <-  Abort                        <-     any error
//
// The relay ends when both directions have, or with a reset. There is no limit on
// how long it is idle: keepalive probes find out, on both sides, whether the peer
// is still there.
type relay struct {
	loop  *loop
	ep    tcpip.Endpoint
	queue *waiter.Queue
	entry waiter.Entry
	fd    int

	// outbound says that the namespace opened the connection, so that the policy
	// is for it.
	outbound bool

	// lead is what an outbound one takes; nil for none.
	lead *lead

	// over, where not nil, is called when both sides are closed.
	over func()

	since time.Time // when both ends were connected

	// events are those of the endpoint that wait for the loop, and our own. With
	// spoken it is the only part that others than the loop's goroutine use.
	events atomic.Uint64
	spoken spoken

	toHostDone, toGuestDone bool // the end of the stream was passed on
	closed                  bool

	sink   hostWriter // to the host
	source hostReader // to the guest

	// hostBlocked says that the socket has no room.
	hostBlocked bool
	// hostEnded says that there may be the host's end of stream or an error
	// behind what the socket holds, so that reading that is not enough.
	hostEnded bool
	// deaf says that the loop does not wait for the socket to be readable.
	deaf bool

	// probed is when the namespace last probed us.
	probed time.Time
}

// fairShare is how many bytes of one flow are moved before the others of the
// loop get their turn.
const fairShare = 1 << 20

// hostEvents are the events of a host socket that a relay waits for.
const hostEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

const guestEvents = waiter.ReadableEvents | waiter.WritableEvents | waiter.EventHUp | waiter.EventErr

// Events of our own, besides the stack's.
const (
	cutEvent   waiter.EventMask = 1 << 63 // the relay is to be reset
	probeEvent waiter.EventMask = 1 << 62 // the namespace may have sent a probe
)

// newRelay returns a relay that owns nothing until start.
func newRelay(l *loop, ep tcpip.Endpoint, queue *waiter.Queue, fd int) *relay {
	r := &relay{loop: l, ep: ep, queue: queue, fd: fd, hostEnded: true, since: time.Now()}
	r.sink.fd, r.source.fd = fd, fd
	return r
}

// start gives the relay to its loop. It owns both ends from here on, and closes
// them when there is an error.
func (r *relay) start() error {
	// Events from before the registrations are lost, so the first are made up. They
	// also keep the relay out of the queue until the loop has it.
	r.events.Store(uint64(guestEvents))
	r.entry.Init(r, guestEvents)
	r.queue.EventRegister(&r.entry)
	r.own()
	if err := r.loop.watch(r.fd, hostEvents, r); err != nil {
		r.close(true)
		return err
	}
	r.loop.ready.put(r)
	return nil
}

// NotifyEvent implements waiter.EventListener. The stack calls it with the
// endpoint locked, so the work is left to the loop.
func (r *relay) NotifyEvent(mask waiter.EventMask) {
	if r.events.Or(uint64(mask)) == 0 {
		r.loop.ready.put(r)
	}
}

// cut has the loop reset the connection. Any goroutine may call it.
func (r *relay) cut() { r.NotifyEvent(cutEvent) }

// guestEvent does what the events of the endpoint, or our own, ask for.
func (r *relay) guestEvent() {
	mask := waiter.EventMask(r.events.Swap(0))
	if r.closed {
		return
	}
	switch {
	case mask&cutEvent != 0:
		r.close(true)
		return
	case mask&(waiter.EventHUp|waiter.EventErr) != 0 && r.toHostDone && guestGone(r.ep):
		unsent, _ := linux.Unsent(r.fd)
		r.close(unsent == 0)
		return
	}
	if mask&^(waiter.WritableEvents|probeEvent) != 0 {
		r.pumpToHost()
	}
	if mask&^(waiter.ReadableEvents|probeEvent) != 0 {
		r.pumpToGuest()
	}
	if mask&probeEvent != 0 && !r.closed {
		r.carryProbe()
	}
}

// hostEvent implements watcher.
func (r *relay) hostEvent(_ *loop, events uint32) {
	if r.closed {
		return
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		r.hostEnded = true
	}
	if events&unix.EPOLLERR != 0 && r.toGuestDone && linux.SocketError(r.fd) != nil {
		r.close(guestHasAll(r.ep))
		return
	}
	if events&unix.EPOLLOUT != 0 && r.hostBlocked {
		r.pumpToHost()
	}
	if events&^unix.EPOLLOUT != 0 {
		r.pumpToGuest()
	}
}

// guestGone says whether a connection has come to its end, by a reset or because
// nobody answers. Where the guest's half had ended before, nobody reads any more
// and would learn of it.
func guestGone(ep tcpip.Endpoint) bool {
	state := tcp.EndpointState(ep.State())
	return state == tcp.StateError || state == tcp.StateClose
}

// guestHasAll says whether a guest has acknowledged all, of a stream that has ended.
func guestHasAll(ep tcpip.Endpoint) bool {
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateFinWait2, tcp.StateTimeWait, tcp.StateClose, tcp.StateError:
		return true
	}
	return false
}

// abort implements watcher.
func (r *relay) abort() { r.close(true) }

// close closes both sides, with resets or after both directions have ended.
func (r *relay) close(reset bool) {
	r.closed = true
	r.queue.EventUnregister(&r.entry)
	r.loop.forget(r.fd)
	if reset {
		resetAndClose(r.fd)
		r.ep.Abort()
	} else {
		linux.Close(r.fd)
	}
	r.ep.Close()
	if r.over != nil {
		r.over()
	}
}

// resetAndClose closes a TCP socket so that its peer sees a reset.
func resetAndClose(fd int) {
	_ = linux.ResetOnClose(fd) // it fails on no TCP socket
	linux.Close(fd)
}

// halfOpenIdle is how long a kernel keeps a connection that its program has closed
// and whose other half goes on (tcp_fin_timeout in tcp(7)).
const halfOpenIdle = time.Minute

// A program that closes a connection and one that ends its half of it send the
// same FIN. Whether somebody is left to take what comes is told by the kernel on
// that side, when it is asked: after a close it forgets the connection, and
// answers a keepalive probe with a reset. Otherwise connections of which the other
// end never closes its half would stay for ever, in FIN_WAIT2 and CLOSE_WAIT.
//
// The other side is reset then, but not while what was sent to it before is on its
// way: it may be a slow reader, and a reset overtakes the stream.

// probeGuest has the namespace probed.
func (r *relay) probeGuest() {
	idle := tcpip.KeepaliveIdleOption(r.loop.halfOpen)
	_ = r.ep.SetSockOpt(&idle) // the value is in range
}

// pumpToHost moves what the endpoint has received into the socket.
func (r *relay) pumpToHost() {
	for moved := 0; !r.toHostDone && !r.closed; {
		r.sink.errno = 0
		res, err := r.ep.Read(&r.sink, tcpip.ReadOptions{})
		if res.Count > 0 {
			r.ep.ModerateRecvBuf(res.Count)
			moved += res.Count
		}
		if r.hostBlocked = r.sink.errno == unix.EAGAIN; r.hostBlocked {
			return // until EPOLLOUT
		}
		if r.sink.errno != 0 {
			r.lastWords()
			r.close(true)
			return
		}
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			return // until the endpoint is readable
		case *tcpip.ErrClosedForReceive:
			r.endToHost()
			return
		default:
			r.close(true)
			return
		}
		if moved >= fairShare {
			r.NotifyEvent(waiter.ReadableEvents)
			return
		}
	}
}

// lastWords passes on what the host's side has said before it broke the connection: a
// server that refuses a large request answers and closes, while the request still comes.
// There is no more of it.
func (r *relay) lastWords() {
	if n := linux.Readable(r.fd); n > 0 && !r.toGuestDone {
		r.source.left = min(n, fairShare)
		_, _ = r.ep.Write(&r.source, tcpip.WriteOptions{}) // what has no room is lost
	}
}

// endToHost passes on that the namespace has sent all.
func (r *relay) endToHost() {
	switch r.toHostDone = true; {
	case linux.EndStream(r.fd) != nil:
		r.lastWords()
		r.close(true)
	case r.toGuestDone:
		r.close(false)
	default:
		r.probeGuest()
	}
}

// pumpToGuest moves what the socket has received into the endpoint.
func (r *relay) pumpToGuest() {
	for moved := 0; !r.toGuestDone && !r.closed; {
		available := linux.Readable(r.fd)
		if available == 0 {
			n, errno := linux.PeekNonblock(r.fd)
			switch {
			case errno == unix.EAGAIN:
				r.hostEnded = false
				r.listenToHost(true)
				return // until EPOLLIN
			case errno != 0:
				r.close(true)
				return
			case n == 0:
				r.endToGuest()
				return
			}
			available = 1
		}
		r.source.left = min(available, fairShare)
		n, err := r.ep.Write(&r.source, tcpip.WriteOptions{})
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			// Until the endpoint is writable. What comes from the host until then
			// is of no interest, and would wake us for every segment.
			r.listenToHost(false)
			return
		default:
			r.pumpToHost() // the guest's last words
			if !r.closed {
				r.close(true)
			}
			return
		}
		// What comes after the look at the socket comes with an event of its own.
		if int(n) == available && !r.hostEnded {
			r.listenToHost(true)
			return
		}
		if moved += int(n); moved >= fairShare {
			r.NotifyEvent(waiter.WritableEvents)
			return
		}
	}
}

// endToGuest passes on that the host's side has sent all.
func (r *relay) endToGuest() {
	r.toGuestDone = true
	r.ep.Shutdown(tcpip.ShutdownWrite)
	if r.toHostDone {
		r.close(false)
		return
	}
	r.probeHost(r.loop.halfOpen)
}

// listenToHost says whether the loop wants to know of what the socket has
// received. When it does again, it is told of what is there already.
func (r *relay) listenToHost(on bool) {
	if r.deaf != on {
		return
	}
	events := uint32(hostEvents)
	if !on {
		events &^= unix.EPOLLIN | unix.EPOLLRDHUP
	}
	if r.loop.modify(r.fd, events) == nil {
		r.deaf = !on
	}
}

// hostWriter writes to a socket for tcpip.Endpoint.Read.
type hostWriter struct {
	fd    int
	errno unix.Errno // of the last Write
}

// errHost stands for hostWriter.errno or for a read that failed. Endpoints make
// an error of their own of it.
var errHost = errors.New("host socket")

func (w *hostWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, errno := linux.SendNonblock(w.fd, p[done:])
		if errno != 0 {
			w.errno = errno
			return done, errHost
		}
		done += n
	}
	return done, nil
}

// hostReader reads from a socket for tcpip.Endpoint.Write. It gives exactly
// left bytes, which the socket is known to hold.
type hostReader struct {
	fd   int
	left int
}

// Len implements tcpip.Payloader.
func (r *hostReader) Len() int { return r.left }

func (r *hostReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // asked in order to learn of the end
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	n, errno := linux.ReadNonblock(r.fd, p[:min(len(p), r.left)])
	if errno != 0 || n == 0 {
		return 0, errHost
	}
	r.left -= n
	return n, nil
}
