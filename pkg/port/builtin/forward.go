package builtin

import (
	"net/netip"
	"sync"

	"github.com/gatekit/gatekit/pkg/flows"
	"github.com/gatekit/gatekit/pkg/port"
)

// A forward owns nothing but its list of connections: its listeners and sockets are
// the loops', and each connection ends by itself. One that is removed is not listed
// any more, and lasts until its connections are over or cut.

// forward is a published port. Its status does not change, but for what statusOf
// adds to it.
type forward struct {
	status    port.Status
	listeners []*listener
	sockets   []*hostSocket
	lead      port.Lead // instead of both, at the gateway; else nil

	// The flows of all sockets, which belong to the exchange's loop.
	flows int
	ages  flowAges

	mu    sync.Mutex         // guards what is below
	conns map[*conn]struct{} // nil before the first
	over  chan struct{}      // closed with the last connection; nil before Remove

	detours detours
}

// newForward gives the bound sockets to a forward with an id of its own.
func (d *Driver) newForward(b bound) *forward {
	d.mu.Lock()
	d.lastID++
	fw := &forward{
		status: port.Status{ID: d.lastID, Spec: b.spec},
		lead:   b.lead,
		ages:   newFlowAges(ofForward),
	}
	d.mu.Unlock()
	for _, s := range b.sockets {
		if b.spec.Transport() == "tcp" {
			fw.listeners = append(fw.listeners, &listener{fd: s.fd, family: s.family, forward: fw})
		} else {
			fw.sockets = append(fw.sockets, &hostSocket{fd: s.fd, family: s.family, forward: fw})
		}
	}
	return fw
}

// wane returns what is closed when the connections of a forward without
// listeners are over; nil when they are.
func (fw *forward) wane() <-chan struct{} {
	if fw.lead != nil {
		return fw.lead.Stop()
	}
	fw.mu.Lock()
	defer fw.mu.Unlock()
	if len(fw.conns) == 0 {
		return nil
	}
	fw.over = make(chan struct{})
	return fw.over
}

// forget takes a connection off the list.
func (fw *forward) forget(c *conn) {
	fw.mu.Lock()
	defer fw.mu.Unlock()
	delete(fw.conns, c)
	if len(fw.conns) == 0 && fw.over != nil {
		close(fw.over)
	}
}

// cut resets all connections of the forward.
func (fw *forward) cut() {
	if fw.lead != nil {
		fw.lead.Cut()
	}
	fw.mu.Lock()
	conns := make([]*conn, 0, len(fw.conns))
	for c := range fw.conns {
		conns = append(conns, c)
	}
	fw.mu.Unlock()
	for _, c := range conns {
		c.cut()
	}
}

// place says whose flow it is, and which end is where.
func (fw *forward) place(f *flows.Flow, client, service netip.AddrPort) {
	f.Forward = fw.status.ID
	f.Direction, f.Child, f.Remote = flows.Forward, service, client
	if fw.status.Spec.Reverse {
		f.Direction, f.Child, f.Remote = flows.Reverse, client, service
	}
}
