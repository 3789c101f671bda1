package slirp

import (
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
	"github.com/gatekit/gatekit/pkg/port"
)

// A lead is a port of the gateway's address that a port driver has led to an
// address of the host: a reverse forward. For as long as it is there, the egress
// sends what the namespace opens towards that port there, before it looks at what
// HostLoopback opens.
//
//	namespace --> 10.0.2.2:5432 --> egress --> lead --> 127.0.0.1:5432 of the host
//
// The policy is asked about the gateway's address, as for all that goes there. The
// other end is chosen by the host, so it needs no other permission, and it is part
// of the host, so that it has no source of its own (outbound). It may be of the
// other family.
//
// An entry ends before its connections do: one that was set up before Stop goes on
// until it ends by itself or by Cut. Datagrams have no connection, so that their
// flows end with the entry, and start anew when one comes.

// leads are those that are there. The zero value has none.
type leads struct {
	mu   sync.Mutex // guards byID, and each lead's state
	byID map[leadID]*lead
}

// leadID is a port of the gateway's.
type leadID struct {
	proto policy.Proto
	at    netip.AddrPort
}

// lead implements port.Lead.
type lead struct {
	leadID
	to  netip.AddrPort // on the host
	net *Network

	stopped bool
	conns   int           // TCP connections, also those in their handshake
	over    chan struct{} // closed with the last one; nil before Stop
}

var _ port.Gateway = (*Network)(nil)

// IsGateway implements port.Gateway.
func (n *Network) IsGateway(addr netip.Addr) bool {
	for _, s := range n.subnets {
		if s.enabled() && addr == s.gateway {
			return true
		}
	}
	return false
}

// Lead implements port.Gateway.
func (n *Network) Lead(transport string, at, to netip.AddrPort) (port.Lead, error) {
	if to.Addr().IsLinkLocalUnicast() {
		return nil, fmt.Errorf("%w: the gateway's address cannot lead to the link-local address %v; listen on the namespace's loopback", port.ErrInvalid, to.Addr())
	}
	d := &lead{leadID: leadID{policy.TCP, at}, to: to, net: n}
	if transport == "udp" {
		d.proto = policy.UDP
	}
	if !n.leads.add(d) {
		return nil, os.NewSyscallError("bind", unix.EADDRINUSE)
	}
	d.endFlows() // which HostLoopback let out
	return d, nil
}

// add is false where there is one already.
func (ls *leads) add(d *lead) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.byID[d.leadID] != nil {
		return false
	}
	if ls.byID == nil {
		ls.byID = make(map[leadID]*lead)
	}
	ls.byID[d.leadID] = d
	return true
}

// find returns nil where there is none.
func (ls *leads) find(proto policy.Proto, at netip.AddrPort) *lead {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.byID[leadID{proto, at}]
}

// Stop implements port.Lead.
func (d *lead) Stop() (over <-chan struct{}) {
	over = d.stop()
	d.endFlows()
	return over
}

// Cut implements port.Lead.
func (d *lead) Cut() {
	d.stop()
	d.endFlows()
	if e := d.net.engine.Load(); e != nil {
		e.tcp.cut(d)
	}
}

// stop takes the lead out of the table.
func (d *lead) stop() <-chan struct{} {
	ls := &d.net.leads
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if !d.stopped {
		d.stopped = true
		delete(ls.byID, d.leadID)
		if d.conns > 0 {
			d.over = make(chan struct{})
		}
	}
	return d.over
}

// endFlows ends the flows to the gateway's port, which leads elsewhere from now on.
func (d *lead) endFlows() {
	e := d.net.engine.Load()
	switch {
	case e == nil:
	case d.proto == policy.UDP:
		e.udp.endTo(d.at)
	default:
		e.tcp.giveUp(d.at)
	}
}

// enter counts a connection, and is false when no more are taken. A flow without a
// lead has a nil one, which takes all.
func (d *lead) enter() bool {
	if d == nil {
		return true
	}
	d.net.leads.mu.Lock()
	defer d.net.leads.mu.Unlock()
	if d.stopped {
		return false
	}
	d.conns++
	return true
}

// leave counts the end of a connection.
func (d *lead) leave() {
	if d == nil {
		return
	}
	d.net.leads.mu.Lock()
	defer d.net.leads.mu.Unlock()
	if d.conns--; d.conns == 0 && d.over != nil {
		close(d.over)
	}
}
