package tcp

import (
	"math/rand/v2"
	"time"
)

// Conn is one end of a connection. Its zero value is closed. It belongs to one
// goroutine.
//
// Sequence numbers are compared by their difference (RFC 9293, 3.4).
//
//	          una        nxt      una+wnd             next      edge
//	-----------|----------|----------|---     -----------|---------|------
//	 the peer  | on its   | may be   |         has come  | may be  |
//	 has       | way      | sent     |         in order  | sent    |
//	           sent (queue)                    come (queue), fresh
type Conn struct {
	o     Options
	state state

	// Sending.
	una, nxt uint32
	wnd      uint32 // of the peer, in bytes from una
	wndSeq   uint32 // the segment that has said so
	mss      uint16
	scale    uint8 // of the peer's windows
	scales   bool  // the peer scales windows, its own and ours
	finQueued, finAcked,
	waiting bool // for room
	finSeq    uint32
	sent      queue  // from una on
	flight    uint32 // how much may be on its way (the congestion window)
	threshold uint32 // up to where flight grows fast (ssthresh)

	// What is lost of it (loss.go).
	had            []span // by the peer, which waits for what is before it
	duplicates     uint8  // acknowledgements that tell of a gap
	recovering     bool   // until recover is acknowledged
	recover        uint32
	lostTo, resent uint32
	tailed         bool // the last segment was sent again

	// Receiving.
	next, edge uint32
	ownScale   uint8
	sack       bool   // the peer takes SACK
	stamps     bool   // both tell of their clocks (RFC 7323)
	peerClock  uint32 // as the first segment has told it that is not acknowledged yet
	echo       uint32 // of our clock, in the last segment
	finCome    bool
	ackDue     due
	unacked    int    // bytes since the last acknowledgement
	come       queue  // up to next, but for fresh
	fresh      []byte // the last of it, in the memory of its segment
	later      []piece
	latest     uint32 // of what came last of it

	// Times, since any beginning. 0 is not set.
	now       time.Duration
	heard     time.Duration // from the peer
	rto, srtt time.Duration
	rttvar    time.Duration
	timed     time.Duration // when timedSeq was sent
	timedSeq  uint32
	resend    time.Duration // when what is on its way is sent again
	tail      time.Duration // when the last segment of it is
	persist   time.Duration // when the peer is asked for room
	probed    time.Duration // when the last probe went
	tries     uint8         // of what is on its way, or of the question for room
	asked     uint8         // for room, since there was some
	probes    uint8         // that nobody answers
	orphaned  bool

	challenged time.Duration // when what cannot be right was last answered

	out Header // the segment that is sent, which has its memory here
}

// due says whether an acknowledgement is owed.
type due uint8

const (
	notDue due = iota
	soonDue
	nowDue
)

// Accept begins a connection that the peer's SYN asks for. It says nothing until
// Answer.
func (c *Conn) Accept(o Options, s *Segment, now time.Duration) {
	c.begin(o, now)
	c.state = synReceived
	c.learn(s)
	c.next = s.Seq + 1
}

// Answer completes the peer's SYN.
func (c *Conn) Answer(now time.Duration) {
	c.now = now
	c.sendSYN()
	c.timed, c.timedSeq = now, c.nxt
}

// Open begins a connection, with a SYN of ours.
func (c *Conn) Open(o Options, now time.Duration) {
	c.begin(o, now)
	c.state = synSent
	c.sendSYN()
	c.timed, c.timedSeq = now, c.nxt
}

// Tell tells the time. It is to be called before what the owner does of itself (Send,
// CloseWrite, TooBig), unless an Input or a Tick has told it: they set timers.
func (c *Conn) Tell(now time.Duration) { c.now = now }

// begin sets what both ways have in common.
func (c *Conn) begin(o Options, now time.Duration) {
	*c = Conn{o: o, now: now, heard: now, rto: initialRTO}
	// What a connection before it has left behind is nowhere on the way, so that a
	// number that cannot be guessed is all that is asked for (RFC 6528).
	c.una = rand.Uint32()
	c.nxt = c.una + 1
	c.flight, c.threshold = initialFlight, maxFlight
	c.mss = defaultMSSIPv4
	if o.IPv6 {
		c.mss = defaultMSSIPv6
	}
	c.mss = min(c.mss, o.MSS)
	for o.Window>>c.ownScale > 0xffff {
		c.ownScale++
	}
	c.scales, c.sack, c.stamps = true, true, true
}

// learn takes what the peer's SYN offers.
func (c *Conn) learn(s *Segment) {
	o := s.offer()
	if o.mss != 0 {
		c.mss = min(max(o.mss, minMSS), c.o.MSS)
	}
	if c.scales = o.scale >= 0; c.scales {
		c.scale = uint8(o.scale)
	} else {
		c.ownScale = 0 // both or neither (RFC 7323, 2.2)
	}
	c.sack = o.sack
	if c.stamps = o.stamps; c.stamps {
		c.peerClock, c.echo = o.stamp, o.echo
		c.mss -= roomForStamps
	}
}

// clock is ours, in milliseconds of any beginning.
func (c *Conn) clock() uint32 { return uint32(c.now / time.Millisecond) }

// sendSYN sends a SYN, with an acknowledgement of the peer's where there is one. The
// answer to one of several is not timed (Karn's algorithm).
func (c *Conn) sendSYN() {
	h := Header{Seq: c.una, Flags: SYN, MSS: c.mss}
	o := offer{mss: c.o.MSS, scale: int8(c.ownScale), sack: c.sack, stamps: c.stamps, stamp: c.clock(), echo: c.peerClock}
	if c.state == synReceived {
		h.Ack, h.Flags = c.next, SYN|ACK
		if !c.scales {
			o.scale = -1
		}
	}
	// The window of a SYN is not scaled.
	window := min(c.o.Window, 0xffff)
	h.Window = uint16(window)
	c.edge = c.next + uint32(window)
	h.offer(o)
	c.timed, c.resend = 0, c.now+c.rto
	c.say(h, nil)
}

// IsClosed says whether the connection is no more, or never was.
func (c *Conn) IsClosed() bool { return c.state == closed }

// IsOpen says whether the handshake is complete.
func (c *Conn) IsOpen() bool { return c.state == established }

// HasAll says whether the peer has acknowledged all that was sent, the end of our half
// with it where that has ended.
func (c *Conn) HasAll() bool { return c.una == c.nxt }

// Unacknowledged is how many bytes were sent that the peer has not acknowledged.
func (c *Conn) Unacknowledged() int { return c.sent.size }

// Awaits says whether a sequence number is of what the peer has not acknowledged yet, as
// is that of the packet in each ICMP error to be believed (RFC 5927, 4.1).
func (c *Conn) Awaits(seq uint32) bool {
	return c.state != closed && int32(seq-c.una) >= 0 && int32(seq-c.nxt) < 0
}

// Ended says whether the peer has ended its half, and all of it was taken.
func (c *Conn) Ended() bool { return c.finCome && c.come.size == 0 && len(c.fresh) == 0 }

// SetIdle has a peer probed after a silence of idle.
func (c *Conn) SetIdle(idle time.Duration) { c.o.KeepAlive.Idle = idle }

// Orphan says that nobody is left behind our end: what is on its way is not sent again
// as often as otherwise.
func (c *Conn) Orphan() { c.orphaned = true }

// Abort resets the connection.
func (c *Conn) Abort() {
	switch c.state {
	case closed:
		return
	case established, synReceived:
		c.say(Header{Seq: c.bare(), Ack: c.next, Flags: RST | ACK, MSS: c.mss}, nil)
	}
	c.Drop()
}

// Drop gives the connection up without a word, and all of it but what has come in order,
// which may still be taken.
func (c *Conn) Drop() {
	c.state = closed
	c.sent.discard(c.sent.size, c.o.Pool)
	for _, p := range c.later {
		c.o.Pool.Put(p.buffer)
	}
	c.later, c.had = nil, nil
	c.ackDue, c.resend, c.tail, c.persist = notDue, 0, 0, 0
}

// Release gives up what has come, of a connection that is closed, or of which nobody
// takes anything any more.
func (c *Conn) Release() {
	c.come.discard(c.come.size, c.o.Pool)
	c.fresh = nil
}

// over closes the connection when both halves have come to their end.
func (c *Conn) over() Events {
	if !c.finAcked || !c.Ended() || c.state == closed {
		return 0
	}
	if c.ackDue != notDue {
		c.Acknowledge()
	}
	c.Drop()
	return Over
}
