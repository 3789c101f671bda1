package tcp

import (
	"encoding/binary"
	"slices"
)

// A loss is found in one of these ways, the quickest first. From then on, until all that
// was on its way is acknowledged (recover), what is lost goes again (mend): up to lostTo
// all that the peer has not told of, and that was not sent again since (resent).
//
//	found by                                         lost is
//	the peer has what was sent later (RFC 6675)      what was sent before
//	three acknowledgements of nothing, of a peer     the first segment
//	  without SACK (RFC 6582)
//	the last segment, sent again after a short       what the answer tells, as above;
//	  silence (RFC 8985, 7)                            and again, what was lost before
//	an acknowledgement of only a part of it,         the rest of it, or, of a peer
//	  while it is mended                               without SACK, the first segment
//	a long silence (RFC 6298), a packet that was     all
//	  too big, a window that was closed
//
// Nothing overtakes anything on this way, so that what is missing behind what has come
// is lost, and not late.

// maxSpans bounds what is remembered of what the peer has told of. What is not is sent
// again in vain.
const maxSpans = 64

// inputLoss takes what a segment tells of losses. Again says that it says nothing that
// the one before it did not say.
func (c *Conn) inputLoss(s *Segment, again bool) {
	if c.sack {
		again = c.inputSACK(s)
	}
	if again && !c.recovering {
		c.duplicate()
	}
	if c.recovering {
		c.mend()
	}
}

// inputSACK notes what the peer has of what is on its way (RFC 2018), and says whether
// that is news.
func (c *Conn) inputSACK(s *Segment) (news bool) {
	for b := s.option(optionSACK); len(b) >= sizeOfSACKBlock; b = b[sizeOfSACKBlock:] {
		p := span{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])}
		if int32(p.from-c.una) > 0 && int32(p.to-p.from) > 0 && int32(c.nxt-p.to) >= 0 {
			news = c.note(p) || news
		}
	}
	if news && c.recovering {
		c.lostTo = farther(c.lostTo, c.lastHad())
	}
	return news
}

// note adds to what the peer has, which is kept in order and without overlap. It says
// whether that is news.
func (c *Conn) note(p span) bool {
	at := 0
	for at < len(c.had) && int32(c.had[at].to-p.from) < 0 {
		at++
	}
	end := at
	for ; end < len(c.had) && int32(c.had[end].from-p.to) <= 0; end++ {
		had := c.had[end]
		if int32(p.from-had.from) >= 0 && int32(had.to-p.to) >= 0 {
			return false
		}
		if int32(had.from-p.from) < 0 {
			p.from = had.from
		}
		p.to = farther(p.to, had.to)
	}
	if at == end && len(c.had) >= maxSpans {
		return false
	}
	c.had = slices.Replace(c.had, at, end, p)
	return true
}

// farther is the later of two numbers.
func farther(a, b uint32) uint32 {
	if int32(a-b) > 0 {
		return a
	}
	return b
}

// lastHad is up to where the peer has told of anything.
func (c *Conn) lastHad() uint32 {
	if n := len(c.had); n > 0 {
		return c.had[n-1].to
	}
	return c.una
}

// forgetHad forgets what is acknowledged of what the peer has told of.
func (c *Conn) forgetHad() {
	for len(c.had) > 0 && int32(c.had[0].to-c.una) <= 0 {
		c.had = c.had[1:]
	}
	if len(c.had) == 0 {
		c.had = nil
	}
}

// duplicate takes news of a gap in what the peer has. It is taken for a loss when there
// is more of it than two segments (RFC 6675, 4), with the third (RFC 5681, 3.2), or
// where it answers a probe.
func (c *Conn) duplicate() {
	const enough = 3
	c.duplicates++
	had := uint32(0)
	for _, p := range c.had {
		had += p.to - p.from
	}
	if c.duplicates < enough && had <= 2*uint32(c.mss) && !c.tailed {
		return
	}
	c.congested()
	c.flight = c.threshold
	c.lost(c.lastHad())
}

// congested notes that there was no room on the way for what is on it.
func (c *Conn) congested() { c.threshold = max((c.nxt-c.una)/2, 2*uint32(c.mss)) }

// lost notes that what is on its way up to a number is lost, but for what the peer has
// told of.
func (c *Conn) lost(to uint32) {
	c.recovering, c.recover = true, c.nxt
	c.lostTo, c.resent = to, c.una
	c.timed = 0 // an acknowledgement may now be of either (Karn's algorithm)
}

// allLost is lost of all. A peer may have thrown away what it has told of (RFC 2018, 8).
func (c *Conn) allLost() {
	c.had = nil
	c.lost(c.nxt)
	c.mend()
}

// mend sends again what is lost and was not since, a flight at most.
func (c *Conn) mend() {
	if int32(c.lostTo-c.una) <= 0 {
		c.lostTo = c.una + 1 // the first, whatever it is
		if b := c.sent.front; b != nil {
			c.lostTo = c.una + uint32(len(b.bytes))
		}
	}
	mss := int(c.mss)
	left := max(mss, int(min(c.flight, c.wnd))) // of what may be on its way again
	for at, i := c.una, 0; int32(c.lostTo-at) > 0; i++ {
		to, next := c.lostTo, c.lostTo
		if i < len(c.had) {
			to, next = c.had[i].from, c.had[i].to
		}
		if again := min(int32(c.resent-at), int32(to-at)); again > 0 {
			left -= int(again)
			at += uint32(again)
		}
		for int32(to-at) > 0 {
			n := int(to - at)
			if n > left {
				n = left - left%mss
			}
			if n <= 0 {
				return
			}
			sent := c.sendAgain(at, n)
			left -= int(sent)
			at += sent
			c.resent = at
		}
		at = next
	}
}

// sendAgain sends what has a number once more, at most n bytes of it. It returns how
// many numbers went.
func (c *Conn) sendAgain(seq uint32, n int) uint32 {
	skip, b := int(seq-c.una), c.sent.front
	for b != nil && skip >= len(b.bytes) {
		skip -= len(b.bytes)
		b = b.next
	}
	var p []byte
	if b != nil { // else it is the FIN
		p = b.bytes[skip:]
		p = p[:min(n, len(p))]
	}
	c.transmit(seq, p)
	c.resend = c.now + c.rto
	c.awaitTail()
	return numbers(p, c.hasFIN(seq, p))
}

// awaitTail has the last segment sent again where the peer says nothing for longer than it
// takes to answer, but not twice for one answer. An answer to one segment alone a peer may
// delay. Without SACK it would tell nothing.
func (c *Conn) awaitTail() {
	c.tail = 0
	if !c.sack || c.srtt == 0 || c.tries > 0 || c.tailed || c.una == c.nxt {
		return
	}
	c.tail = c.now + 2*c.srtt + tailGrace
	if c.nxt-c.una <= uint32(c.mss) {
		c.tail += delayedACK
	}
}

// probeTail sends the last segment again; or, while a loss is mended, what is lost, which
// then was lost twice.
func (c *Conn) probeTail() {
	c.tailed, c.timed = true, 0
	if c.recovering {
		c.resent = c.una
		c.mend()
		return
	}
	n := 0
	if b := c.sent.back; b != nil { // else it is the FIN
		n = min(len(b.bytes), int(c.mss))
	}
	c.sendAgain(c.una+uint32(c.sent.size-n), n)
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
		c.allLost()
	}
}
