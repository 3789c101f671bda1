package dhcp

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// maxLeases caps the addresses that a pool gives out, however large the network is.
const maxLeases = 1024

// pool holds the addresses of a network from the one after the child's on. An
// address stays with its client as long as there are others: after the end of a
// lease, too, it is found again.
//
//	          offer           claim
//	unused --------> offered -------> leased
//	                   |                |  release, end of its time
//	                   |  another's     v
//	                   +-- offer,  <-- over
//	                       claim
//
// An offer binds nobody but in the order in which addresses are given out: who
// claims an address first has it. So a storm of clients that never claim theirs
// keeps no other out.
type pool struct {
	first netip.Addr
	size  int
	next  int // the first index that was never offered

	slots   map[int]*slot // by index, from first on
	clients map[string]int
}

// slot is an address that is not unused.
type slot struct {
	client string // empty for one that was declined
	leased bool   // or declined; false is offered
	until  time.Time
}

// free says whether others may have the address.
func (s *slot) free(now time.Time) bool { return !s.leased || !now.Before(s.until) }

// init lays the pool out in a network. The last address of an IPv4 network is its
// broadcast.
func (p *pool) init(n Network) {
	if !n.Prefix.IsValid() {
		return
	}
	p.first = n.Child.Next()
	last := n.Prefix.Addr().AsSlice()
	for bit := n.Prefix.Bits(); bit < len(last)*8; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	if len(last) == 4 {
		last[3]--
	}
	end, _ := netip.AddrFromSlice(last)
	p.size = maxLeases
	if i, ok := p.distance(end); ok {
		p.size = min(p.size, i+1)
	}
	p.slots, p.clients = map[int]*slot{}, map[string]int{}
}

// distance is how many addresses a comes after the first. It is false for one that
// comes before it, or is so far away that it matters to no pool.
func (p *pool) distance(a netip.Addr) (int, bool) {
	if !p.first.IsValid() || a.BitLen() != p.first.BitLen() || a.Less(p.first) {
		return 0, false
	}
	x, y := p.first.AsSlice(), a.AsSlice()
	high := len(x) - 4
	if string(x[:high]) != string(y[:high]) {
		return 0, false
	}
	d := binary.BigEndian.Uint32(y[high:]) - binary.BigEndian.Uint32(x[high:])
	return int(min(d, 1<<30)), true
}

// index is the place of an address, if it is one of the pool.
func (p *pool) index(a netip.Addr) (int, bool) {
	i, ok := p.distance(a)
	return i, ok && i < p.size
}

// address is the inverse of index.
func (p *pool) address(i int) netip.Addr {
	b := p.first.AsSlice()
	low := b[len(b)-4:]
	binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)+uint32(i))
	a, _ := netip.AddrFromSlice(b)
	return a
}

// offer finds an address for a client: its own, else the one that it wants, else
// another. It is false when all are leased.
func (p *pool) offer(client string, wanted netip.Addr, now time.Time) (netip.Addr, bool) {
	if i, ok := p.clients[client]; ok {
		if s := p.slots[i]; s.free(now) {
			s.leased, s.until = false, now.Add(offerTime)
		}
		return p.address(i), true
	}
	i, ok := p.index(wanted)
	if s := p.slots[i]; !ok || s != nil && !(s.leased && s.free(now)) {
		if i, ok = p.pick(now); !ok {
			return netip.Addr{}, false
		}
	}
	p.put(i, &slot{client: client, until: now.Add(offerTime)})
	return p.address(i), true
}

// pick finds an address for somebody new: an unused one, else the one whose lease or
// offer is over for longest, or will be first among the offers.
func (p *pool) pick(now time.Time) (int, bool) {
	for ; p.next < p.size; p.next++ {
		if p.slots[p.next] == nil {
			return p.next, true
		}
	}
	best := -1
	for i, s := range p.slots {
		if s.free(now) && (best < 0 || s.until.Before(p.slots[best].until)) {
			best = i
		}
	}
	return best, best >= 0
}

// put gives an address to a client, which gives up another one for it.
func (p *pool) put(i int, s *slot) {
	if old := p.slots[i]; old != nil {
		delete(p.clients, old.client)
	}
	if before, ok := p.clients[s.client]; ok && before != i {
		delete(p.slots, before)
		p.next = min(p.next, before)
	}
	p.slots[i] = s
	if s.client != "" {
		p.clients[s.client] = i
	}
}

// claim leases an address to a client, if it is not another's.
func (p *pool) claim(client string, a netip.Addr, now time.Time, d time.Duration) bool {
	i, ok := p.index(a)
	if !ok {
		return false
	}
	if s := p.slots[i]; s != nil && s.client != client && !s.free(now) {
		return false
	}
	p.put(i, &slot{client: client, leased: true, until: now.Add(d)})
	return true
}

// release ends the lease of an address, if the client has it.
func (p *pool) release(client string, a netip.Addr, now time.Time) bool {
	i, ok := p.index(a)
	if !ok || p.slots[i] == nil || p.slots[i].client != client {
		return false
	}
	p.slots[i].until = now
	return true
}

// decline takes an address of the client out of use for a while.
func (p *pool) decline(client string, a netip.Addr, now time.Time) bool {
	if !p.release(client, a, now) {
		return false
	}
	i := p.clients[client]
	p.put(i, &slot{leased: true, until: now.Add(declineTime)})
	return true
}
