package slirp

import (
	"net/netip"

	"github.com/gatekit/gatekit/pkg/flows"
)

// The flows of the engine, for who asks what the namespace speaks to. It costs
// nothing but when it is asked for: the tables are those that carry the flows, read
// under their own locks, and what TCP has moved is counted by the host's kernel. The
// rest of a relay belongs to its loop and is not looked at.

// Flows are the flows now, in no order: those that the namespace has begun, and the
// TCP connections that were opened for a port driver in the names of clients
// (Connect), as forwards without an id. UDP flows of these are the port driver's to
// tell. What the DNS server is asked by UDP is no flow. It is nil but while Run
// serves.
func (n *Network) Flows() []flows.Flow {
	e := n.engine.Load()
	if e == nil {
		return nil
	}
	list := e.connections()
	list = e.udp.appendFlows(list, "udp")
	return e.echo.appendFlows(list, "icmp")
}

// connections are the flows of TCP. The dials come first: one that becomes a relay
// in the meantime is there twice, rather than not at all, and the relay counts.
func (e *engine) connections() []flows.Flow {
	dials := e.tcp.flows()
	var list []flows.Flow
	for _, l := range e.loops {
		for _, w := range l.all() {
			r, ok := w.(*relay)
			if !ok {
				continue
			}
			if f, ok := r.flow(); ok {
				list = append(list, f)
				if r.outbound {
					delete(dials, flowKey{f.Child, f.Remote})
				}
			}
		}
	}
	for _, f := range dials {
		list = append(list, f)
	}
	return list
}

// flows are the connections that are being set up, and those to the DNS server,
// which have no relay.
func (t *tcpForwarder) flows() map[flowKey]flows.Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make(map[flowKey]flows.Flow, len(t.dials))
	for id, d := range t.dials {
		key := flowKey{netip.AddrPortFrom(fromAddress(id.RemoteAddress), id.RemotePort), askedFor(id)}
		f := flows.Flow{
			Proto: "tcp", Direction: flows.Outbound, State: flows.Connecting,
			Child: key.guest, Remote: key.remote, Since: d.first, Used: d.first,
		}
		if d.queue != nil && t.dns.serves(key.remote) {
			f.State = flows.Open
		}
		list[key] = f
	}
	return list
}

// flow is the flow of a relay. It is false when that is over. Any goroutine may call
// it.
func (r *relay) flow() (flows.Flow, bool) {
	child, err := r.ep.GetRemoteAddress()
	if err != nil {
		return flows.Flow{}, false
	}
	remote, err := r.ep.GetLocalAddress()
	if err != nil {
		return flows.Flow{}, false
	}
	f := flows.Flow{
		Proto: "tcp", Direction: flows.Outbound,
		Child:  netip.AddrPortFrom(fromAddress(child.Addr), child.Port),
		Remote: netip.AddrPortFrom(fromAddress(remote.Addr), remote.Port),
		Since:  r.since,
	}
	if !r.outbound {
		f.Direction, f.Kept = flows.Forward, true
	}
	ok := r.loop.count(&f, r)
	return f, ok
}

// count asks the kernel about a relay's socket. A socket is forgotten before it is
// closed, so one that is watched has not given its number away.
func (l *loop) count(f *flows.Flow, r *relay) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watchers[r.fd] == watcher(r) && f.Count(r.fd) == nil
}

// appendFlows appends the flows of the table.
func (t *flowTable) appendFlows(list []flows.Flow, proto string) []flows.Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, f := range t.flows {
		list = append(list, flows.Flow{
			Proto: proto, Direction: flows.Outbound, State: flows.Open,
			Child: key.guest, Remote: key.remote, Since: f.since, Used: f.used,
		})
	}
	return list
}
