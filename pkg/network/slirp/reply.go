package slirp

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// ownTTL is the time to live, or hop limit, of what we send ourselves.
const ownTTL = 64

// udpChecksumOffset is where the checksum lies in a UDP header (RFC 768).
const udpChecksumOffset = 6

// maxPayloadIPv4 and maxPayloadIPv6 are the largest payloads of a UDP datagram.
const (
	maxPayloadIPv4 = 65535 - header.IPv4MinimumSize - header.UDPMinimumSize
	maxPayloadIPv6 = 65535 - header.UDPMinimumSize
)

// datagramWriter writes UDP datagrams and ICMP messages to the namespace, straight
// into frames. It is safe for concurrent use.
type datagramWriter struct {
	dev      *device
	mac      macAddr
	mtu      int
	gateways [2]netip.Addr // IPv4 and IPv6

	// lastID numbers the packets, of IPv4 all of them: a bridge or router in the
	// namespace, of which the MTU is smaller, may fragment them, and pieces of two
	// with one number would be put together (RFC 6864, 4.3).
	lastID atomic.Uint32
}

// outgoing is what all packets of a datagram to the namespace have in common. Both
// addresses are of one family.
type outgoing struct {
	to       macAddr
	src, dst netip.Addr
	proto    tcpip.TransportProtocolNumber
	ttl      uint8
}

// write sends a datagram of our own to the owner of an Ethernet address. One that
// is larger than the MTU is fragmented. Both addresses are of one family.
func (w *datagramWriter) write(to macAddr, src, dst netip.AddrPort, payload []byte) {
	w.forward(to, src, dst, payload, ownTTL)
}

// forward does the same with a datagram that came with a time to live of ttl less
// one hop.
func (w *datagramWriter) forward(to macAddr, src, dst netip.AddrPort, payload []byte, ttl uint8) {
	headerLen, largest := header.IPv4MinimumSize, maxPayloadIPv4
	if dst.Addr().Is6() {
		headerLen, largest = header.IPv6MinimumSize, maxPayloadIPv6
	}
	if len(payload) > largest {
		return // the kernel has none that are larger
	}
	out := outgoing{to: to, src: src.Addr(), dst: dst.Addr(), proto: header.UDPProtocolNumber, ttl: ttl}
	if headerLen+header.UDPMinimumSize+len(payload) > w.mtu {
		var udp [header.UDPMinimumSize]byte
		putUDP(udp[:], src, dst, payload, false)
		w.writeFragments(&out, &udp, payload)
		return
	}
	f := w.dev.frame()
	h := vnetHeader{}
	partial := w.dev.vnet
	if partial {
		h = vnetHeader{
			flags:          vnetNeedsChecksum,
			checksumStart:  uint16(ethernetSize + headerLen),
			checksumOffset: udpChecksumOffset,
		}
	}
	w.dev.begin(f, h)
	length := header.UDPMinimumSize + len(payload)
	n := w.putIP(f.headers[:], &out, length, w.whole())
	putUDP(f.headers[n:], src, dst, payload, partial)
	f.append(f.headers[:n+header.UDPMinimumSize])
	f.append(payload)
	_ = w.dev.send(f) // what is lost is counted there
}

// fragment says which piece of a datagram a packet is, and which datagram. Without an
// offset and more it is a whole one.
type fragment struct {
	id     uint32
	offset int
	more   bool
}

// whole is the next packet, in one piece.
func (w *datagramWriter) whole() fragment { return fragment{id: w.lastID.Add(1)} }

// transportHeader is a UDP header, or that of an ICMP message.
type transportHeader = [header.UDPMinimumSize]byte

// writeFragments sends a datagram in pieces (RFC 791, RFC 8200 4.5).
func (w *datagramWriter) writeFragments(out *outgoing, head *transportHeader, payload []byte) {
	room := w.mtu - header.IPv4MinimumSize
	if out.dst.Is6() {
		room = w.mtu - header.IPv6MinimumSize - header.IPv6FragmentExtHdrLength
	}
	room &^= 7 // offsets count in units of 8 bytes
	total := len(head) + len(payload)
	id := w.lastID.Add(1)
	for offset := 0; offset < total; offset += room {
		end := min(offset+room, total)
		f := w.dev.frame()
		w.dev.begin(f, vnetHeader{})
		n := w.putIP(f.headers[:], out, end-offset, fragment{id, offset, end < total})
		start := offset - len(head)
		if offset == 0 {
			n += copy(f.headers[n:], head[:])
			start = 0
		}
		f.append(f.headers[:n])
		f.append(payload[start : end-len(head)])
		if w.dev.send(f) != nil {
			return // the rest is of no use
		}
	}
}

// putIP writes the Ethernet and IP headers of a packet with length bytes after
// them, and returns their size.
func (w *datagramWriter) putIP(b []byte, out *outgoing, length int, frag fragment) int {
	if out.dst.Is4() {
		ethernetHeader(b, out.to, w.mac, uint16(header.IPv4ProtocolNumber))
		putIPv4(b[ethernetSize:], out, length, frag)
		return ethernetSize + header.IPv4MinimumSize
	}
	ethernetHeader(b, out.to, w.mac, uint16(header.IPv6ProtocolNumber))
	return ethernetSize + putIPv6(b[ethernetSize:], out, length, frag)
}

// putIPv4 writes an IPv4 header with its checksum.
func putIPv4(b []byte, out *outgoing, length int, frag fragment) {
	fields := header.IPv4Fields{
		TotalLength:    uint16(header.IPv4MinimumSize + length),
		ID:             uint16(frag.id),
		FragmentOffset: uint16(frag.offset),
		TTL:            out.ttl,
		Protocol:       uint8(out.proto),
		SrcAddr:        tcpip.AddrFrom4(out.src.As4()),
		DstAddr:        tcpip.AddrFrom4(out.dst.As4()),
	}
	if frag.more {
		fields.Flags = header.IPv4FlagMoreFragments
	}
	ip := header.IPv4(b)
	ip.Encode(&fields)
	ip.SetChecksum(^ip.CalculateChecksum())
}

// putIPv6 writes an IPv6 header, with that of a fragment where it is one, and
// returns their size.
func putIPv6(ip []byte, out *outgoing, length int, frag fragment) int {
	clear(ip[:8])
	ip[0] = 6 << 4
	ip[6], ip[7] = uint8(out.proto), out.ttl
	s, d := out.src.As16(), out.dst.As16()
	copy(ip[8:], s[:])
	copy(ip[24:], d[:])
	size := header.IPv6MinimumSize
	if frag.more || frag.offset > 0 {
		ip[6] = uint8(header.IPv6FragmentExtHdrIdentifier)
		size += putIPv6Fragment(ip[size:], out.proto, frag)
	}
	binary.BigEndian.PutUint16(ip[4:], uint16(length+size-header.IPv6MinimumSize))
	return size
}

// putIPv6Fragment writes a fragment header and returns its size.
func putIPv6Fragment(b []byte, proto tcpip.TransportProtocolNumber, frag fragment) int {
	b[0], b[1] = uint8(proto), 0
	offset := uint16(frag.offset)
	if frag.more {
		offset |= 1
	}
	binary.BigEndian.PutUint16(b[2:], offset)
	binary.BigEndian.PutUint32(b[4:], frag.id)
	return header.IPv6FragmentExtHdrLength
}

// putUDP writes a UDP header. A partial checksum covers the pseudo-header only,
// and is finished by the kernel.
func putUDP(b []byte, src, dst netip.AddrPort, payload []byte, partial bool) {
	length := uint16(header.UDPMinimumSize + len(payload))
	udp := header.UDP(b)
	udp.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: length})
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, toAddress(src.Addr()), toAddress(dst.Addr()), length)
	if partial {
		udp.SetChecksum(sum)
		return
	}
	sum = ^udp.CalculateChecksum(checksum.Checksum(payload, sum))
	if sum == 0 {
		sum = 0xffff // 0 would be no checksum (RFC 768)
	}
	udp.SetChecksum(sum)
}
