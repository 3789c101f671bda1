package slirp

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// icmpHeaderSize is the size of the header of an ICMP message of either family:
// type, code, checksum, and four bytes that depend on the type.
const icmpHeaderSize = 8

// icmpChecksumOffset is where the checksum lies in it.
const icmpChecksumOffset = 2

// The largest packets with an ICMP error: as much of the offending packet is
// quoted as fits (RFC 1812, 4.3.2.3; RFC 4443, 2.4).
const (
	maxErrorIPv4 = 576
	maxErrorIPv6 = 1280
)

// icmpError is an ICMP error for the namespace.
type icmpError struct {
	kind, code uint8
	// info is the header's last four bytes: the MTU, for one.
	info uint32
	// from is who sends it: a router of the outside. The zero value is the gateway.
	from netip.Addr
	// ttl is what it arrives with. 0 is that of the gateway's own.
	ttl uint8
}

// quotation is what an ICMP error quotes of the packet that it is about. Either it
// is the packet as it came (quotePacket), or it is made up from what is known of
// it (quoteHeaders).
type quotation struct {
	src      netip.Addr // who is told
	headers  [header.IPv6MinimumSize + icmpHeaderSize]byte
	n        int    // bytes of headers
	tail     []byte // what follows them
	isIPv6   bool
	original netip.Addr // the destination
}

// quotePacket quotes an IP packet of the namespace, whose header is sound.
func quotePacket(packet []byte) quotation {
	if header.IPVersion(packet) == header.IPv4Version {
		return quotation{src: netip.AddrFrom4([4]byte(packet[12:16])), original: netip.AddrFrom4([4]byte(packet[16:20])), tail: packet}
	}
	return quotation{src: netip.AddrFrom16([16]byte(packet[8:24])), original: netip.AddrFrom16([16]byte(packet[24:40])), tail: packet, isIPv6: true}
}

// quoteHeaders quotes a packet of the namespace by its transport header and what
// is known of the rest. out has its addresses as the namespace sees them.
func quoteHeaders(out *outgoing, head *transportHeader, rest []byte) quotation {
	q := quotation{src: out.src, original: out.dst, tail: rest, isIPv6: out.dst.Is6()}
	length := len(head) + len(rest)
	if q.isIPv6 {
		q.n = putIPv6(q.headers[:], out, length, fragment{})
	} else {
		putIPv4(q.headers[:], out, length, fragment{})
		q.n = header.IPv4MinimumSize
	}
	q.n += copy(q.headers[q.n:], head[:])
	return q
}

// writeError sends an ICMP error to the owner of an Ethernet address.
func (w *datagramWriter) writeError(to macAddr, e icmpError, q *quotation) {
	out := outgoing{to: to, src: e.from, dst: q.src, proto: header.ICMPv4ProtocolNumber, ttl: e.ttl}
	room, gateway := maxErrorIPv4-header.IPv4MinimumSize, w.gateways[0]
	if q.isIPv6 {
		out.proto = header.ICMPv6ProtocolNumber
		room, gateway = maxErrorIPv6-header.IPv6MinimumSize, w.gateways[1]
	}
	if !out.src.IsValid() {
		out.src = gateway
	}
	if !out.src.IsValid() || out.src.Is4() == q.isIPv6 {
		return // a family that is switched off
	}
	if out.ttl == 0 {
		out.ttl = ownTTL
	}
	tail := q.tail[:min(len(q.tail), room-icmpHeaderSize-q.n)]
	f := w.dev.frame()
	w.dev.begin(f, vnetHeader{})
	n := w.putIP(f.headers[:], &out, icmpHeaderSize+q.n+len(tail), w.whole())
	message := f.headers[n : n+icmpHeaderSize+q.n]
	message[0], message[1] = e.kind, e.code
	message[2], message[3] = 0, 0
	binary.BigEndian.PutUint32(message[4:], e.info)
	copy(message[icmpHeaderSize:], q.headers[:q.n])
	putICMPChecksum(&out, message, tail)
	f.append(f.headers[:n+len(message)])
	f.append(tail)
	_ = w.dev.send(f) // what is lost is counted there
}

// forwardICMP sends an ICMP message, which is given in two parts, with a checksum
// of our own. It is fragmented where it is larger than the MTU.
func (w *datagramWriter) forwardICMP(out *outgoing, head *transportHeader, payload []byte) {
	putICMPChecksum(out, head[:], payload)
	length := len(head) + len(payload)
	headerLen := header.IPv4MinimumSize
	if out.dst.Is6() {
		headerLen = header.IPv6MinimumSize
	}
	if headerLen+length > w.mtu {
		w.writeFragments(out, head, payload)
		return
	}
	f := w.dev.frame()
	w.dev.begin(f, vnetHeader{})
	n := w.putIP(f.headers[:], out, length, w.whole())
	n += copy(f.headers[n:], head[:])
	f.append(f.headers[:n])
	f.append(payload)
	_ = w.dev.send(f) // what is lost is counted there
}

// soundICMP says whether the checksum of a message is right.
func soundICMP(message []byte, src, dst netip.Addr) bool {
	var sum uint16
	if src.Is6() {
		sum = header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, toAddress(src), toAddress(dst), uint16(len(message)))
	}
	return checksum.Checksum(message, sum) == 0xffff
}

// putICMPChecksum computes the checksum of a message of two parts, the first of
// which is of even length, and puts it into its header. ICMPv6 has the
// pseudo-header in it (RFC 4443, 2.3).
func putICMPChecksum(out *outgoing, head, tail []byte) {
	head[icmpChecksumOffset], head[icmpChecksumOffset+1] = 0, 0
	var sum uint16
	if out.proto == header.ICMPv6ProtocolNumber {
		sum = header.PseudoHeaderChecksum(out.proto, toAddress(out.src), toAddress(out.dst), uint16(len(head)+len(tail)))
	}
	sum = checksum.Checksum(tail, checksum.Checksum(head, sum))
	binary.BigEndian.PutUint16(head[icmpChecksumOffset:], ^sum)
}
