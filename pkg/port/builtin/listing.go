package builtin

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/gatekit/gatekit/pkg/flows"
)

// The flows of all forwards, for who asks who is connected. Nothing is kept for
// that beside the time when a flow began: the addresses are the sockets' own, and
// the bytes of TCP are counted by the kernel. Where a connection is in its client's
// name, the socket is the Opener's, who knows more.

// Flows are the flows now, in no order. Connections of forwards that were removed
// are among them for as long as they go on. It is nil but while Run serves.
func (d *Driver) Flows() []flows.Flow {
	d.mu.Lock()
	serving := d.state == running
	forwards := slices.AppendSeq(slices.Collect(maps.Values(d.forwards)), maps.Keys(d.waning))
	d.mu.Unlock()
	if !serving {
		return nil
	}
	list := d.udp.listFlows()
	for _, fw := range forwards {
		fw.mu.Lock()
		conns := slices.Collect(maps.Keys(fw.conns))
		fw.mu.Unlock()
		for _, c := range conns {
			if f, ok := c.flow(); ok {
				list = append(list, f)
			}
		}
	}
	return list
}

// flow is what can be told of c. It is false when c is over, or has only been
// accepted.
func (c *conn) flow() (f flows.Flow, ok bool) {
	c.mu.Lock()
	done, ends, p := c.done, slices.Clone(c.ends), c.passage
	c.mu.Unlock()
	f = flows.Flow{Proto: "tcp", State: flows.Connecting, Since: c.since}
	switch {
	case done:
		return f, false
	case p != nil && (p.open || len(ends) == 0):
		c.forward.place(&f, p.client, p.service)
		if f.Kept = true; p.open {
			f.State = flows.Open
		}
		return f, true
	case len(ends) == 0:
		return f, false
	}
	var client netip.AddrPort
	if control(ends[0].file, func(fd int) error {
		client, ok = peerOf(fd)
		return f.Count(fd)
	}) != nil || !ok {
		return f, false
	}
	service, connected := c.forward.status.Spec.Target(c.family), false
	if len(ends) == 2 {
		_ = control(ends[1].file, func(fd int) error { // an end that is closed by now is not connected
			if peer, ok := peerOf(fd); ok {
				service, connected = peer, true
			}
			return nil
		})
	}
	if !connected {
		f.State = flows.Connecting
	}
	if c.forward.place(&f, client, service); c.forward.status.Spec.Reverse {
		f.In, f.Out = f.Out, f.In // the client is inside
	}
	return f, true
}

// listFlows are the UDP flows now; none when the loop has ended.
func (x *exchange) listFlows() (list []flows.Flow) {
	x.loop.do(func() {
		list = make([]flows.Flow, 0, x.flows)
		for s := range x.sockets {
			for _, f := range s.flows {
				list = append(list, f.flow())
			}
		}
	})
	return list
}

// flow is what can be told of f. It is for the loop.
func (f *flow) flow() flows.Flow {
	told := flows.Flow{Proto: "udp", State: flows.Open, Since: f.since, Used: f.used}
	if f.kept == nil && f.fd < 0 {
		told.State = flows.Connecting
	}
	peer := f.arrival.Peer
	f.socket.forward.place(&told, netip.AddrPortFrom(peer.Addr, peer.Port), f.targets[0])
	told.Kept = f.kept != nil
	return told
}
