package port

import (
	"net/netip"
	"strings"
)

// Families is a set of address families.
type Families uint8

// The address families that a spec listens on.
const (
	IPv4 Families = 1 << iota
	IPv6
)

// proto splits s.Proto into "tcp" or "udp" and the families that it allows. It
// reports whether the protocol is known.
func (s Spec) proto() (transport string, allowed Families, ok bool) {
	for _, p := range protos {
		if p != s.Proto {
			continue
		}
		switch transport = p[:3]; p[3:] {
		case "4":
			return transport, IPv4, true
		case "6":
			return transport, IPv6, true
		default:
			return transport, IPv4 | IPv6, true
		}
	}
	return "", 0, false
}

// Transport returns "tcp" or "udp", whatever the family in s.Proto.
func (s Spec) Transport() string { return strings.TrimRight(s.Proto, "46") }

// ListenIP and ListenPort are the side of the spec that listens: the parent's, or
// the child's where it is reversed.
func (s Spec) ListenIP() string {
	if s.Reverse {
		return s.ChildIP
	}
	return s.ParentIP
}

// ListenPort is described with ListenIP.
func (s Spec) ListenPort() int {
	if s.Reverse {
		return s.ChildPort
	}
	return s.ParentPort
}

// loopback4 is the loopback address of IPv4 that everybody means.
var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// Listens returns the addresses that a valid spec listens on: the one that it
// names, or the unspecified address of each family that its protocol allows.
// "tcp" and "udp" on an unspecified address of either family mean both. A reverse
// spec that names none listens on the loopback of each family.
func (s Spec) Listens() []netip.Addr {
	_, allowed, _ := s.proto()
	addr := valid(s.ListenIP())
	if addr.IsValid() && !addr.IsUnspecified() {
		return []netip.Addr{addr}
	}
	v4, v6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	if s.Reverse && !addr.IsValid() {
		v4, v6 = loopback4, netip.IPv6Loopback()
	}
	addrs := make([]netip.Addr, 0, 2)
	if allowed&IPv4 != 0 {
		addrs = append(addrs, v4)
	}
	if allowed&IPv6 != 0 {
		addrs = append(addrs, v6)
	}
	return addrs
}

// Targets returns the addresses in the namespace to connect to, best first, for
// a client of the given family. It is ChildIP where the spec has one. Else it is
// the loopback of the client's family, and for "tcp" and "udp" the other one
// next, for a service that listens on one family alone.
//
// A ParentIP such as 127.0.0.2 is tried before these, inside: nerdctl publishes
// on it without a ChildIP, and its rules in the namespace (DNAT of 127.0.0.2)
// lead to the container. RootlessKit does so with every ParentIP but the host's
// first address. Here it is for 127.0.0.0/8 alone, which never leaves the
// namespace: another address of the host's, where no rule catches it inside,
// would leave by the network and come back to the forward that sent it.
//
// Those of a reverse spec are addresses of the host: ParentIP, or the loopback of
// the client's family and the other one next.
func (s Spec) Targets(client Families) []netip.AddrPort {
	return s.targets(client, make([]netip.AddrPort, 0, maxTargets))
}

// Target returns the first of Targets.
func (s Spec) Target(client Families) netip.AddrPort {
	var some [maxTargets]netip.AddrPort
	return s.targets(client, some[:0])[0]
}

// maxTargets is how many Targets there are at most.
const maxTargets = 3

// targets appends the Targets to those in targets, which has room.
func (s Spec) targets(client Families, targets []netip.AddrPort) []netip.AddrPort {
	ip, port := s.ChildIP, uint16(s.ChildPort)
	_, allowed, _ := s.proto()
	if s.Reverse {
		// The protocol limits the side that listens, so that both loopbacks are left.
		ip, port, allowed = s.ParentIP, uint16(s.ParentPort), IPv4|IPv6
	}
	if addr := valid(ip); addr.IsValid() {
		return append(targets, netip.AddrPortFrom(addr, port))
	}
	v4 := netip.AddrPortFrom(loopback4, port)
	v6 := netip.AddrPortFrom(netip.IPv6Loopback(), port)
	if addr := valid(s.ParentIP); addr.IsLoopback() && addr != v4.Addr() && addr != v6.Addr() {
		targets = append(targets, netip.AddrPortFrom(addr, port))
	}
	switch {
	case allowed == IPv4:
		return append(targets, v4)
	case allowed == IPv6:
		return append(targets, v6)
	case client == IPv6:
		return append(targets, v6, v4)
	default:
		return append(targets, v4, v6)
	}
}

// valid reads an address of a valid spec; an empty one is the zero Addr.
func valid(text string) netip.Addr {
	if text == "" {
		return netip.Addr{}
	}
	addr, _ := netip.ParseAddr(text)
	return addr
}

// Conflicts reports whether two valid specs cannot listen at the same time, on
// the host or, both reversed, in the namespace: the same transport and port, and an address in common. An
// unspecified address has all the addresses of its family in common, and none
// of the other's, because IPv6 listeners take no IPv4 here. Port 0 conflicts
// with nothing. Interfaces of link-local addresses are compared as written.
func Conflicts(a, b Spec) bool {
	if a.ListenPort() == 0 || a.ListenPort() != b.ListenPort() || a.Reverse != b.Reverse || a.Transport() != b.Transport() {
		return false
	}
	for _, x := range a.Listens() {
		for _, y := range b.Listens() {
			if x.Is4() == y.Is4() && (x == y || x.IsUnspecified() || y.IsUnspecified()) {
				return true
			}
		}
	}
	return false
}
