package slirp

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// verdict is what becomes of a frame from the namespace.
type verdict int

const (
	// drop: broken, or not for us.
	drop verdict = iota
	// toStack: gVisor's stack takes it.
	toStack
	// toTCP: a TCP segment in a packet of its own, which is for a relay.
	toTCP
	// toUDP: a whole UDP datagram, which is relayed without the stack.
	toUDP
	// toEcho: a whole echo request to the outside, which is relayed as well.
	toEcho
	// expire: a packet to the outside whose time to live ends here.
	expire
	// toDHCP and toRouter: a guest asks for its configuration.
	toDHCP
	toRouter
	// toSender: an error about a datagram from outside, which is seen to already.
	toSender
)

// datagram is a UDP datagram in a frame, or an echo request (echo.go), or a TCP segment.
// Its payload is part of the frame.
type datagram struct {
	src, dst netip.AddrPort
	mac      macAddr // of the sender
	payload  []byte
	// segment, where not 0, cuts the payload into datagrams of this size.
	segment uint16
	// ttl is the time to live, or hop limit: at least 2, but for what is for the gateway
	// itself. whole says that it came in one piece and is not to be fragmented on its
	// way: the packet has DF, or is IPv6.
	ttl   uint8
	whole bool
}

// finding is what the inspector learns of a frame.
type finding struct {
	proto tcpip.NetworkProtocolNumber

	// group says that the frame is for more stations than one.
	group bool

	// datagram is filled in for the verdicts that name a relay or guests. For toTCP its
	// payload is the segment.
	datagram datagram
}

// macAddr is an Ethernet address.
type macAddr [header.EthernetAddressSize]byte

const ethernetSize = header.EthernetMinimumSize

var broadcastIPv4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// inspector judges the frames that come from the namespace, before anything
// else sees them. No bytes are trusted: every length is checked here, and what
// is passed on to the stack has sound Ethernet and IP headers and, since the
// stack leaves that to the link, sound checksums. It comes from an address of the
// namespace's own networks (subnet.holds), the child's or that of a guest behind a
// bridge, and is for us alone; what has no such address yet may ask for one.
type inspector struct {
	mac     macAddr
	subnets [2]subnet
	inbound *inbound // whose flows alone come from a loopback address; nil has none

	// onRefusal and onComplaint are given each, and say whether it was about a flow. Nil
	// has none.
	onRefusal   func(*refusal) bool
	onComplaint func(*complaint) bool
}

// inspect judges a frame, which begins with its Ethernet header.
func (in *inspector) inspect(frame []byte, h vnetHeader, f *finding) verdict {
	if len(frame) < ethernetSize {
		return drop
	}
	dst, src := macAddr(frame[0:6]), macAddr(frame[6:12])
	if dst != in.mac && dst[0]&1 == 0 || !soundMAC(src[:]) || src == in.mac {
		return drop
	}
	f.proto = header.Ethernet(frame).Type()
	f.group = dst[0]&1 != 0
	f.datagram.mac = src
	packet := frame[ethernetSize:]
	switch f.proto {
	case header.ARPProtocolNumber:
		return in.inspectARP(packet)
	case header.IPv4ProtocolNumber:
		return in.inspectIPv4(packet, h, f)
	case header.IPv6ProtocolNumber:
		return in.inspectIPv6(packet, h, f)
	}
	return drop
}

// inspectIPv4 checks the header (RFC 791) and takes whole UDP datagrams apart.
func (in *inspector) inspectIPv4(p []byte, h vnetHeader, f *finding) verdict {
	if len(p) < header.IPv4MinimumSize {
		return drop
	}
	ip := header.IPv4(p)
	headerLen, total := int(ip.HeaderLength()), int(ip.TotalLength())
	if header.IPVersion(p) != header.IPv4Version || headerLen < header.IPv4MinimumSize || total < headerLen || total > len(p) {
		return drop
	}
	if checksum.Checksum(p[:headerLen], 0) != 0xffff {
		return drop
	}
	src, dst := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
	if ip.TransportProtocol() == header.ICMPv4ProtocolNumber && in.refusal(p[headerLen:total], src, dst) {
		return toSender
	}
	whole := !ip.More() && ip.FragmentOffset() == 0
	sum := header.PseudoHeaderChecksum(ip.TransportProtocol(), tcpip.AddrFrom4Slice(p[12:16]), tcpip.AddrFrom4Slice(p[16:20]), uint16(total-headerLen))
	if dst == broadcastIPv4 {
		if !whole || ip.TransportProtocol() != header.UDPProtocolNumber {
			return drop
		}
		return in.inspectQuestion(p[headerLen:total], h, sum, src, dst, &f.datagram)
	}
	// What a station sends to all, a router sends to nobody (RFC 1812, 5.3.4).
	if f.group || src == dst || dst.IsMulticast() {
		return drop
	}
	if !in.guest(src) && !in.inbound.answers(ip.TransportProtocol(), p[headerLen:total], src, dst) {
		return drop
	}
	if ip.TTL() <= 1 && !in.ours(dst) {
		return expires(ip.FragmentOffset() != 0 || ip.TransportProtocol() == header.ICMPv4ProtocolNumber && !isEcho(p[headerLen:total], uint8(header.ICMPv4Echo)))
	}
	if !whole || headerLen > header.IPv4MinimumSize && !soundOptions(ip.Options()) {
		return toStack // which says what is wrong with the options
	}
	f.datagram.ttl, f.datagram.whole = ip.TTL(), ip.Flags()&header.IPv4FlagDontFragment != 0
	switch ip.TransportProtocol() {
	case header.TCPProtocolNumber:
		return inspectTCP(p[headerLen:total], h, sum, src, dst, &f.datagram)
	case header.UDPProtocolNumber:
		if !h.finishInner(p[:total], headerLen) {
			return drop
		}
		v := inspectUDP(p[headerLen:total], h, sum, src, dst, &f.datagram)
		if v == toUDP && in.isDHCP(&f.datagram) {
			return toDHCP
		}
		return v
	case header.ICMPv4ProtocolNumber:
		if !in.ours(dst) {
			return inspectEcho(p[headerLen:total], src, dst, &f.datagram)
		}
	}
	return toStack
}

// soundOptions says whether the options of an IPv4 header are whole (RFC 791, 3.1).
func soundOptions(o header.IPv4Options) bool {
	for it := o.MakeIterator(); ; {
		option, done, err := it.Next()
		if done || err != nil || option.Type() == header.IPv4OptionListEndType {
			return err == nil
		}
	}
}

// refusal says whether an ICMP message is an error about what was sent on a flow.
func (in *inspector) refusal(message []byte, from, to netip.Addr) bool {
	q, ok := parseError(message, from, to)
	if !ok {
		return false
	}
	if r, ok := q.refusal(); ok && in.onRefusal != nil {
		return in.onRefusal(&r)
	}
	c, ok := q.complaint()
	return ok && in.onComplaint != nil && in.onComplaint(&c)
}

// expires is the verdict on a packet whose time to live ends here. Nothing is said
// about an ICMP message, but for a request, or a later fragment (RFC 1122,
// 3.2.2; RFC 4443, 2.4).
func expires(silently bool) verdict {
	if silently {
		return drop
	}
	return expire
}

// isEcho says whether an ICMP message is an echo request, which has this type.
func isEcho(message []byte, request uint8) bool { return len(message) > 0 && message[0] == request }

// inspectIPv6 checks the header (RFC 8200) and takes whole UDP datagrams apart.
// Extension headers are the stack's, but what stands behind them is no way around
// inspectICMPv6.
func (in *inspector) inspectIPv6(p []byte, h vnetHeader, f *finding) verdict {
	if len(p) < header.IPv6MinimumSize {
		return drop
	}
	ip := header.IPv6(p)
	total := header.IPv6MinimumSize + int(ip.PayloadLength())
	if header.IPVersion(p) != header.IPv6Version || total > len(p) || !in.subnets[1].enabled() {
		return drop
	}
	src, dst := netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
	if f.group && !dst.IsMulticast() || src == dst {
		return drop
	}
	rest := p[header.IPv6MinimumSize:total]
	if ip.NextHeader() == uint8(header.ICMPv6ProtocolNumber) {
		if in.refusal(rest, src, dst) {
			return toSender
		}
		return in.inspectICMPv6(p[:total], src, dst, f)
	}
	next := tcpip.TransportProtocolNumber(ip.NextHeader())
	sum := header.PseudoHeaderChecksum(next, tcpip.AddrFrom16Slice(p[8:24]), tcpip.AddrFrom16Slice(p[24:40]), uint16(len(rest)))
	if dst.IsMulticast() {
		if next != header.UDPProtocolNumber {
			return drop
		}
		return in.inspectQuestion(rest, h, sum, src, dst, &f.datagram)
	}
	if !in.guest(src) && !in.inbound.answers(next, rest, src, dst) {
		return drop
	}
	if ip.HopLimit() <= 1 && !in.ours(dst) {
		return expires(next == header.IPv6FragmentHeader && laterFragment(rest))
	}
	f.datagram.ttl, f.datagram.whole = ip.HopLimit(), true
	switch next {
	case header.TCPProtocolNumber:
		return inspectTCP(rest, h, sum, src, dst, &f.datagram)
	case header.UDPProtocolNumber:
		if !h.finishInner(p[:total], header.IPv6MinimumSize) {
			return drop
		}
		return inspectUDP(rest, h, sum, src, dst, &f.datagram)
	}
	if message := icmpv6Behind(ip.NextHeader(), rest); len(message) > 0 && !forRouters(header.ICMPv6(message).Type()) {
		return drop
	}
	return toStack
}

// icmpv6Behind is the ICMPv6 message behind extension headers (RFC 8200, 4.1), nil
// where there is none. The stack takes no neighbour discovery out of fragments (RFC
// 6980).
func icmpv6Behind(next uint8, p []byte) []byte {
	const unit = 8
	for {
		switch next {
		case uint8(header.ICMPv6ProtocolNumber):
			return p
		case uint8(header.IPv6HopByHopOptionsExtHdrIdentifier), uint8(header.IPv6RoutingExtHdrIdentifier), uint8(header.IPv6DestinationOptionsExtHdrIdentifier):
		default:
			return nil
		}
		if len(p) < unit || len(p) < (int(p[1])+1)*unit {
			return nil
		}
		next, p = p[0], p[(int(p[1])+1)*unit:]
	}
}

// laterFragment says whether an IPv6 fragment is not the first.
func laterFragment(p []byte) bool {
	return len(p) < header.IPv6FragmentExtHdrLength || binary.BigEndian.Uint16(p[2:])&^7 != 0
}

// inspectTCP checks a segment. sum is the checksum of the pseudo-header; the rest of the
// checksum is verified unless the kernel vouches for it.
func inspectTCP(p []byte, h vnetHeader, sum uint16, src, dst netip.Addr, d *datagram) verdict {
	if len(p) < header.TCPMinimumSize {
		return drop
	}
	segment := header.TCP(p)
	headerLen := int(segment.DataOffset())
	if headerLen < header.TCPMinimumSize || headerLen > len(p) || segment.SourcePort() == 0 || segment.DestinationPort() == 0 {
		return drop
	}
	if !h.checksumTrusted() && checksum.Checksum(p, sum) != 0xffff {
		return drop
	}
	d.src = netip.AddrPortFrom(src, segment.SourcePort())
	d.dst = netip.AddrPortFrom(dst, segment.DestinationPort())
	d.payload = p
	return toTCP
}

// inspectUDP checks a datagram, and its checksum as inspectTCP does, and takes it
// apart.
func inspectUDP(p []byte, h vnetHeader, sum uint16, src, dst netip.Addr, d *datagram) verdict {
	if len(p) < header.UDPMinimumSize {
		return drop
	}
	udp := header.UDP(p)
	length := int(udp.Length())
	if h.segmentType&^vnetSegmentECN == vnetSegmentUDP && h.segmentSize > 0 {
		d.segment = h.segmentSize
		length = len(p)
	} else {
		d.segment = 0
	}
	if length < header.UDPMinimumSize || length > len(p) || udp.SourcePort() == 0 || udp.DestinationPort() == 0 {
		return drop
	}
	// A checksum of 0 is none, which only IPv4 allows (RFC 768, RFC 8200).
	switch {
	case h.checksumTrusted():
	case udp.Checksum() == 0:
		if src.Is6() {
			return drop
		}
	case length != len(p) || checksum.Checksum(p, sum) != 0xffff:
		return drop
	}
	d.src = netip.AddrPortFrom(src, udp.SourcePort())
	d.dst = netip.AddrPortFrom(dst, udp.DestinationPort())
	d.payload = p[header.UDPMinimumSize:length]
	return toUDP
}

// inspectQuestion lets a datagram to all through that is for the DHCP server.
func (in *inspector) inspectQuestion(p []byte, h vnetHeader, sum uint16, src, dst netip.Addr, d *datagram) verdict {
	if inspectUDP(p, h, sum, src, dst, d) != toUDP || !in.isDHCP(d) {
		return drop
	}
	return toDHCP
}

// plausibleSource says whether a datagram can be answered at all.
func plausibleSource(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !reservedIPv4(a)
}

// ethernetHeader writes an Ethernet header.
func ethernetHeader(b []byte, dst, src macAddr, proto uint16) {
	copy(b[0:6], dst[:])
	copy(b[6:12], src[:])
	binary.BigEndian.PutUint16(b[12:], proto)
}
