package tcp

import "time"

// Due is when Tick is to be called, at the latest; 0 is never. It may be called sooner.
func (c *Conn) Due() time.Duration {
	at := c.resend
	for _, t := range [...]time.Duration{c.tail, c.persist, c.silence()} {
		if t != 0 && (at == 0 || t < at) {
			at = t
		}
	}
	return at
}

// silence is when a peer that says nothing is probed. What is on its way does the same.
func (c *Conn) silence() time.Duration {
	if c.state != established || c.resend != 0 || c.persist != 0 || c.o.KeepAlive.Idle == 0 {
		return 0
	}
	at := c.heard + c.o.KeepAlive.Idle
	if c.probes > 0 {
		at = c.probed + c.o.KeepAlive.Interval
	}
	return at
}

// Tick does what the time asks for.
func (c *Conn) Tick(now time.Duration) Events {
	c.now = now
	switch {
	case c.state == closed:
	case c.resend != 0 && now >= c.resend:
		return c.repeat()
	case c.tail != 0 && now >= c.tail:
		c.probeTail()
	case c.persist != 0 && now >= c.persist:
		return c.askForRoom()
	case c.silence() != 0 && now >= c.silence():
		return c.keepAlive()
	}
	return 0
}

// repeat sends again what nobody acknowledges (RFC 6298, 5.4).
func (c *Conn) repeat() Events {
	if c.state == established && c.wnd == 0 && c.heard >= c.resend-c.rto {
		c.tries = 0 // a peer that has no room, and says so
	}
	if c.tries >= c.patience() {
		return c.giveUp()
	}
	c.tries++
	c.backOff()
	if c.state != established {
		c.sendSYN()
		return 0
	}
	c.congested()
	c.flight = uint32(c.mss)
	c.allLost()
	return 0
}

// patience is how often something is sent again.
func (c *Conn) patience() uint8 {
	switch {
	case c.state != established:
		return maxSYNs
	case c.orphaned:
		return maxOrphans
	}
	return maxRetransmits
}

// backOff doubles the time until the next.
func (c *Conn) backOff() { c.rto = min(2*c.rto, maxRTO) }

// askForRoom probes a peer that has no room (RFC 9293, 3.8.6.1). One that answers may go
// on having none.
func (c *Conn) askForRoom() Events {
	if c.heard >= c.probed {
		c.tries = 0
	}
	if c.tries >= c.patience() {
		return c.giveUp()
	}
	c.tries++
	c.persist = c.now + min(c.rto<<min(c.asked, 10), maxRTO)
	c.asked++
	c.probe()
	return 0
}

// keepAlive asks a peer that says nothing whether it is still there.
func (c *Conn) keepAlive() Events {
	if int(c.probes) >= c.o.KeepAlive.Count {
		return c.giveUp()
	}
	c.probes++
	c.probe()
	return 0
}

// probe sends a segment from before what the peer expects, which it answers.
func (c *Conn) probe() {
	c.probed = c.now
	h := c.header(c.una-1, 0)
	c.say(h, nil)
}

// giveUp closes a connection of which the peer is gone.
func (c *Conn) giveUp() Events {
	c.Abort()
	return TimedOut
}

// measure learns from the time that the peer has taken to acknowledge (RFC 6298, 2).
func (c *Conn) measure(rtt time.Duration) {
	c.timed = 0
	if c.srtt == 0 {
		c.srtt, c.rttvar = rtt, rtt/2
	} else {
		c.rttvar += ((c.srtt - rtt).Abs() - c.rttvar) / 4
		c.srtt += (rtt - c.srtt) / 8
	}
	c.rto = min(c.srtt+max(4*c.rttvar, minRTO), maxRTO)
}
