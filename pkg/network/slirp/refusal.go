package slirp

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// refusal is what a kernel of the namespace says by an ICMP error (port unreachable):
// nobody takes a datagram that came from outside.
//
// The error itself does not go on, since the host's side are sockets. What it means
// does: a client's flow is refused as its port driver refuses (inboundUDP.refuse), and
// a flow of the namespace ends (udpRelay.refuse).
type refusal struct {
	at, sender netip.AddrPort
	payload    []byte // nil where not all of it is known
}

// parseRefusal reads an ICMP message, whose checksum it verifies. It is false for all
// else.
func parseRefusal(p []byte, from, to netip.Addr) (refusal, bool) {
	if len(p) < icmpHeaderSize {
		return refusal{}, false
	}
	quoted := p[icmpHeaderSize:]
	var at, sender tcpip.Address
	var datagram []byte // as much of it as there is
	switch {
	case to.Is4() && header.ICMPv4(p).Type() == header.ICMPv4DstUnreachable && header.ICMPv4(p).Code() == header.ICMPv4PortUnreachable:
		ip := header.IPv4(quoted)
		if len(ip) < header.IPv4MinimumSize || ip.TransportProtocol() != header.UDPProtocolNumber {
			return refusal{}, false
		}
		at, sender, datagram = ip.DestinationAddress(), ip.SourceAddress(), ip[min(int(ip.HeaderLength()), len(ip)):]
	case to.Is6() && header.ICMPv6(p).Type() == header.ICMPv6DstUnreachable && header.ICMPv6(p).Code() == header.ICMPv6PortUnreachable:
		ip := header.IPv6(quoted)
		if len(ip) < header.IPv6MinimumSize || ip.NextHeader() != uint8(header.UDPProtocolNumber) {
			return refusal{}, false
		}
		at, sender, datagram = ip.DestinationAddress(), ip.SourceAddress(), ip[header.IPv6MinimumSize:]
	default:
		return refusal{}, false
	}
	h := header.UDP(datagram)
	if len(h) < header.UDPMinimumSize || fromAddress(sender) != to || !soundICMP(p, from, to) {
		return refusal{}, false
	}
	r := refusal{
		at:     netip.AddrPortFrom(fromAddress(at), h.DestinationPort()),
		sender: netip.AddrPortFrom(fromAddress(sender), h.SourcePort()),
	}
	if len(h) >= int(h.Length()) && int(h.Length()) >= header.UDPMinimumSize {
		r.payload = h[header.UDPMinimumSize:h.Length()]
	}
	return r, true
}
