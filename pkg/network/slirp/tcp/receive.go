package tcp

import (
	"slices"
	"time"
)

// piece is what has come before its turn.
type piece struct {
	seq    uint32
	buffer *Buffer
	fin    bool
}

// end is where the next begins. The end of the peer's half has a number of its own.
func (p *piece) end() uint32 {
	end := p.seq + uint32(len(p.buffer.bytes))
	if p.fin {
		end++
	}
	return end
}

// maxPieces bounds what waits for its turn, beside its memory (isFull).
const maxPieces = 64

// Input takes a segment of the peer. Its payload has to stay as it is until Settle,
// which is called after each Input.
func (c *Conn) Input(s *Segment, now time.Duration) Events {
	c.now, c.heard = now, now
	c.probes = 0
	switch c.state {
	case closed:
		return 0
	case synSent:
		return c.inputSYN(s)
	}
	// The end of the peer's half may have come from one beyond the edge.
	offset, window := int32(s.Seq-c.next), uint32(max(0, int32(c.edge-c.next)))
	if s.Flags&SYN != 0 {
		// The same again, of which the answer was lost; or a connection that the peer
		// has forgotten, which is to tell us so (RFC 5961, 4).
		if c.state == synReceived && s.Seq == c.next-1 && s.Opens() {
			c.sendSYN()
		} else {
			c.challenge()
		}
		return 0
	}
	if !c.acceptable(offset, s.length(), window) {
		switch {
		case s.Flags&RST != 0:
			return 0
		case s.length() > 0:
			c.ackDue = nowDue // what comes twice has lost its acknowledgement
		default:
			c.challenge()
		}
		if offset == -1 && len(s.Payload) <= 1 && s.Flags&FIN == 0 && c.state == established {
			return Probed
		}
		return 0
	}
	if c.stamps {
		if stamp, echo, ok := s.stamp(); ok {
			c.echo = echo
			if int(offset)+c.unacked <= 0 { // RFC 7323, 4.3
				c.peerClock = stamp
			}
		}
	}
	switch {
	case s.Flags&RST != 0:
		if offset != 0 {
			c.challenge() // who knows where we are may repeat it (RFC 5961, 3)
			return 0
		}
		c.Drop()
		return Reset
	case s.Flags&ACK == 0:
		return 0
	}
	events, ok := c.inputACK(s)
	if !ok {
		return events
	}
	return events | c.inputData(s, offset, window) | c.over()
}

// acceptable says whether a part of a segment is within the window (RFC 9293, 3.10.7.4).
// One that is just behind it may still acknowledge: it is of a peer that has sent all it
// may (tcp_sequence in Linux).
func (c *Conn) acceptable(offset int32, length, window uint32) bool {
	if offset >= 0 {
		return uint32(offset) <= window
	}
	return offset+int32(length) > 0
}

// challenge has a segment that cannot be right told where we are, but seldom: two ends
// that have lost each other would tell each other for ever (RFC 5961, 7).
func (c *Conn) challenge() {
	if c.challenged == 0 || c.now-c.challenged >= challengeInterval {
		c.challenged, c.ackDue = c.now, nowDue
	}
}

// inputSYN takes the answer to our SYN.
func (c *Conn) inputSYN(s *Segment) Events {
	acks := s.Flags&ACK != 0
	if acks && s.Ack != c.nxt {
		if h, ok := Refusal(s); ok {
			c.say(h, nil)
		}
		return 0
	}
	switch {
	case s.Flags&RST != 0:
		if !acks {
			return 0
		}
		c.Drop()
		return Reset
	case s.Flags&SYN == 0:
		return 0
	}
	c.learn(s)
	c.next = s.Seq + 1
	c.wnd, c.wndSeq = uint32(s.Window), s.Seq
	if !acks { // both have asked at once
		c.state = synReceived
		c.sendSYN()
		return 0
	}
	c.state = established
	c.edge = c.next + uint32(min(c.o.Window, 0xffff))
	c.acknowledged(s.Ack)
	c.ackDue = nowDue
	return Opened
}

// inputACK takes what a segment acknowledges, and the peer's window. It is false where
// the rest of the segment is not to be looked at.
func (c *Conn) inputACK(s *Segment) (events Events, ok bool) {
	advance := int32(s.Ack - c.una)
	if c.state == synReceived {
		if s.Ack != c.nxt {
			if h, ok := Refusal(s); ok {
				c.say(h, nil)
			}
			return 0, false
		}
		c.state = established
		events = Opened
	}
	wnd := uint32(s.Window) << c.scale
	switch {
	case int32(s.Ack-c.nxt) > 0 || advance < -maxFlight:
		c.challenge() // it is of what was never sent, or older than any may be (RFC 5961, 5)
		return events, false
	case advance < 0:
		return events, true // what it says of the window is old, too
	case advance > 0:
		c.acknowledged(s.Ack)
		if c.HasAll() {
			events |= Acknowledged
		}
	}
	again := advance == 0 && len(s.Payload) == 0 && s.Flags&FIN == 0 && wnd == c.wnd
	// A window counts from what is acknowledged with it, so that news of that is news of
	// the window also in a segment that comes late.
	if advance > 0 || int32(s.Seq-c.wndSeq) >= 0 {
		c.wndSeq = s.Seq
		c.setWindow(wnd)
	}
	if c.una != c.nxt {
		c.inputLoss(s, again)
	}
	if advance > 0 {
		c.tailed = false
		c.awaitTail()
	}
	if !c.waiting {
		return events, true
	}
	if c.room() > 0 {
		c.waiting, c.persist, c.asked, c.tries = false, 0, 0, 0
		return events | Room, true
	}
	c.await()
	return events, true
}

// inputData takes the bytes of an acceptable segment, and the end of the peer's half.
func (c *Conn) inputData(s *Segment, offset int32, window uint32) Events {
	p, fin := s.Payload, s.Flags&FIN != 0
	if len(p) == 0 && !fin {
		return 0
	}
	if offset < 0 {
		p = p[min(int(-offset), len(p)):]
		offset = 0
		c.ackDue = nowDue // a part came twice, so the peer has missed something
	}
	if room := int(window) - int(offset); len(p) > room {
		p, fin = p[:max(room, 0)], false
		c.ackDue = nowDue
	}
	if c.finCome || len(p) == 0 && !fin {
		c.ackDue = nowDue
		return 0
	}
	if offset > 0 {
		c.keep(c.next+uint32(offset), p, fin)
		c.ackDue = nowDue
		return 0
	}
	c.fresh = p
	c.advance(len(p), fin)
	if len(c.later) > 0 {
		c.join()
	}
	return Arrived
}

// advance moves on by what has come in order.
func (c *Conn) advance(n int, fin bool) {
	c.next += uint32(n)
	c.unacked += n
	if fin {
		c.next++
		c.finCome = true
	}
	c.ackDue = max(c.ackDue, soonDue)
}

// keep keeps what is not in order yet, by its sequence number. What of it is there
// already, the peer sends again in vain.
func (c *Conn) keep(seq uint32, p []byte, fin bool) {
	c.latest = seq
	at := 0
	for at < len(c.later) && int32(c.later[at].seq-seq) <= 0 {
		at++
	}
	if at > 0 {
		before := &c.later[at-1]
		held, n := before.buffer.bytes, len(before.buffer.bytes)
		switch end := before.end(); {
		case int32(end-seq) >= int32(numbers(p, fin)):
			return
		case end == seq && !before.fin && cap(held)-n >= len(p):
			before.buffer.bytes, before.fin = append(held, p...), fin
			return
		}
	}
	if c.isFull() {
		return
	}
	b := c.o.Pool.Get(len(p))
	copy(b.bytes, p)
	c.later = slices.Insert(c.later, at, piece{seq, b, fin})
}

// numbers are how many sequence numbers bytes take, with the end of a half where it is there.
func numbers(p []byte, fin bool) uint32 {
	n := uint32(len(p))
	if fin {
		n++
	}
	return n
}

// isFull says whether nothing more may be kept that is not in order. Its memory counts,
// not its bytes, of which a buffer may have few.
func (c *Conn) isFull() bool {
	memory := 0
	for _, p := range c.later {
		memory += len(p.buffer.room)
	}
	return len(c.later) >= maxPieces || memory >= max(2*c.o.Window, sizes[len(sizes)-1])
}

// join puts what waited for its turn behind what is in order now.
func (c *Conn) join() {
	c.settle()
	for len(c.later) > 0 {
		p := c.later[0]
		behind := int32(c.next - p.seq)
		if behind < 0 {
			break
		}
		c.later = c.later[1:]
		if int32(p.end()-c.next) > 0 && !c.finCome {
			rest := p.buffer.bytes[behind:]
			c.come.append(rest, c.o.Pool)
			c.advance(len(rest), p.fin)
		}
		c.o.Pool.Put(p.buffer)
	}
	if len(c.later) == 0 {
		c.later = nil
	}
	c.ackDue = nowDue // the peer waits to hear that the gap is filled (RFC 5681, 4.2)
}

// Peek returns bytes that have come and were not taken yet, none where there are no
// more. They are valid until the next call.
func (c *Conn) Peek() []byte {
	if c.come.front != nil {
		return c.come.front.bytes
	}
	return c.fresh
}

// Discard takes the first n bytes of Peek. Over is told where they were the last.
func (c *Conn) Discard(n int) Events {
	if c.come.front != nil {
		c.come.discard(n, c.o.Pool)
	} else {
		c.fresh = c.fresh[n:]
	}
	if n > 0 && c.state == established && !c.finCome {
		// The peer is told of room when there is enough of it to be worth a segment
		// (RFC 9293, 3.8.6.2.2).
		told, is := int(c.edge-c.next), c.free()
		if told < c.o.Window/4 && is-told >= min(c.o.Window/2, 2*int(c.o.MSS)) && told < is/2 {
			c.ackDue = nowDue
		}
	}
	return c.over()
}

// Settle ends an Input. What of the segment was not taken is kept: a small part as a
// copy, else the buffer that the segment is in, frame. It says whether it has kept that.
func (c *Conn) Settle(frame *Buffer) (kept bool) {
	if len(c.fresh) == 0 {
		return false
	}
	if frame == nil || len(c.fresh) <= len(frame.room)/2 {
		c.settle()
		return false
	}
	frame.bytes, c.fresh = c.fresh, nil
	c.come.push(frame)
	return true
}

// settle keeps a copy of what is fresh.
func (c *Conn) settle() {
	if len(c.fresh) > 0 {
		c.come.append(c.fresh, c.o.Pool)
		c.fresh = nil
	}
}

// free is how many more bytes may come.
func (c *Conn) free() int { return max(0, c.o.Window-c.come.size-len(c.fresh)) }

// Owed says whether an acknowledgement is owed: at once, or as soon as it is clear that
// nothing is sent that has it with it (RFC 9293, 3.8.6.3).
func (c *Conn) Owed() (soon, now bool) {
	return c.ackDue != notDue, c.ackDue == nowDue || c.unacked >= c.o.Window/4
}

// Acknowledge sends an acknowledgement and nothing else.
func (c *Conn) Acknowledge() {
	if c.state == synReceived || c.state == established {
		c.say(c.header(c.bare(), 0), nil)
	}
}

// header is that of the next segment, which acknowledges all that has come.
func (c *Conn) header(seq uint32, flags uint8) Header {
	h := Header{Seq: seq, Ack: c.next, Flags: flags | ACK, MSS: c.mss}
	if c.stamps {
		h.addStamps(c.clock(), c.peerClock)
	}
	free := c.free()
	if free < min(c.o.Window/2, int(c.o.MSS)) {
		free = max(0, int(int32(c.edge-c.next))) // no slivers (RFC 9293, 3.8.6.2.2)
	}
	window := min(free>>c.ownScale, 0xffff)
	h.Window = uint16(window)
	// What was offered is never taken back, as what comes of it takes its own room: but for
	// what the scale cannot say.
	if edge := c.next + uint32(window)<<c.ownScale; int32(edge-c.edge) > 0 {
		c.edge = edge
	}
	if len(c.later) > 0 && c.sack {
		before := h.size
		c.addBlocks(&h)
		h.MSS -= uint16(h.size - before) // the options are a part of the packet (RFC 6691)
	}
	c.ackDue, c.unacked = notDue, 0
	return h
}

// addBlocks tells of what has come before its turn (RFC 2018): what came last, as the
// peer knows of it by nothing else, then the rest from the front on.
func (c *Conn) addBlocks(h *Header) {
	most := maxSACKBlocks
	if c.stamps {
		most-- // which take its room
	}
	var all [maxPieces]span
	blocks := all[:0]
	for _, p := range c.later {
		b := span{p.seq, p.end()}
		if n := len(blocks); n > 0 && int32(b.from-blocks[n-1].to) <= 0 {
			blocks[n-1].grow(b)
			continue
		}
		blocks = append(blocks, b)
	}
	for i, b := range blocks {
		if b.holds(c.latest) {
			copy(blocks[1:i+1], blocks)
			blocks[0] = b
			break
		}
	}
	h.addSACK(blocks[:min(most, len(blocks))])
}
