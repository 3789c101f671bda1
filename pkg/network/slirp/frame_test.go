package slirp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	childIPv4 = netip.MustParseAddr("10.0.2.100")
	childIPv6 = netip.MustParseAddr("fd67:6174:656b::100")
	worldIPv4 = netip.MustParseAddr("198.51.100.7")
	worldIPv6 = netip.MustParseAddr("2001:db8::7")
)

// testInspector is the inspector of the default networks.
func testInspector(t testing.TB) *inspector {
	t.Helper()
	return newInspector(t, gatewayMAC, defaultIPv4, defaultIPv6)
}

// outsideInspector judges frames that go the other way, from the outside to the
// guest.
func outsideInspector(t testing.TB) *inspector {
	t.Helper()
	return newInspector(t, guestMAC, netip.PrefixFrom(worldIPv4, 24).Masked(), netip.PrefixFrom(worldIPv6, 64).Masked())
}

func newInspector(t testing.TB, mac macAddr, networks ...netip.Prefix) *inspector {
	t.Helper()
	in := &inspector{mac: mac}
	for i, p := range networks {
		var err error
		if in.subnets[i], err = newSubnet(p); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

// ipFrame is a frame to the gateway with an IP packet around a payload.
func ipFrame(src, dst netip.Addr, proto tcpip.TransportProtocolNumber, payload []byte) []byte {
	var b []byte
	if dst.Is4() {
		b = make([]byte, ethernetSize+header.IPv4MinimumSize)
		ethernetHeader(b, gatewayMAC, guestMAC, uint16(header.IPv4ProtocolNumber))
		ip := header.IPv4(b[ethernetSize:])
		ip.Encode(&header.IPv4Fields{
			TotalLength: uint16(header.IPv4MinimumSize + len(payload)),
			TTL:         64, Protocol: uint8(proto), SrcAddr: toAddress(src), DstAddr: toAddress(dst),
		})
		ip.SetChecksum(^ip.CalculateChecksum())
	} else {
		b = make([]byte, ethernetSize+header.IPv6MinimumSize)
		ethernetHeader(b, gatewayMAC, guestMAC, uint16(header.IPv6ProtocolNumber))
		header.IPv6(b[ethernetSize:]).Encode(&header.IPv6Fields{
			PayloadLength:     uint16(len(payload)),
			TransportProtocol: proto, HopLimit: 64, SrcAddr: toAddress(src), DstAddr: toAddress(dst),
		})
	}
	return append(b, payload...)
}

// udpFrame is a frame to the gateway with a datagram.
func udpFrame(src, dst netip.AddrPort, payload string) []byte {
	udp := make([]byte, header.UDPMinimumSize, header.UDPMinimumSize+len(payload))
	putUDP(udp, src, dst, []byte(payload), false)
	return ipFrame(src.Addr(), dst.Addr(), header.UDPProtocolNumber, append(udp, payload...))
}

// synFrame is a frame to the gateway with a SYN.
func synFrame(src, dst netip.AddrPort) []byte {
	tcp := header.TCP(make([]byte, header.TCPMinimumSize))
	tcp.Encode(&header.TCPFields{
		SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: 1000,
		DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535,
	})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, toAddress(src.Addr()), toAddress(dst.Addr()), uint16(len(tcp)))
	tcp.SetChecksum(^checksum.Checksum(tcp, sum))
	return ipFrame(src.Addr(), dst.Addr(), header.TCPProtocolNumber, tcp)
}

// arpRequest is a frame that asks for an address.
func arpRequest(target netip.Addr) []byte {
	b := make([]byte, ethernetSize+header.ARPSize)
	ethernetHeader(b, macAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, guestMAC, uint16(header.ARPProtocolNumber))
	arp := header.ARP(b[ethernetSize:])
	arp.SetIPv4OverEthernet()
	arp.SetOp(header.ARPRequest)
	copy(arp.HardwareAddressSender(), guestMAC[:])
	copy(arp.ProtocolAddressSender(), childIPv4.AsSlice())
	copy(arp.ProtocolAddressTarget(), target.AsSlice())
	return b
}

// neighborSolicit is a frame that asks for an address.
func neighborSolicit(target netip.Addr) []byte {
	p := make([]byte, header.ICMPv6NeighborSolicitMinimumSize)
	p[0] = uint8(header.ICMPv6NeighborSolicit)
	copy(p[8:], target.AsSlice())
	return icmpv6Frame(target, p)
}

func icmpv6Frame(dst netip.Addr, p []byte) []byte {
	icmp := header.ICMPv6(p)
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: toAddress(childIPv6), Dst: toAddress(dst)}))
	f := ipFrame(childIPv6, dst, header.ICMPv6ProtocolNumber, p)
	f[ethernetSize+7] = 255 // hop limit
	return f
}

// withTTL is a frame with another time to live, or hop limit.
func withTTL(frame []byte, ttl uint8) []byte {
	return changed(frame, func(ip []byte) {
		if ip[0]>>4 == 4 {
			ip[8] = ttl
		} else {
			ip[7] = ttl
		}
	})
}

// changed is a frame with a change; a checksum of an IPv4 header is made right
// again.
func changed(frame []byte, change func(ip []byte)) []byte {
	f := slices.Clone(frame)
	ip := f[ethernetSize:]
	change(ip)
	if ip[0]>>4 == 4 && len(ip) >= header.IPv4MinimumSize {
		h := header.IPv4(ip)
		h.SetChecksum(0)
		h.SetChecksum(^checksum.Checksum(ip[:min(len(ip), max(20, int(h.HeaderLength())))], 0))
	}
	return f
}

func TestInspectorJudgesFrames(t *testing.T) {
	in := testInspector(t)
	src4, dst4 := netip.AddrPortFrom(childIPv4, 4000), netip.AddrPortFrom(worldIPv4, 53)
	src6, dst6 := netip.AddrPortFrom(childIPv6, 4000), netip.AddrPortFrom(worldIPv6, 53)
	udp4, udp6 := udpFrame(src4, dst4, "hello"), udpFrame(src6, dst6, "hello")
	syn4, syn6 := synFrame(src4, dst4), synFrame(src6, dst6)
	flip := func(f []byte, at int) []byte {
		f = slices.Clone(f)
		f[at] ^= 1
		return f
	}
	from4 := func(s string) []byte { return udpFrame(netip.AddrPortFrom(netip.MustParseAddr(s), 1), dst4, "x") }
	to4 := func(s string) []byte { return udpFrame(src4, netip.AddrPortFrom(netip.MustParseAddr(s), 1), "x") }
	noSum := func(f []byte, at int) []byte {
		f = slices.Clone(f)
		f[at], f[at+1] = 0, 0
		return f
	}
	const udpSum4, udpSum6 = ethernetSize + 20 + 6, ethernetSize + 40 + 6
	for _, test := range []struct {
		name  string
		frame []byte
		want  verdict
	}{
		{"an IPv4 datagram", udp4, toUDP},
		{"an IPv6 datagram", udp6, toUDP},
		{"a datagram with padding of Ethernet", append(slices.Clone(udp4), 0, 0, 0), toUDP},
		{"an IPv4 SYN", syn4, toTCP},
		{"an IPv6 SYN", syn6, toTCP},
		{"an ARP request for the gateway", arpRequest(netip.MustParseAddr("10.0.2.2")), toStack},
		{"an ARP request for the DNS server", arpRequest(netip.MustParseAddr("10.0.2.3")), toStack},
		{"an ARP request for somebody else", arpRequest(netip.MustParseAddr("10.0.2.9")), drop},
		{"an ARP request for the child itself", arpRequest(childIPv4), drop},
		{"a neighbour solicitation for the gateway", neighborSolicit(netip.MustParseAddr("fd67:6174:656b::2")), toStack},
		{"a neighbour solicitation for somebody else", neighborSolicit(netip.MustParseAddr("fd67:6174:656b::9")), drop},
		{"an IPv6 echo request to the gateway", icmpv6Frame(netip.MustParseAddr("fd67:6174:656b::2"), []byte{128, 0, 0, 0, 0, 1, 0, 1}), toStack},
		{"an IPv6 echo request to the world", icmpv6Frame(worldIPv6, []byte{128, 0, 0, 0, 0, 1, 0, 1}), toEcho},
		{"an IPv6 echo request with a wrong checksum", ipFrame(childIPv6, worldIPv6, header.ICMPv6ProtocolNumber, []byte{128, 0, 1, 1, 0, 1, 0, 1}), drop},
		{"an IPv4 echo request to the world", echoRequest(worldIPv4), toEcho},
		{"an IPv4 echo request to the gateway", echoRequest(netip.MustParseAddr("10.0.2.2")), toStack},
		{"half an echo request", ipFrame(childIPv4, worldIPv4, header.ICMPv4ProtocolNumber, []byte{8, 0, 0}), drop},
		{"a datagram at the end of its way", withTTL(udp4, 1), expire},
		{"a datagram beyond it", withTTL(udp4, 0), expire},
		{"an IPv6 datagram at the end of its way", withTTL(udp6, 1), expire},
		{"a datagram to the gateway at the end of its way", withTTL(udpFrame(netip.AddrPortFrom(childIPv4, 4000), netip.MustParseAddrPort("10.0.2.2:53"), "x"), 1), toUDP},
		{"an echo request at the end of its way", withTTL(echoRequest(worldIPv4), 1), expire},
		{"an echo reply at the end of its way", withTTL(changed(echoRequest(worldIPv4), func(ip []byte) { ip[20] = 0 }), 1), drop},
		{"a later fragment at the end of its way", withTTL(changed(udp4, func(ip []byte) { ip[7] = 8 }), 1), drop},
		{"nothing", nil, drop},
		{"less than an Ethernet header", udp4[:13], drop},
		{"an Ethernet header only", udp4[:14], drop},
		{"half an IPv4 header", udp4[:30], drop},
		{"half an IPv6 header", udp6[:50], drop},
		{"a datagram that was cut off", udp4[:len(udp4)-1], drop},
		{"a SYN that was cut off", syn6[:len(syn6)-1], drop},
		{"another station's frame", flip(udp4, 5), drop},
		{"a frame from a group", flip(udp4, 6), drop},
		{"an unknown protocol", flip(udp4, 12), drop},
		{"a version that does not fit the Ethernet type", changed(udp4, func(ip []byte) { ip[0] = 0x65 }), drop},
		{"a header length below the least", changed(udp4, func(ip []byte) { ip[0] = 0x44 }), drop},
		{"a header length beyond the packet", changed(udp4, func(ip []byte) { ip[0] = 0x4f; binary.BigEndian.PutUint16(ip[2:], 33) }), drop},
		{"a bad IPv4 header checksum", flip(udp4, ethernetSize+10), drop},
		{"a bad UDP checksum", flip(udp4, len(udp4)-1), drop},
		{"a bad UDP checksum over IPv6", flip(udp6, len(udp6)-1), drop},
		{"a bad TCP checksum", flip(syn4, len(syn4)-1), drop},
		{"no UDP checksum over IPv4", noSum(udp4, udpSum4), toUDP},
		{"no UDP checksum over IPv6", noSum(udp6, udpSum6), drop},
		{"a UDP length beyond the packet", changed(udp4, func(ip []byte) { ip[25]++ }), drop},
		{"a UDP length below the header", changed(udp4, func(ip []byte) { ip[25] = 7 }), drop},
		{"a TCP header beyond the packet", changed(syn4, func(ip []byte) { ip[32] = 0xf0 }), drop},
		{"a TCP header below the least", changed(syn4, func(ip []byte) { ip[32] = 0x40 }), drop},
		{"a fragment", changed(udp4, func(ip []byte) { ip[6] = 0x20 }), toStack},
		{"from the address that it is for", udpFrame(src4, netip.AddrPortFrom(childIPv4, 53), "x"), drop},
		{"from the IPv6 address that it is for", udpFrame(src6, netip.AddrPortFrom(childIPv6, 53), "x"), drop},
		{"a loopback source", from4("127.0.0.1"), drop},
		{"an unspecified source", from4("0.0.0.0"), drop},
		{"a multicast source", from4("224.0.0.1"), drop},
		{"multicast", to4("224.0.0.251"), drop},
		{"the limited broadcast", to4("255.255.255.255"), drop},
		{"IPv6 multicast", udpFrame(src6, netip.MustParseAddrPort("[ff02::fb]:5353"), "x"), drop},
	} {
		t.Run(test.name, func(t *testing.T) {
			var f finding
			if got := in.inspect(test.frame, vnetHeader{}, &f); got != test.want {
				t.Errorf("verdict %d, want %d", got, test.want)
			}
		})
	}
}

func TestInspectorTakesDatagramsApart(t *testing.T) {
	in := testInspector(t)
	src, dst := netip.AddrPortFrom(childIPv4, 4000), netip.AddrPortFrom(worldIPv4, 53)
	frame := append(udpFrame(src, dst, "hello"), "padding"...)
	var f finding
	if in.inspect(frame, vnetHeader{}, &f) != toUDP {
		t.Fatal("not taken")
	}
	d := f.datagram
	if d.src != src || d.dst != dst || d.mac != guestMAC || string(d.payload) != "hello" || d.segment != 0 {
		t.Errorf("got %+v", d)
	}
	// Segments of a large datagram, with a checksum that is not finished.
	frame = udpFrame(src, dst, "aabbc")
	frame[len(frame)-1] ^= 1
	h := vnetHeader{flags: vnetNeedsChecksum, segmentType: vnetSegmentUDP, segmentSize: 2}
	if in.inspect(frame, h, &f) != toUDP || f.datagram.segment != 2 || len(f.datagram.payload) != 5 {
		t.Errorf("got %+v", f.datagram)
	}
}

// What VXLAN in the namespace sends: the checksum that is not finished is that of the
// segment in the payload, and the datagram's own is as if it were.
func TestChecksumsInsidePayloadsAreFinished(t *testing.T) {
	in := testInspector(t)
	a, b := netip.MustParseAddrPort("10.42.0.2:4000"), netip.MustParseAddrPort("10.42.1.2:80")
	inner := synFrame(a, b)
	const tcpAt, sumAt = ethernetSize + header.IPv4MinimumSize, 16 // RFC 9293, 3.1
	for _, family := range []struct {
		src, dst netip.Addr
		headers  int
	}{
		{childIPv4, worldIPv4, ethernetSize + header.IPv4MinimumSize + header.UDPMinimumSize},
		{childIPv6, worldIPv6, ethernetSize + header.IPv6MinimumSize + header.UDPMinimumSize},
	} {
		finished := udpFrame(netip.AddrPortFrom(family.src, 4000), netip.AddrPortFrom(family.dst, 8472), string(inner))
		for name, c := range map[string]struct {
			change func(frame []byte, h *vnetHeader)
			want   verdict
		}{
			"as it comes":                {func([]byte, *vnetHeader) {}, toUDP},
			"a datagram that is damaged": {func(frame []byte, _ *vnetHeader) { frame[family.headers] ^= 1 }, drop},
			"no room for the checksum":   {func(frame []byte, h *vnetHeader) { h.checksumOffset = uint16(len(frame)) }, drop},
			"a start behind the end":     {func(frame []byte, h *vnetHeader) { h.checksumStart = 0xffff }, drop},
		} {
			frame := slices.Clone(finished)
			h := vnetHeader{flags: vnetNeedsChecksum, checksumStart: uint16(family.headers + tcpAt), checksumOffset: sumAt}
			pseudo := header.PseudoHeaderChecksum(header.TCPProtocolNumber, toAddress(a.Addr()), toAddress(b.Addr()), header.TCPMinimumSize)
			binary.BigEndian.PutUint16(frame[int(h.checksumStart)+sumAt:], pseudo)
			c.change(frame, &h)
			var f finding
			if got := in.inspect(frame, h, &f); got != c.want {
				t.Errorf("%v, %s: verdict %v, want %v", family.dst, name, got, c.want)
			} else if got == toUDP && string(f.datagram.payload) != string(inner) {
				t.Errorf("%v, %s: the payload is\n%x, want\n%x", family.dst, name, f.datagram.payload, inner)
			}
		}
	}
}

func TestDatagramsAreWrittenAsFrames(t *testing.T) {
	in := outsideInspector(t)
	for _, plain := range []bool{true, false} {
		for _, test := range []struct{ src, dst netip.AddrPort }{
			{netip.AddrPortFrom(worldIPv4, 53), netip.AddrPortFrom(childIPv4, 4000)},
			{netip.AddrPortFrom(worldIPv6, 53), netip.AddrPortFrom(childIPv6, 4000)},
		} {
			r := newRig(t, rigOptions{bare: true, plain: plain})
			w := r.e.udp.writer
			w.write(guestMAC, test.src, test.dst, []byte("hello"))
			buf := make([]byte, 2000)
			n, err := r.wire.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			var h vnetHeader
			frame := buf[:n]
			if !plain {
				h = parseVnetHeader([vnetHeaderSize]byte(buf))
				frame = frame[vnetHeaderSize:]
				// Finish the checksum as the kernel does.
				sum := checksum.Checksum(frame[h.checksumStart:], 0)
				binary.BigEndian.PutUint16(frame[h.checksumStart+h.checksumOffset:], ^sum)
			}
			var f finding
			if in.inspect(frame, vnetHeader{}, &f) != toUDP {
				t.Fatalf("the frame %x is not sound", frame)
			}
			if d := f.datagram; d.src != test.src || d.dst != test.dst || !bytes.Equal(d.payload, []byte("hello")) || d.mac != gatewayMAC {
				t.Errorf("got %+v", d)
			}
		}
	}
}
