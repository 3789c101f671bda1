package slirp

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/tcp"
)

// relay joins a TCP connection with the namespace, of which we are the other end, to a
// connected socket of the host. Bytes go from the frame that they came in into the
// socket, and from the socket into the memory that they are sent from; what waits is
// bounded by windows. A side that cannot take more is waited for, and in the meantime
// nothing is read from the other, so that its window closes.
//
//	guest                                     host
//	FIN       -> conn.Ended              ->   shutdown(SHUT_WR)
//	RST       -> tcp.Reset               ->   close with SO_LINGER 0: RST
//	FIN      <-  CloseWrite             <-    read: end of stream
//	RST      <-  Abort                  <-    any error
//
// The relay ends when both directions have, or with a reset. There is no limit on
// how long it is idle: keepalive probes find out, on both sides, whether the peer
// is still there.
//
// It belongs to the loop's goroutine, but for what is said not to change.
type relay struct {
	// These do not change.
	tcp      *tcpForwarder
	key      flowKey
	fd       int
	outbound bool      // the namespace opened the connection, so that the policy is for it
	local    bool      // the host's side is the DNS server
	hostIPv6 bool      // the family of the host's side, where it was dialled
	since    time.Time // when it began

	// dial is there while the host's side is being connected; the forwarder's mu is
	// held to change it. opening is there while the guest's is (inbound.go), and told
	// of the outcome.
	dial    *dial
	opening func(error)

	// lead is what an outbound one takes; nil for none.
	lead *lead

	// over, where not nil, is called when both sides are closed.
	over func()

	conn     tcp.Conn
	envelope envelope
	alarm    alarm
	orphaned int // its part of the forwarder's

	toHostDone, toGuestDone bool // the end of the stream was passed on
	guestGone               bool // has no more to say than is there
	closed                  bool // the host's side

	// hostBlocked says that the socket has no room, hostEnded that there may be its end
	// of stream or an error behind what it holds, so that reading that is not enough.
	hostBlocked, hostEnded bool
	// urgent says that the host has sent urgent data, at which reading stops though there
	// is more behind it.
	urgent bool
	// guestBlocked says that the guest has no room, deaf that the loop does not wait
	// for the socket to be readable.
	guestBlocked, deaf bool

	owes    bool // is in the forwarder's list of those
	large   bool // a large segment has come in this round
	isAgain bool // is in the forwarder's list of those

	probed time.Duration // when the namespace last probed us
}

// fairShare is how many bytes of one relay are brought from the host before the others
// of the loop get their turn.
const fairShare = 1 << 20

// hostEvents are the events of a host socket that a relay waits for.
const hostEvents = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

// newRelay returns a relay that owns nothing yet.
func (t *tcpForwarder) newRelay(key flowKey, mac macAddr) *relay {
	r := &relay{tcp: t, key: key, fd: -1, since: time.Now()}
	r.envelope = newEnvelope(t.writer, mac, key.remote, key.guest)
	return r
}

// Transmit implements tcp.Wire.
func (r *relay) Transmit(h *tcp.Header, payload []byte) { r.envelope.send(h, payload) }

// join goes to work, when the host's side is connected.
func (r *relay) join() {
	switch {
	case !r.lead.enter():
		r.lead = nil
		r.close(true)
	case r.tcp.loop.watch(r.fd, hostEvents, r) != nil:
		r.close(true)
	case r.opening == nil:
		r.conn.Answer(r.tcp.now)
	}
	r.settle()
}

// input takes a segment of the guest, in a frame that is in a buffer. It says whether it
// has kept that.
func (r *relay) input(s *tcp.Segment, frame *tcp.Buffer) (kept bool) {
	if r.dial != nil {
		r.inputDialling(s)
		return false
	}
	r.large = r.large || len(s.Payload) > smallSegment
	r.happened(r.conn.Input(s, r.tcp.now))
	kept = r.conn.Settle(frame)
	r.settle()
	return kept
}

// happened does what events of the guest's side ask for.
func (r *relay) happened(events tcp.Events) {
	if events == 0 {
		return
	}
	if r.opening != nil && events&(tcp.Opened|tcp.Gone) != 0 {
		r.opened(events)
	}
	switch {
	case r.closed:
		// What the guest sends now nobody takes. Where it has all, and is told of no end, it
		// may know.
		if events&tcp.Acknowledged != 0 || events&tcp.Arrived != 0 && !r.conn.Ended() {
			r.conn.Abort()
		}
		return
	case events&(tcp.Reset|tcp.TimedOut) != 0:
		r.guestGone = true
	}
	if !r.hostBlocked && (r.guestGone || events&tcp.Arrived != 0) {
		r.pumpToHost()
	}
	if events&(tcp.Room|tcp.Opened) != 0 && !r.closed {
		r.guestBlocked = false
		r.pumpToGuest()
	}
	if events&tcp.Probed != 0 && !r.closed {
		r.carryProbe()
	}
}

// hostEvent implements watcher.
func (r *relay) hostEvent(_ *loop, events uint32) {
	switch {
	case r.closed:
		return
	case r.dial != nil:
		r.dialled()
		return
	}
	r.conn.Tell(r.tcp.now)
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		r.hostEnded = true
	}
	r.urgent = r.urgent || events&unix.EPOLLPRI != 0
	if events&unix.EPOLLERR != 0 && r.toGuestDone && linux.SocketError(r.fd) != nil {
		r.close(r.conn.HasAll())
	}
	if events&unix.EPOLLOUT != 0 && r.hostBlocked && !r.closed {
		r.hostBlocked = false
		r.pumpToHost()
	}
	if events&^unix.EPOLLOUT != 0 && !r.closed {
		r.pumpToGuest()
	}
	r.settle()
}

// tick is called when a time has come.
func (r *relay) tick() {
	switch {
	case r.dial == nil:
		r.happened(r.conn.Tick(r.tcp.now))
	case r.tcp.now >= r.dial.due():
		r.endDial()
		return
	}
	r.settle()
}

// settle ends whatever was done with a relay: it sees to acknowledgements, to the next
// time, and to the end.
func (r *relay) settle() {
	t := r.tcp
	if r.dial != nil {
		t.alarms.add(r, r.dial.due())
		return
	}
	if r.conn.IsClosed() {
		if r.closed {
			t.forget(r)
		}
		return
	}
	switch soon, now := r.conn.Owed(); {
	case now:
		r.conn.Acknowledge()
	case soon && !r.owes:
		r.owes = true
		t.owing = append(t.owing, r)
	}
	if due := r.conn.Due(); due != 0 {
		t.alarms.add(r, due)
	}
}

// abort implements watcher: it resets both sides.
func (r *relay) abort() {
	switch {
	case r.dial != nil:
		r.conn.Abort()
		r.endDial()
	case r.opening != nil:
		r.fail(errStopped)
	case !r.closed:
		r.close(true)
	default:
		r.conn.Abort()
	}
	r.settle()
}

// close closes the host's side, with resets on both or after both directions have ended,
// when the guest's side goes on until the guest has all.
func (r *relay) close(reset bool) {
	r.closed = true
	r.tcp.loop.forget(r.fd)
	if reset {
		_ = linux.ResetOnClose(r.fd) // it fails on no TCP socket
	}
	if reset || !r.orphan() {
		r.conn.Abort()
	}
	linux.Close(r.fd)
	r.conn.Release()
	r.lead.leave()
	if r.over != nil {
		r.over()
	}
}

// orphan leaves the guest's side to itself, until the guest has all. It is false where too
// much is left like that already.
func (r *relay) orphan() bool {
	t, size := r.tcp, orphanSize+r.conn.Unacknowledged()
	if t.orphaned+size > maxOrphaned {
		t.crowded.add()
		t.crowded.tell()
		return false
	}
	t.orphaned += size
	r.orphaned = size
	r.conn.Orphan()
	return true
}

// A program that closes a connection and one that ends its half of it send the
// same FIN. Whether somebody is left to take what comes is told by the kernel on
// that side, when it is asked: after a close it forgets the connection, and
// answers a keepalive probe with a reset. Otherwise connections of which the other
// end never closes its half would stay for ever, in FIN_WAIT2 and CLOSE_WAIT.
//
// The other side is reset then, but not while what was sent to it before is on its
// way: it may be a slow reader, and a reset overtakes the stream.

// pumpToHost moves what has come from the guest into the socket.
func (r *relay) pumpToHost() {
	for !r.toHostDone {
		p := r.conn.Peek()
		if len(p) == 0 {
			break
		}
		n, errno := linux.SendNonblock(r.fd, p)
		switch errno {
		case 0:
			r.conn.Discard(n)
		case unix.EAGAIN:
			r.hostBlocked = true
			return // until EPOLLOUT
		default:
			r.lastWords()
			return
		}
	}
	switch {
	case r.guestGone && r.toHostDone:
		// Nobody reads any more, and the host's side would learn of it.
		unsent, _ := linux.Unsent(r.fd)
		r.close(unsent == 0)
	case r.guestGone:
		r.close(true)
	case r.conn.Ended() && !r.toHostDone:
		r.endToHost()
	}
}

// lastWords passes on what the host's side has said before it broke the connection: a
// server that refuses a large request answers and closes, while the request still comes.
// There is no more of it. What the guest has no room for is lost.
func (r *relay) lastWords() {
	for n := linux.Readable(r.fd); n > 0 && !r.toGuestDone; {
		room := r.conn.Room()
		if room == 0 {
			break
		}
		b := r.tcp.pool.Get(min(room, n))
		got, errno := linux.ReadNonblock(r.fd, b.Bytes())
		if errno != 0 || got == 0 {
			r.tcp.pool.Put(b)
			break
		}
		b.Cut(got)
		r.conn.Send(b, false)
		n -= got
	}
	r.close(true)
}

// endToHost passes on that the namespace has sent all.
func (r *relay) endToHost() {
	switch r.toHostDone = true; {
	case linux.EndStream(r.fd) != nil:
		r.lastWords()
	case r.toGuestDone:
		r.close(false)
	default:
		r.conn.SetIdle(r.tcp.halfOpen)
	}
}

// pumpToGuest moves what the socket has received to the guest.
func (r *relay) pumpToGuest() {
	if r.opening != nil || r.closed {
		return
	}
	for moved := 0; !r.toGuestDone; {
		room := r.conn.Room()
		if room == 0 {
			// What comes from the host until then is of no interest, and would wake us
			// for every segment.
			if r.guestBlocked {
				r.listenToHost(false)
			}
			r.guestBlocked = true
			return // until Room
		}
		b := r.tcp.pool.Get(room)
		n, errno := linux.ReadNonblock(r.fd, b.Bytes())
		if errno != 0 || n == 0 {
			r.tcp.pool.Put(b)
			r.nothingFromHost(errno)
			return
		}
		b.Cut(n)
		drained := n < room && !r.urgent
		last := drained && r.isHostAtEnd()
		r.conn.Send(b, last)
		if last {
			r.endToGuest()
			return
		}
		// What comes after the look at the socket comes with an event of its own.
		if drained && !r.hostEnded {
			r.listenToHost(true)
			return
		}
		if moved += n; moved >= fairShare && !r.isAgain {
			r.isAgain = true
			r.tcp.again = append(r.tcp.again, r)
			return
		}
	}
}

// nothingFromHost is called when there is nothing to read, for a while or for ever.
func (r *relay) nothingFromHost(errno unix.Errno) {
	switch errno {
	case unix.EAGAIN:
		r.hostEnded = false
		r.listenToHost(true)
	case 0:
		r.conn.CloseWrite()
		r.endToGuest()
	default:
		r.close(r.conn.HasAll())
	}
}

// isHostAtEnd says whether the host's side has sent all, where it may have.
func (r *relay) isHostAtEnd() bool {
	if !r.hostEnded {
		return false
	}
	n, errno := linux.PeekNonblock(r.fd)
	r.hostEnded = errno != unix.EAGAIN
	return n == 0 && errno == 0
}

// endToGuest notes that the host's side has sent all, and the guest was told.
func (r *relay) endToGuest() {
	r.toGuestDone = true
	if r.toHostDone {
		r.close(false)
		return
	}
	r.probeHost(r.tcp.halfOpen)
}

// listenToHost says whether the loop wants to know of what the socket has
// received. When it does again, it is told of what is there already.
func (r *relay) listenToHost(on bool) {
	if r.deaf != on {
		return
	}
	events := uint32(hostEvents)
	if !on {
		events &^= unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP
	}
	if r.tcp.loop.modify(r.fd, events) == nil {
		r.deaf = !on
	}
}
