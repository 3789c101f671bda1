package slirp

import (
	"crypto/rand"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Who is on the link: the child, or a bridge inside with any number of guests of
// the namespace behind it. Who has which address there is asked for by ARP and
// neighbour discovery, as on any Ethernet; each guest speaks for itself.
//
// The stack speaks for all of the outside, so left alone it would answer for every
// address, and ask for neighbours in the name of whoever has sent the packet that
// waits for the answer. What it hears is judged here, and who asks is put right.

// gatewayLinkLocal is the gateway's address on the link itself, which router
// advertisements and DHCPv6 have to come from (RFC 4861, 4.2).
var gatewayLinkLocal = netip.MustParseAddr("fe80::2")

// ours says whether an address is the gateway's or the DNS server's.
func (in *inspector) ours(a netip.Addr) bool { return isOurs(&in.subnets, a) }

// isOurs does, for networks.
func isOurs(subnets *[2]subnet, a netip.Addr) bool {
	for _, s := range subnets {
		if s.enabled() && (a == s.gateway || a == s.dns || a == gatewayLinkLocal && s.gateway.Is6()) {
			return true
		}
	}
	return false
}

// guest says whether the child, or a guest of the namespace, may have an address.
func (in *inspector) guest(a netip.Addr) bool {
	return in.subnets[family(a)].holds(a)
}

// inspectARP lets requests for our own addresses through, and replies, both from
// addresses that a guest may have. One who asks from no address looks whether one
// is free, and one who announces an address of ours is told that it is not (RFC
// 5227).
func (in *inspector) inspectARP(p []byte) verdict {
	arp := header.ARP(p)
	if !arp.IsValid() || !soundMAC(arp.HardwareAddressSender()) {
		return drop
	}
	sender := netip.AddrFrom4([4]byte(arp.ProtocolAddressSender()))
	target := netip.AddrFrom4([4]byte(arp.ProtocolAddressTarget()))
	switch arp.Op() {
	case header.ARPRequest:
		if !in.ours(target) || !in.guest(sender) && !sender.IsUnspecified() && sender != target {
			return drop
		}
	case header.ARPReply:
		if !in.guest(sender) {
			return drop
		}
	default:
		return drop
	}
	return toStack
}

// soundMAC says whether one station can have an Ethernet address. The one of zeroes
// is lo's, here (datagramWriter.mac of the way by it).
func soundMAC(b []byte) bool {
	return len(b) == header.EthernetAddressSize && b[0]&1 == 0 && macAddr(b) != macAddr{}
}

// inspectICMPv6 keeps from the stack what it would answer for others, such as
// neighbour solicitations and echo requests for addresses that are not ours, and
// what is not for a router to hear: other routers' advertisements and redirects, and
// who listens to which group. Echo requests to the outside are relayed.
func (in *inspector) inspectICMPv6(packet []byte, src, dst netip.Addr, f *finding) verdict {
	ip, p := header.IPv6(packet), packet[header.IPv6MinimumSize:]
	if len(p) < header.ICMPv6MinimumSize {
		return drop
	}
	onLink := in.guest(src) || src.IsLinkLocalUnicast()
	kind := header.ICMPv6(p).Type()
	switch kind {
	case header.ICMPv6NeighborSolicit:
		// The unspecified source is that of duplicate address detection.
		if !onLink && !src.IsUnspecified() || len(p) < header.ICMPv6NeighborSolicitMinimumSize ||
			!in.ours(netip.AddrFrom16([16]byte(p[8:24]))) || !soundNeighbourOptions(p[header.ICMPv6NeighborSolicitMinimumSize:]) {
			return drop
		}
	case header.ICMPv6NeighborAdvert:
		if !onLink || len(p) < header.ICMPv6NeighborAdvertMinimumSize || !in.neighbour(netip.AddrFrom16([16]byte(p[8:24]))) ||
			!soundNeighbourOptions(p[header.ICMPv6NeighborAdvertMinimumSize:]) {
			return drop
		}
	case header.ICMPv6RouterSolicit:
		if !onLink && !src.IsUnspecified() {
			return drop
		}
		return inspectSolicit(packet, src, dst, &f.datagram)
	case header.ICMPv6EchoRequest:
		switch {
		case onLink && in.ours(dst):
			return toStack
		case dst.IsMulticast() || !in.guest(src):
			return drop
		case ip.HopLimit() <= 1:
			return expire
		}
		f.datagram.ttl, f.datagram.whole = ip.HopLimit(), true
		return inspectEcho(p, src, dst, &f.datagram)
	default:
		if !in.guest(src) || !forRouters(kind) {
			return drop
		}
	}
	return toStack
}

// forRouters says whether a message of ICMPv6 is one that a router passes on: an error
// or an echo, and nothing about the link.
func forRouters(kind header.ICMPv6Type) bool {
	const firstInformational = 128 // RFC 4443, 2.1
	return kind < firstInformational || kind == header.ICMPv6EchoRequest || kind == header.ICMPv6EchoReply
}

// neighbour says whether a guest may have an address on the link.
func (in *inspector) neighbour(a netip.Addr) bool {
	return (in.guest(a) || a.IsLinkLocalUnicast()) && !in.ours(a)
}

// soundNeighbourOptions says whether the options of a message of neighbour discovery
// are whole (RFC 4861, 4.6), and name stations as such.
func soundNeighbourOptions(p []byte) bool {
	const source, target = 1, 2 // link-layer addresses
	for len(p) > 0 {
		if len(p) < 2 || p[1] == 0 || int(p[1])*8 > len(p) {
			return false
		}
		option := p[:int(p[1])*8]
		if kind := option[0]; (kind == source || kind == target) && !soundMAC(option[2:]) {
			return false
		}
		p = p[len(option):]
	}
	return true
}

// putAsker has a question of the stack for a neighbour come from the gateway. The
// stack asks in the name of whom the waiting packet is from. That is an address of
// the outside, from which careful kernels take no questions, or even a loopback
// address, from which none does; and what waits for one neighbour waits behind one
// question.
func (w *datagramWriter) putAsker(pkt *stack.PacketBuffer) {
	switch pkt.NetworkProtocolNumber {
	case header.ARPProtocolNumber:
		if arp := header.ARP(pkt.NetworkHeader().Slice()); arp.Op() == header.ARPRequest {
			copy(arp.ProtocolAddressSender(), w.gateways[0].AsSlice())
		}
	case header.IPv6ProtocolNumber:
		ip := header.IPv6(pkt.NetworkHeader().Slice())
		if ip.NextHeader() != uint8(header.ICMPv6ProtocolNumber) || len(pkt.TransportHeader().Slice()) > 0 {
			return
		}
		p, ok := pkt.Data().PullUp(header.ICMPv6NeighborSolicitMinimumSize)
		if !ok || header.ICMPv6(p).Type() != header.ICMPv6NeighborSolicit {
			return
		}
		asker := toAddress(w.gateways[1])
		if header.IsV6LinkLocalUnicastAddress(tcpip.AddrFrom16Slice(p[8:24])) {
			asker = toAddress(gatewayLinkLocal)
		}
		header.ICMPv6(p).UpdateChecksumPseudoHeaderAddress(ip.SourceAddress(), asker)
		ip.SetSourceAddress(asker)
	}
}

// newChildMAC returns an Ethernet address for the interface in the namespace. It is
// low, because a bridge takes the lowest of its ports' addresses for its own: so a
// bridge that the interface is put into has this one, and with it, by DHCP, the
// child's addresses.
func newChildMAC() macAddr {
	mac := macAddr{0x02} // locally administered
	rand.Read(mac[3:])   // never fails
	return mac
}
