package builtin

import (
	"net/netip"
	"slices"

	"github.com/gatekit/gatekit/internal/linux"
)

// A flow in its client's name (preserve.go) has no socket in the namespace: the
// Opener takes its datagrams, and gives the answers to whom they are for, on a
// goroutine of its own and without the exchange's loop. The loop looks now and
// then whether there were some (hear), to know how old a flow is.

// openKept has f opened in its client's name, where that can be.
func (x *exchange) openKept(f *flow) bool {
	o := x.driver.opts.Opener
	peer := f.arrival.Peer
	if o == nil || f.socket.forward.status.Spec.Reverse || x.driver.hosts.has(peer.Addr) {
		return false
	}
	f.stranger = true
	if f.plain || peer.Scope != 0 || f.socket.forward.detours.has(peer.Addr) || !o.Keeps(peer.Addr, f.targets[0].Addr()) {
		return false
	}
	kept, err := o.OpenDatagrams(netip.AddrPortFrom(peer.Addr, peer.Port), f.targets[0], func(payload []byte) {
		x.fromKept(f, payload)
	}, func(payload []byte) {
		payload = slices.Clone(payload)
		x.loop.post(func() { x.refused(f, payload) })
	})
	if err != nil {
		return false // such a flow is there, by another forward
	}
	f.kept = kept
	return true
}

// toKept sends datagrams of the batch to f's service, from the first to last-1 or until f
// turns to the fast path, and returns the index of the next.
func (x *exchange) toKept(f *flow, first, last int) (next int) {
	for next = first; next < last && f.kept != nil; next++ {
		if data := x.batch.Data(next); x.mayTry(f, data) {
			x.try(f, data)
		} else {
			f.kept.Send(data)
		}
	}
	return next
}

// fromKept sends what the service has sent to f's client. Any goroutine calls it,
// so it uses what does not change of f, and heard.
func (x *exchange) fromKept(f *flow, payload []byte) {
	s := f.socket
	s.use.RLock() // over a call that does not wait
	defer s.use.RUnlock()
	if s.gone {
		return
	}
	f.heard.Store(true)
	if linux.AnswerNonblock(s.fd, payload, f.arrival) != 0 {
		x.driver.count.dropped.Add(1)
	}
}

// refused turns to the fast path, and then to the next address where there may be a
// service, with the datagram that has found none; nil is one that is not known.
func (x *exchange) refused(f *flow, payload []byte) {
	f.hear()
	if !f.closed && f.kept != nil && x.turn(f) && payload != nil {
		x.sendOne(f, payload)
	}
}

// hear notes that f's service has answered, and says whether it has since the last
// time.
func (f *flow) hear() bool {
	heard := f.heard.Swap(false)
	f.answered = f.answered || heard
	return heard
}
