package tcp

import "time"

// Room is how many bytes may be sent now, at most MaxPayload: whole pieces of the
// peer's MSS, where there is room for one. Where it is 0, Room is told when there is some.
func (c *Conn) Room() int {
	n := c.room()
	if n == 0 {
		if c.state == established && !c.finQueued {
			c.waiting = true
			c.await()
		}
		return 0
	}
	n = min(n, MaxPayload)
	if mss := int(c.mss); n > mss {
		n -= n % mss
	}
	return n
}

// await has the peer asked for room where nothing is on its way, with whose
// acknowledgement it would tell of it.
func (c *Conn) await() {
	if c.una == c.nxt && c.persist == 0 {
		c.persist = c.now + c.rto
	}
}

// setWindow takes the peer's window.
func (c *Conn) setWindow(wnd uint32) {
	was := c.wnd
	if c.wnd = wnd; was == 0 && wnd > 0 && c.una != c.nxt {
		c.tries = 0
		c.allLost() // the peer has had no room for it
	}
}

// room is Room without its bounds.
func (c *Conn) room() int {
	if c.state != established || c.finQueued {
		return 0
	}
	onWay := c.nxt - c.una
	limit := min(c.wnd, c.flight)
	if onWay >= limit {
		return 0
	}
	n := limit - onWay
	// A small segment is not sent while others are on their way that make room for a
	// large one (RFC 9293, 3.8.6.2.1).
	if n < uint32(c.mss) && onWay > 0 {
		return 0
	}
	return int(n)
}

// Send sends a buffer, which it owns from here on, of at most Room bytes. Last says that
// it ends our half, as CloseWrite does.
func (c *Conn) Send(b *Buffer, last bool) {
	seq := c.nxt
	c.nxt += uint32(len(b.bytes))
	if last {
		c.end()
	}
	c.transmit(seq, b.bytes)
	// It stays until it is acknowledged, and its memory with it: of a little there may be
	// much, so that it is put together.
	if b.class > 0 && b.fits() {
		c.sent.push(b)
	} else {
		c.sent.append(b.bytes, c.o.Pool)
		c.o.Pool.Put(b)
	}
	c.onWay()
}

// CloseWrite ends our half, of a connection that is open.
func (c *Conn) CloseWrite() {
	if c.finQueued || c.state != established {
		return
	}
	seq := c.nxt
	c.end()
	c.transmit(seq, nil)
	c.onWay()
}

// end puts a FIN behind all.
func (c *Conn) end() {
	c.finQueued, c.finSeq = true, c.nxt
	c.nxt++
	c.waiting, c.persist = false, 0
}

// onWay notes the time of what was sent last.
func (c *Conn) onWay() {
	if c.timed == 0 && !c.recovering {
		c.timed, c.timedSeq = c.now, c.nxt
	}
	if c.resend == 0 {
		c.tries = 0
		c.resend = c.now + c.rto
	}
	c.awaitTail()
}

// transmit sends a segment, with the FIN where it is its turn.
func (c *Conn) transmit(seq uint32, payload []byte) {
	flags := uint8(0)
	if len(payload) > 0 {
		flags = PSH
	}
	if c.hasFIN(seq, payload) {
		flags |= FIN
	}
	c.say(c.header(seq, flags), payload)
}

// hasFIN says whether our end is right behind a payload.
func (c *Conn) hasFIN(seq uint32, payload []byte) bool {
	return c.finQueued && seq+uint32(len(payload)) == c.finSeq
}

// bare is the number of a segment that takes none: the next, but not beyond the peer's
// window, where nobody would look at it (tcp_acceptable_seq in Linux). The next is there
// where the peer has taken its window back, by more than what the scale cannot say, and
// behind an end that had no room.
func (c *Conn) bare() uint32 {
	edge := c.una + c.wnd
	beyond := int32(c.nxt - edge)
	if c.state == established && (beyond >= 1<<c.scale || beyond == 1 && c.finQueued) {
		return edge
	}
	return c.nxt
}

// say gives a segment to the wire.
func (c *Conn) say(h Header, payload []byte) {
	c.out = h
	c.o.Wire.Transmit(&c.out, payload)
}

// acknowledged takes an acknowledgement that is news.
func (c *Conn) acknowledged(ack uint32) {
	n := ack - c.una
	c.una = ack
	c.sent.discard(int(n), c.o.Pool) // a SYN or FIN has no byte there
	c.forgetHad()
	if c.finQueued && int32(ack-c.finSeq) > 0 {
		c.finAcked = true
	}
	switch {
	case c.timed != 0 && int32(ack-c.timedSeq) >= 0:
		c.measure(c.now - c.timed)
	case c.tries > 0 && c.stamps: // the echo says of which of several it is (RFC 7323, 4)
		c.measure(time.Duration(max(1, c.clock()-c.echo)) * time.Millisecond)
	}
	c.duplicates, c.tries = 0, 0
	switch {
	case c.recovering && int32(ack-c.recover) < 0:
		if c.flight < c.threshold {
			c.grow(n) // from one segment on, where all was lost
		}
		if c.sack {
			c.lostTo = c.recover // what came behind it the peer would have told of by now
		}
	case c.recovering:
		c.recovering = false
	default:
		c.grow(n)
	}
	c.resend = 0
	if c.una != c.nxt {
		c.resend = c.now + c.rto
	}
}

// grow lets more be on its way (RFC 5681, 3.1).
func (c *Conn) grow(acked uint32) {
	if c.flight >= c.threshold {
		acked = max(1, uint32(uint64(acked)*uint64(c.mss)/uint64(c.flight)))
	}
	c.flight = min(c.flight+acked, maxFlight)
}
