package builtin

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gatekit/gatekit/pkg/port"
)

// A firewall inside that drops what comes in a client's name says nothing, and neither does
// many a service of UDP. The Opener can tell of a datagram that was dropped (port.Fate),
// for a price, so it is asked about the first ones of each flow that has had no answer:
//
//	first datagram ---> dropped: noted of the client, and held
//	                       |
//	one of its next,       +--> passed: the note is taken back, what was held is lost
//	a while after that,    |
//	also of another flow   +--> dropped: the client takes the fast path for a minute, and
//	                            this flow at once, with what was held
//
// Two drops, and a while between them, so that a stray one does not decide, nor a moment in
// which the Opener is wrong. Where the fate is not known nothing changes. A service that is
// merely silent is never suspected, as nothing is dropped on the way to it.
//
// Only what was seen to be dropped is held, so that nothing comes twice.

// Limits of trying.
const (
	tryPause      = 20 * time.Millisecond // between two of a flow, and two that decide
	maxTries      = 16                    // of a flow
	maxTriesAtAll = 50                    // in a second, of all flows
	largestTry    = 2048                  // bytes, since it may be held
)

// suspects are the clients of a forward of whom a datagram was dropped, and when the
// first one was.
type suspects map[netip.Addr]time.Time

// mayTry says whether the Opener is to be asked what becomes of a datagram of f, which
// is open in its client's name.
func (x *exchange) mayTry(f *flow, data []byte) bool {
	if f.answered || f.tries >= maxTries || len(data) > largestTry || x.loop.now.Sub(f.tried) < tryPause {
		return false
	}
	if x.loop.now.Sub(x.counted) >= time.Second {
		x.counted, x.tries = x.loop.now, 0
	}
	return x.tries < maxTriesAtAll
}

// try sends a datagram to f's service and draws the conclusions.
func (x *exchange) try(f *flow, data []byte) {
	f.tried = x.loop.now
	f.tries++
	x.tries++
	client, fw := f.arrival.Peer.Addr, f.socket.forward
	switch f.kept.Try(data) {
	case port.FatePassed:
		delete(fw.suspects, client)
		x.driver.count.dropped.Add(int64(len(f.pending)))
		f.pending = nil
	case port.FateDropped:
		f.pending = append(f.pending, slices.Clone(data))
		if fw.suspect(client, x.loop.now) {
			x.turnClient(f)
		}
	}
}

// suspect notes that a datagram of a client was dropped, and says whether that is enough.
func (fw *forward) suspect(client netip.Addr, now time.Time) bool {
	since, noted := fw.suspects[client]
	switch age := now.Sub(since); {
	case noted && age < tryPause:
		return false
	case noted && age < detourSpan:
		delete(fw.suspects, client)
		return true
	}
	if fw.suspects == nil || len(fw.suspects) >= maxDetours {
		fw.suspects = suspects{}
	}
	fw.suspects[client] = now
	return false
}

// turnClient has those flows of f's client take the fast path of which something is held,
// f among them, and all that are new for a while.
func (x *exchange) turnClient(f *flow) {
	client, s := f.arrival.Peer.Addr, f.socket
	s.forward.detours.add(client)
	x.driver.log.warn("the namespace drops what comes from the client's address; the service sees the loopback's",
		"forward", s.forward.status.ID, "spec", s.forward.status.Spec, "client", client)
	for _, f := range s.flows {
		if f.arrival.Peer.Addr == client && f.kept != nil && len(f.pending) > 0 {
			f.hear()
			x.turn(f)
		}
	}
}
