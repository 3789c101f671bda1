package slirp

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// HostLoopback says which ports of the host's 127.0.0.1 and ::1 the namespace
// reaches at the gateway's address. The zero value opens none.
type HostLoopback struct {
	ports []portRange
}

// portRange holds the ports from first to last.
type portRange struct{ first, last uint16 }

// ParseHostLoopback reads "none", "all", or ports and ranges of ports such as
// "5432,8000-8010". The error wraps ErrUsage.
func ParseHostLoopback(s string) (HostLoopback, error) {
	switch s {
	case "", "none":
		return HostLoopback{}, nil
	case "all":
		return HostLoopback{[]portRange{{1, 65535}}}, nil
	}
	var h HostLoopback
	for field := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(field, "-")
		if !isRange {
			high = low
		}
		first, err1 := parsePort(low)
		last, err2 := parsePort(high)
		if err1 != nil || err2 != nil || first > last {
			return HostLoopback{}, fmt.Errorf("%w: host loopback %q: %q is neither a port nor a range of ports; use none, all, or ports such as 5432,8000-8010", ErrUsage, s, field)
		}
		h.ports = append(h.ports, portRange{first, last})
	}
	return h, nil
}

// parsePort reads a port from 1 to 65535.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

// String formats h so that ParseHostLoopback reads it.
func (h HostLoopback) String() string {
	if len(h.ports) == 0 {
		return "none"
	}
	var b strings.Builder
	for i, r := range h.ports {
		switch {
		case r == portRange{1, 65535}:
			return "all"
		case i > 0:
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(r.first)))
		if r.last != r.first {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(r.last)))
		}
	}
	return b.String()
}

// allows says whether a port is open.
func (h HostLoopback) allows(port uint16) bool {
	for _, r := range h.ports {
		if r.first <= port && port <= r.last {
			return true
		}
	}
	return false
}

// egress decides where a flow that leaves the namespace goes. It is asked once
// for each flow, by TCP and by UDP, and is the one place that knows what the
// namespace may reach.
type egress struct {
	subnets  [2]subnet
	loopback HostLoopback
}

var (
	loopbackIPv4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopbackIPv6 = netip.IPv6Loopback()
)

// destination returns the host's address for one that the namespace asked for.
// It is false when the flow is refused: for the host's loopback in every
// spelling, for which only the gateway's address and an open port do, for the
// rest of the namespace's own network, in which there is nobody else, and for
// what is no unicast address.
func (e *egress) destination(asked netip.AddrPort) (netip.AddrPort, bool) {
	addr := asked.Addr()
	for _, s := range e.subnets {
		if !s.enabled() || !s.prefix.Contains(addr) {
			continue
		}
		if addr != s.gateway || !e.loopback.allows(asked.Port()) {
			return netip.AddrPort{}, false
		}
		if addr.Is4() {
			return netip.AddrPortFrom(loopbackIPv4, asked.Port()), true
		}
		return netip.AddrPortFrom(loopbackIPv6, asked.Port()), true
	}
	if addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() || reservedIPv4(addr) || reservedIPv6(addr) {
		return netip.AddrPort{}, false
	}
	return asked, true
}

// source is the inverse of destination: the address under which the namespace
// knows one of the host's side.
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
