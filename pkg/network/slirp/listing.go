package slirp

import (
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
	list := e.tcp.flows()
	list = e.udp.appendFlows(list, "udp")
	return e.echo.appendFlows(list, "icmp")
}

// flows are the connections of TCP.
func (t *tcpForwarder) flows() []flows.Flow {
	relays := t.snapshot()
	list := make([]flows.Flow, 0, len(relays))
	for r, dialling := range relays {
		f := flows.Flow{
			Proto: "tcp", Direction: flows.Outbound, State: flows.Open,
			Child: r.key.guest, Remote: r.key.remote, Since: r.since, Used: r.since,
		}
		if !r.outbound {
			f.Direction, f.Kept = flows.Forward, true
		}
		switch {
		case dialling:
			f.State = flows.Connecting
		case r.local:
		case !t.loop.count(&f, r):
			continue // it is over
		}
		list = append(list, f)
	}
	return list
}

// snapshot has the relays of now, and whether each is being connected.
func (t *tcpForwarder) snapshot() map[*relay]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	relays := make(map[*relay]bool, len(t.relays))
	for _, r := range t.relays {
		relays[r] = r.dial != nil
	}
	return relays
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
