package slirp

import (
	"net/netip"

	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
)

// egress decides where a flow that leaves the namespace goes, and from where. It
// is asked once for each flow, by every protocol, and is the one place that knows
// what the namespace may reach.
type egress struct {
	subnets  [2]subnet
	loopback HostLoopback
	leads    *leads
	policy   *policy.Filter
	out      outbound

	descriptors descriptors // of which the sockets of flows are
}

// way is where a flow goes on the host's side.
type way struct {
	to   netip.AddrPort
	lead *lead // that it takes; nil for none
}

// ruling is what becomes of a flow that the namespace asked for.
type ruling int

const (
	// letOut: it goes to the destination.
	letOut ruling = iota
	// nobodyThere: the address is not one that the namespace reaches.
	nobodyThere
	// prohibited: the policy says no.
	prohibited
)

var (
	loopbackIPv4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopbackIPv6 = netip.IPv6Loopback()
)

// destination returns the way to an address that the namespace asked for. Nobody is
// there for the host's loopback in every spelling, for which only the gateway's
// address does, with a lead or an open port, for the rest of the namespace's own
// network, in which there is nobody else, and for what is no unicast address. All
// else is a matter of policy, which knows addresses as the namespace does.
func (e *egress) destination(proto policy.Proto, asked netip.AddrPort) (way, ruling) {
	w, ok := e.translate(proto, asked)
	if !ok {
		return way{}, nobodyThere
	}
	if !e.policy.Allows(proto, asked) {
		return way{}, prohibited
	}
	return w, letOut
}

// translate is destination without policy.
func (e *egress) translate(proto policy.Proto, asked netip.AddrPort) (way, bool) {
	addr := asked.Addr()
	for _, s := range e.subnets {
		if !s.enabled() || !s.prefix.Contains(addr) {
			continue
		}
		if addr != s.gateway {
			return way{}, false
		}
		if d := e.leads.find(proto, asked); d != nil {
			return way{d.to, d}, true
		}
		if !e.loopback.allows(asked.Port()) {
			return way{}, false
		}
		if addr.Is4() {
			return way{to: netip.AddrPortFrom(loopbackIPv4, asked.Port())}, true
		}
		return way{to: netip.AddrPortFrom(loopbackIPv6, asked.Port())}, true
	}
	if addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() || reservedIPv4(addr) || reservedIPv6(addr) {
		return way{}, false
	}
	return way{to: asked}, true
}

// source is the inverse of destination, but for leads: the address under which the
// namespace knows one of the host's side.
func (e *egress) source(from netip.AddrPort) netip.AddrPort {
	addr := from.Addr()
	if !addr.IsLoopback() {
		return from
	}
	for _, s := range e.subnets {
		if s.enabled() && s.gateway.Is4() == addr.Is4() {
			return netip.AddrPortFrom(s.gateway, from.Port())
		}
	}
	return from
}

// reservedIPv4 says whether an address is in 0.0.0.0/8, all of which some
// kernels take for this host (RFC 1122, 3.2.1.3), or is the limited broadcast.
func reservedIPv4(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	b := a.As4()
	return b[0] == 0 || b == [4]byte{255, 255, 255, 255}
}

// reservedIPv6 says whether an address is link-local, where the namespace's link
// has nobody but the gateway, or has an IPv4 address in it that the kernel would
// take for one: IPv4-mapped ones do not belong on a wire (RFC 6890), and
// IPv4-compatible ones are no longer used (RFC 4291, 2.5.5.1).
func reservedIPv6(a netip.Addr) bool {
	if !a.Is6() {
		return false
	}
	b := a.As16()
	return a.IsLinkLocalUnicast() || a.Is4In6() || [12]byte(b[:12]) == [12]byte{}
}
