package slirp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// What a kernel or router of the namespace says by an ICMP error about a packet of ours
// does not go on, since the host's side are sockets. What it means does:
//
//	any unreachable, of UDP         refusal: a client's flow is refused as its port driver
//	                                refuses, a flow of the namespace ends
//	too big, of TCP                 complaint: segments become smaller
//	any unreachable, of a SYN       complaint: nobody is there
//
// Whoever sends one may not have seen what it is about, but made it up. So it has to quote
// a flow that is there, and of TCP a sequence number that is on its way (RFC 5927, 4.1).

// refusal says that nobody takes a datagram that came from outside.
type refusal struct {
	at, sender netip.AddrPort
	payload    []byte // nil where not all of it is known
}

// minPathMTU is the least MTU of an IPv4 path that is believed.
const minPathMTU = 552

// complaint says that a TCP segment from outside does not reach its destination.
type complaint struct {
	key flowKey
	seq uint32
	// mtu is that of the link that it is too big for; 0 where size is not the matter.
	mtu int
}

// quoted is the packet that an ICMP error is about.
type quoted struct {
	kind, code uint8 // of the error
	mtu        int   // that it names
	proto      tcpip.TransportProtocolNumber
	at, sender netip.Addr
	transport  []byte // as much of it as there is
}

// parseError reads an ICMP error about a packet from the address that it is sent to, and
// verifies its checksum. It is false for all other messages.
func parseError(p []byte, from, to netip.Addr) (q quoted, ok bool) {
	if len(p) < icmpHeaderSize {
		return q, false
	}
	q.kind, q.code = p[0], p[1]
	packet := p[icmpHeaderSize:]
	switch {
	case to.Is4() && header.ICMPv4Type(q.kind) == header.ICMPv4DstUnreachable && len(packet) >= header.IPv4MinimumSize:
		ip := header.IPv4(packet)
		if ip.FragmentOffset() != 0 {
			return q, false // which begins with no header
		}
		q.mtu = int(binary.BigEndian.Uint16(p[6:]))
		q.proto, q.at, q.sender = ip.TransportProtocol(), fromAddress(ip.DestinationAddress()), fromAddress(ip.SourceAddress())
		q.transport = packet[min(int(ip.HeaderLength()), len(packet)):]
	case to.Is6() && (header.ICMPv6Type(q.kind) == header.ICMPv6DstUnreachable || header.ICMPv6Type(q.kind) == header.ICMPv6PacketTooBig) && len(packet) >= header.IPv6MinimumSize:
		ip := header.IPv6(packet)
		q.mtu = int(binary.BigEndian.Uint32(p[4:]))
		q.proto, q.at, q.sender = tcpip.TransportProtocolNumber(ip.NextHeader()), fromAddress(ip.DestinationAddress()), fromAddress(ip.SourceAddress())
		q.transport = packet[header.IPv6MinimumSize:]
	default:
		return q, false
	}
	return q, q.sender == to && len(q.transport) >= header.UDPMinimumSize && soundICMP(p, from, to)
}

// isTooBig says that the size of the packet is the matter.
func (q *quoted) isTooBig() bool {
	if q.at.Is6() {
		return header.ICMPv6Type(q.kind) == header.ICMPv6PacketTooBig
	}
	return header.ICMPv4Code(q.code) == header.ICMPv4FragmentationNeeded
}

// refusal is the refusal of a datagram, by a kernel (port unreachable) or a firewall
// (prohibited); false where it is something else.
func (q *quoted) refusal() (refusal, bool) {
	if q.proto != header.UDPProtocolNumber || q.isTooBig() {
		return refusal{}, false
	}
	h := header.UDP(q.transport)
	r := refusal{at: netip.AddrPortFrom(q.at, h.DestinationPort()), sender: netip.AddrPortFrom(q.sender, h.SourcePort())}
	if len(h) >= int(h.Length()) && int(h.Length()) >= header.UDPMinimumSize {
		r.payload = h[header.UDPMinimumSize:h.Length()]
	}
	return r, true
}

// complaint is the complaint about a segment; false where it is something else.
func (q *quoted) complaint() (complaint, bool) {
	if q.proto != header.TCPProtocolNumber {
		return complaint{}, false
	}
	c := complaint{key: flowKey{
		guest:  netip.AddrPortFrom(q.at, binary.BigEndian.Uint16(q.transport[2:])),
		remote: netip.AddrPortFrom(q.sender, binary.BigEndian.Uint16(q.transport)),
	}, seq: binary.BigEndian.Uint32(q.transport[4:])}
	if q.isTooBig() {
		// Routers of before RFC 1191 name none. What is less than any link has is taken for
		// the least that Linux believes (min_pmtu in net/ipv4/route.c; RFC 8200, 5).
		c.mtu = max(q.mtu, minPathMTU)
		if q.at.Is6() {
			c.mtu = max(q.mtu, minIPv6MTU)
		}
	}
	return c, true
}

// refused takes a complaint, and is false where it is about no connection.
func (t *tcpForwarder) refused(c *complaint) bool {
	r := t.relays[c.key]
	switch {
	case r == nil:
		return false
	case c.mtu != 0:
		r.conn.Tell(t.now)
		r.conn.TooBig(c.seq, c.mtu)
		r.settle()
	case r.opening != nil && r.conn.Awaits(c.seq):
		// No handshake is under way that another way could complete.
		r.fail(unix.EHOSTUNREACH)
	}
	return true
}
