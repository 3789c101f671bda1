package tcp

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
		c.again() // the peer has had no room for it
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
	c.transmit(seq, b.bytes, PSH)
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
	c.transmit(seq, nil, 0)
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
}

// transmit sends a segment, with the FIN where it is its turn.
func (c *Conn) transmit(seq uint32, payload []byte, flags uint8) {
	if c.finQueued && seq+uint32(len(payload)) == c.finSeq {
		flags |= FIN
	}
	h := c.header(seq, flags)
	c.say(h, payload)
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
	c.duplicates, c.tries = 0, 0
	c.sent.discard(int(n), c.o.Pool) // a SYN or FIN has no byte there
	if c.finQueued && int32(ack-c.finSeq) > 0 {
		c.finAcked = true
	}
	if c.timed != 0 && int32(ack-c.timedSeq) >= 0 {
		c.measure()
	}
	switch {
	case c.recovering && int32(ack-c.recover) < 0:
		if c.flight < c.threshold {
			c.grow(n) // from one segment on, where all was lost
		}
		c.again() // the next that was lost (RFC 6582, 3.2)
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

// duplicate takes an acknowledgement of nothing, of which three tell of a loss (RFC
// 5681, 3.2).
func (c *Conn) duplicate() {
	const enough = 3
	if c.recovering {
		return
	}
	if c.duplicates++; c.duplicates < enough {
		return
	}
	c.lost()
	c.flight = c.threshold
	c.again()
}

// lost notes that something of what is on its way was lost.
func (c *Conn) lost() {
	c.threshold = max((c.nxt-c.una)/2, 2*uint32(c.mss))
	c.recovering, c.recover = true, c.nxt
	c.timed = 0 // an acknowledgement may now be of either (Karn's algorithm)
}

// again sends the first of what is on its way once more.
func (c *Conn) again() {
	switch {
	case c.state == synSent || c.state == synReceived:
		c.sendSYN()
		return
	case c.sent.front != nil:
		b := c.sent.front.bytes
		b = b[:min(len(b), max(int(c.flight), int(c.mss)))]
		c.transmit(c.una, b, PSH)
	default:
		c.transmit(c.una, nil, 0) // the FIN
	}
	c.resend = c.now + c.rto
}

// TooBig has what is sent cut into pieces that fit into packets of mtu bytes, because
// there is a narrower link on the way, and what is on its way sent again. seq is that of
// the packet that did not fit.
func (c *Conn) TooBig(seq uint32, mtu int) {
	if c.state != established || !c.Awaits(seq) {
		return
	}
	headers := 20 + HeaderSize
	if c.o.IPv6 {
		headers += 20
	}
	if c.stamps {
		headers += roomForStamps
	}
	if mss := max(mtu-headers, minMSS); mss < int(c.mss) {
		c.mss = uint16(mss)
		c.recovering, c.recover, c.timed = true, c.nxt, 0
		c.again()
	}
}
