package builtin

import (
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

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
	flows    int
	ages     flowAges
	suspects suspects

	mu    sync.Mutex         // guards what is below
	conns map[*conn]struct{} // nil before the first
	over  chan struct{}      // closed with the last connection; nil before Remove

	detours detours
	strays  strays
}

// newForward returns a forward that holds nothing and has no id yet.
func newForward(spec port.Spec) *forward {
	return &forward{status: port.Status{Spec: spec}, ages: newFlowAges(ofForward)}
}

// hold gives the forward a socket that is bound, for one of the loops.
func (fw *forward) hold(fd int, family port.Families) {
	if fw.status.Spec.Transport() == "tcp" {
		fw.listeners = append(fw.listeners, &listener{fd: fd, family: family, forward: fw})
	} else {
		fw.sockets = append(fw.sockets, &hostSocket{fd: fd, family: family, forward: fw})
	}
}

// unbind frees what a forward holds that no loop has. A nil one holds nothing.
func (fw *forward) unbind() {
	if fw == nil {
		return
	}
	for _, l := range fw.listeners {
		unix.Close(l.fd)
	}
	for _, s := range fw.sockets {
		unix.Close(s.fd)
	}
	if fw.lead != nil {
		fw.lead.Cut()
	}
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
