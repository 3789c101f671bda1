package slirp

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/network/slirp/dhcp"
)

// A guest of the namespace: a machine that is bridged to the interface.
var (
	nestedMAC  = macAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	nestedIPv4 = netip.MustParseAddr("10.0.2.101")
	nestedIPv6 = netip.MustParseAddr("fd67:6174:656b::101")
	nestedLink = netip.MustParseAddr("fe80::5054:ff:fe12:3456")
)

// between gives a frame other Ethernet addresses.
func between(src, dst macAddr, frame []byte) []byte {
	f := slices.Clone(frame)
	copy(f, dst[:])
	copy(f[6:], src[:])
	return f
}

// toAll is a frame of the nested guest to all stations, or to a group.
func toAll(frame []byte) []byte {
	group := macAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if ip := frame[ethernetSize:]; ip[0]>>4 == 6 {
		copy(group[:], []byte{0x33, 0x33})
		copy(group[2:], ip[36:40])
	}
	return between(nestedMAC, group, frame)
}

// discoverFrame is a DHCPDISCOVER.
func discoverFrame(t testing.TB, mac macAddr) []byte {
	t.Helper()
	return message4(t, mac, dhcpv4.MessageTypeDiscover)
}

// message4 is a frame with a message of DHCPv4 to all.
func message4(t testing.TB, mac macAddr, kind dhcpv4.MessageType, with ...dhcpv4.Modifier) []byte {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(mac[:]), dhcpv4.WithMessageType(kind)}, with...)...)
	if err != nil {
		t.Fatal(err)
	}
	return between(mac, macAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, udpFrame(
		netip.AddrPortFrom(netip.IPv4Unspecified(), dhcp.ClientPort4), netip.AddrPortFrom(broadcastIPv4, dhcp.ServerPort4), string(m.ToBytes())))
}

// solicit6Frame is a Solicit of DHCPv6.
func solicit6Frame() []byte {
	m := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeSolicit}
	m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: nestedMAC[:]}))
	m.AddOption(&dhcpv6.OptIANA{IaId: [4]byte{1}})
	return toAll(udpFrame(netip.AddrPortFrom(nestedLink, dhcp.ClientPort6), netip.AddrPortFrom(dhcp.Servers6, dhcp.ServerPort6), string(m.ToBytes())))
}

// messageFrame is a frame with a message of ICMPv6, as neighbour discovery has it.
func messageFrame(src, dst netip.Addr, message ...byte) []byte {
	p := slices.Clone(message)
	sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, toAddress(src), toAddress(dst), uint16(len(p)))
	header.ICMPv6(p).SetChecksum(^checksum.Checksum(p, sum))
	f := withTTL(ipFrame(src, dst, header.ICMPv6ProtocolNumber, p), header.NDPHopLimit)
	if dst.IsMulticast() {
		return toAll(f)
	}
	return between(nestedMAC, gatewayMAC, f)
}

// about is a message of neighbour discovery about an address, with options.
func about(kind header.ICMPv6Type, target netip.Addr, options ...byte) []byte {
	return slices.Concat([]byte{uint8(kind), 0, 0, 0, 0, 0, 0, 0}, target.AsSlice(), options)
}

// linkLayer is an option of neighbour discovery.
func linkLayer(kind byte, mac macAddr) []byte { return append([]byte{kind, 1}, mac[:]...) }

var allRouters = netip.IPv6LinkLocalAllRouters()

// routerSolicit is the question for a router.
func routerSolicit(src netip.Addr, options ...byte) []byte {
	return messageFrame(src, allRouters, append([]byte{uint8(header.ICMPv6RouterSolicit), 0, 0, 0, 0, 0, 0, 0}, options...)...)
}

// arpFrame is one of the nested guest.
func arpFrame(op header.ARPOp, senderMAC macAddr, sender, target string) []byte {
	f := between(nestedMAC, gatewayMAC, arpRequest(netip.MustParseAddr(target)))
	arp := header.ARP(f[ethernetSize:])
	arp.SetOp(op)
	copy(arp.HardwareAddressSender(), senderMAC[:])
	copy(arp.ProtocolAddressSender(), netip.MustParseAddr(sender).AsSlice())
	return f
}

func TestInspectorKnowsGuests(t *testing.T) {
	in := testInspector(t)
	world4, world6 := netip.AddrPortFrom(worldIPv4, 53), netip.AddrPortFrom(worldIPv6, 53)
	from := func(s string) []byte {
		a := netip.AddrPortFrom(netip.MustParseAddr(s), 4000)
		if a.Addr().Is4() {
			return udpFrame(a, world4, "x")
		}
		return udpFrame(a, world6, "x")
	}
	discover := discoverFrame(t, nestedMAC)
	dhcpTo := func(src, dst string) []byte {
		return udpFrame(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), "x")
	}
	source := linkLayer(1, nestedMAC)
	gateway6 := netip.MustParseAddr("fd67:6174:656b::2")
	solicited := netip.MustParseAddr("ff02::1:ff00:2")
	for _, test := range []struct {
		name  string
		frame []byte
		want  verdict
	}{
		{"a datagram of a nested guest", between(nestedMAC, gatewayMAC, from("10.0.2.101")), toUDP},
		{"a datagram of a nested guest over IPv6", between(nestedMAC, gatewayMAC, from("fd67:6174:656b::5054:ff:fe12:3456")), toUDP},
		{"the gateway's address as a source", from("10.0.2.2"), drop},
		{"the DNS server's address as a source", from("fd67:6174:656b::3"), drop},
		{"the network's address as a source", from("10.0.2.0"), drop},
		{"the broadcast address as a source", from("10.0.2.255"), drop},
		{"the routers' address as a source", from("fd67:6174:656b::"), drop},
		{"an address of the outside as a source", from("198.51.100.9"), drop},
		{"an IPv6 address of the outside as a source", from("2001:db8::9"), drop},
		{"another private network's address as a source", from("192.168.1.2"), drop},
		{"a link-local address as a source for the outside", from("fe80::1"), drop},
		{"the gateway's Ethernet address as a source", between(gatewayMAC, gatewayMAC, from("10.0.2.101")), drop},
		{"no Ethernet address as a source", between(macAddr{}, gatewayMAC, from("10.0.2.101")), drop},
		{"a datagram to the outside in a frame to all", toAll(from("10.0.2.101")), drop},
		{"an IPv6 datagram to the outside in a frame to a group", between(nestedMAC, macAddr{0x33, 0x33, 0, 0, 0, 1}, from("fd67:6174:656b::101")), drop},

		{"a DHCPDISCOVER", discover, toDHCP},
		{"a DHCPDISCOVER that was cut off", discover[:len(discover)-1], drop},
		{"a DHCPDISCOVER from elsewhere", toAll(dhcpTo("192.168.1.2:68", "255.255.255.255:67")), drop},
		{"a DHCP message to all from an address of the network", toAll(dhcpTo("10.0.2.101:68", "255.255.255.255:67")), toDHCP},
		{"a DHCP message to the gateway", dhcpTo("10.0.2.101:68", "10.0.2.2:67"), toDHCP},
		{"a DHCP message to the gateway from no address", dhcpTo("0.0.0.0:68", "10.0.2.2:67"), drop},
		{"a DHCP message to the outside", dhcpTo("10.0.2.101:68", "198.51.100.7:67"), toUDP},
		{"another broadcast from no address", toAll(dhcpTo("0.0.0.0:68", "255.255.255.255:68")), drop},
		{"a piece of a DHCP message", changed(discover, func(ip []byte) { ip[6] = 0x20 }), drop},
		{"a SYN to all", toAll(synFrame(netip.MustParseAddrPort("10.0.2.101:1"), netip.MustParseAddrPort("255.255.255.255:67"))), drop},
		{"a Solicit", solicit6Frame(), toDHCP},
		{"a Solicit from a global address", toAll(dhcpTo("[fd67:6174:656b::101]:546", "[ff02::1:2]:547")), drop},
		{"a Solicit to other servers", toAll(dhcpTo("[fe80::1]:546", "[ff05::1:3]:547")), drop},
		{"a Solicit to the gateway alone", dhcpTo("[fe80::1]:546", "[fe80::2]:547"), drop},

		{"a router solicitation", routerSolicit(nestedLink, source...), toRouter},
		{"a router solicitation from no address", routerSolicit(netip.IPv6Unspecified()), toRouter},
		{"a router solicitation from the outside", routerSolicit(worldIPv6), drop},
		{"a router solicitation from another link", withTTL(routerSolicit(nestedLink), 254), drop},
		{"a router solicitation with an option of no length", routerSolicit(nestedLink, 1, 0, 0, 0, 0, 0, 0, 0), drop},
		{"a router solicitation with half an option", routerSolicit(nestedLink, 1, 1, 0, 0), drop},
		{"a router solicitation in the name of a group", routerSolicit(nestedLink, linkLayer(1, macAddr{1})...), drop},
		{"half a router solicitation", messageFrame(nestedLink, allRouters, 133, 0, 0, 0), drop},
		{"a router solicitation of another code", messageFrame(nestedLink, allRouters, 133, 1, 0, 0, 0, 0, 0, 0), drop},
		{"a router solicitation with a wrong checksum", changed(routerSolicit(nestedLink), func(ip []byte) { ip[42] ^= 1 }), drop},
		{"another router's advertisement", messageFrame(nestedLink, allNodes, 134, 0, 0, 0, 64, 0, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0), drop},
		{"a redirect", messageFrame(nestedLink, netip.MustParseAddr("fe80::2"), 137, 0, 0, 0, 0, 0, 0, 0), drop},
		{"a group's member", messageFrame(nestedLink, netip.MustParseAddr("ff02::16"), 143, 0, 0, 0, 0, 0, 0, 0), drop},

		{"a neighbour solicitation for the gateway's link-local address", messageFrame(nestedLink, solicited, about(header.ICMPv6NeighborSolicit, gatewayLinkLocal, source...)...), toStack},
		{"a look whether the gateway's address is free", messageFrame(netip.IPv6Unspecified(), solicited, about(header.ICMPv6NeighborSolicit, gateway6)...), toStack},
		{"a neighbour solicitation from the outside", messageFrame(worldIPv6, solicited, about(header.ICMPv6NeighborSolicit, gateway6, source...)...), drop},
		{"a neighbour solicitation in nobody's name", messageFrame(nestedLink, solicited, about(header.ICMPv6NeighborSolicit, gateway6, linkLayer(1, macAddr{})...)...), drop},
		{"a neighbour advertisement", messageFrame(nestedIPv6, gateway6, about(header.ICMPv6NeighborAdvert, nestedIPv6, linkLayer(2, nestedMAC)...)...), toStack},
		{"a neighbour advertisement for an address of ours", messageFrame(nestedIPv6, gateway6, about(header.ICMPv6NeighborAdvert, gateway6, linkLayer(2, nestedMAC)...)...), drop},
		{"a neighbour advertisement for one of the outside", messageFrame(nestedIPv6, gateway6, about(header.ICMPv6NeighborAdvert, worldIPv6, linkLayer(2, nestedMAC)...)...), drop},
		{"a neighbour advertisement that leads to lo", messageFrame(nestedIPv6, gateway6, about(header.ICMPv6NeighborAdvert, nestedIPv6, linkLayer(2, macAddr{})...)...), drop},
		{"a neighbour advertisement that leads to all", messageFrame(nestedIPv6, gateway6, about(header.ICMPv6NeighborAdvert, nestedIPv6, linkLayer(2, allNodesMAC)...)...), drop},

		{"an ARP request of a nested guest", arpFrame(header.ARPRequest, nestedMAC, "10.0.2.101", "10.0.2.2"), toStack},
		{"an ARP probe for the gateway's address", arpFrame(header.ARPRequest, nestedMAC, "0.0.0.0", "10.0.2.2"), toStack},
		{"an ARP announcement of the gateway's address", arpFrame(header.ARPRequest, nestedMAC, "10.0.2.2", "10.0.2.2"), toStack},
		{"an ARP request from the outside", arpFrame(header.ARPRequest, nestedMAC, "198.51.100.9", "10.0.2.2"), drop},
		{"an ARP reply of a nested guest", arpFrame(header.ARPReply, nestedMAC, "10.0.2.101", "10.0.2.2"), toStack},
		{"an ARP reply for the gateway's address", arpFrame(header.ARPReply, nestedMAC, "10.0.2.2", "10.0.2.2"), drop},
		{"an ARP reply for the outside", arpFrame(header.ARPReply, nestedMAC, "198.51.100.9", "10.0.2.2"), drop},
		{"an ARP reply that leads to lo", arpFrame(header.ARPReply, macAddr{}, "10.0.2.101", "10.0.2.2"), drop},
		{"an ARP reply that leads to all", arpFrame(header.ARPReply, macAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "10.0.2.101", "10.0.2.2"), drop},
		{"another kind of ARP", arpFrame(3, nestedMAC, "10.0.2.101", "10.0.2.2"), drop},
	} {
		t.Run(test.name, func(t *testing.T) {
			var f finding
			if got := in.inspect(test.frame, vnetHeader{}, &f); got != test.want {
				t.Errorf("verdict %d, want %d", got, test.want)
			}
		})
	}
	var f finding
	segments := vnetHeader{segmentType: vnetSegmentUDP, segmentSize: 100, flags: vnetNeedsChecksum}
	if got := in.inspect(discover, segments, &f); got != drop {
		t.Errorf("segments of DHCP get verdict %d", got)
	}
	alone := newInspector(t, gatewayMAC, defaultIPv4)
	for _, frame := range [][]byte{routerSolicit(nestedLink), solicit6Frame(), between(nestedMAC, gatewayMAC, from("fd67:6174:656b::101"))} {
		if got := alone.inspect(frame, vnetHeader{}, &f); got != drop {
			t.Errorf("without IPv6, verdict %d", got)
		}
	}
}

// nextDatagram returns the next datagram from the engine that comes from a port, and
// the Ethernet address it goes to.
func (r *rig) nextDatagram(port uint16) (src, dst netip.AddrPort, mac macAddr, payload []byte) {
	r.t.Helper()
	frame := r.next(func(f []byte) bool {
		ip := f[ethernetSize:]
		switch {
		case ip[0]>>4 == 4 && ip[9] == 17:
			src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:])), header.UDP(ip[20:]).SourcePort())
			dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:])), header.UDP(ip[20:]).DestinationPort())
			payload = ip[28:]
		case ip[0]>>4 == 6 && ip[6] == 17:
			src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip[8:])), header.UDP(ip[40:]).SourcePort())
			dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip[24:])), header.UDP(ip[40:]).DestinationPort())
			payload = ip[48:]
		default:
			return false
		}
		return src.Port() == port
	})
	return src, dst, macAddr(frame), slices.Clone(payload)
}

func TestGuestsAreConfiguredByDHCP(t *testing.T) {
	r := newRig(t, rigOptions{bare: true, Options: Options{MTU: 1400, Search: []string{"no..name", "corp.example"}}})
	r.send(discoverFrame(t, nestedMAC), vnetHeader{})
	src, dst, mac, payload := r.nextDatagram(dhcp.ServerPort4)
	offer, err := dhcpv4.FromBytes(payload)
	if err != nil {
		t.Fatal(err)
	}
	if src.Addr() != r.net.subnets[0].gateway || dst != netip.AddrPortFrom(nestedIPv4, dhcp.ClientPort4) || mac != nestedMAC ||
		!offer.YourIPAddr.Equal(nestedIPv4.AsSlice()) || offer.DomainName() != "corp.example" ||
		!bytes.Equal(offer.GetOneOption(dhcpv4.OptionInterfaceMTU), []byte{1400 >> 8, 1400 & 0xff}) {
		t.Errorf("from %v to %v at %x: %s", src, dst, mac, offer.Summary())
	}
	r.send(discoverFrame(t, r.net.childMAC), vnetHeader{})
	if _, dst, _, _ = r.nextDatagram(dhcp.ServerPort4); dst.Addr() != childIPv4 {
		t.Errorf("the child's interface is offered %v", dst)
	}

	r.send(solicit6Frame(), vnetHeader{})
	src, dst, mac, payload = r.nextDatagram(dhcp.ServerPort6)
	advertise, err := dhcpv6.MessageFromBytes(payload)
	if err != nil {
		t.Fatal(err)
	}
	if src.Addr() != gatewayLinkLocal || dst != netip.AddrPortFrom(nestedLink, dhcp.ClientPort6) || mac != nestedMAC ||
		!advertise.Options.OneIANA().Options.OneAddress().IPv6Addr.Equal(nestedIPv6.AsSlice()) {
		t.Errorf("from %v to %v at %x: %s", src, dst, mac, advertise.Summary())
	}
	// One whose answer is not for us is counted, too.
	request := message4(t, nestedMAC, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 0, 2, 9})))
	r.send(request, vnetHeader{})
	testenv.Until(t, "the last message to be ignored", func() bool { return r.e.counters().GuestsIgnored == 1 })
	if got := r.e.counters(); got.GuestsAnswered != 3 || got.GuestsTurnedAway != 0 {
		t.Errorf("%d answered, %d turned away", got.GuestsAnswered, got.GuestsTurnedAway)
	}
}

func TestAStormOfQuestionsIsBounded(t *testing.T) {
	r := newRig(t, rigOptions{bare: true})
	const storm = 10_000
	for i := range storm {
		mac := macAddr{0x02, 1, 0, byte(i >> 16), byte(i >> 8), byte(i)}
		r.send(discoverFrame(t, mac), vnetHeader{})
		r.send(between(mac, gatewayMAC, arpFrame(header.ARPRequest, mac, hostAddr(defaultIPv4, 4+i%250).String(), "10.0.2.2")), vnetHeader{})
		r.send(between(mac, allNodesMAC, routerSolicit(nestedLink)), vnetHeader{})
	}
	testenv.Until(t, "the engine to have read all", func() bool {
		return r.e.link.accepted.Load()+r.e.link.refused.Load() == 3*storm
	})
	if n, _ := r.e.guests.server.Leases(); n != 154 {
		t.Errorf("%d leases", n)
	}
	if n := r.e.link.refused.Load(); n != 0 {
		t.Errorf("%d were refused", n)
	}
	if neighbours, err := r.e.stack.Neighbors(nicID, header.IPv4ProtocolNumber); err != nil || len(neighbours) > 512 {
		t.Errorf("%d neighbours, %v", len(neighbours), err)
	}
}

// advertisement is what a router advertisement has, as gVisor's parser reads it.
type advertisement struct {
	header.NDPRouterAdvert
	prefix header.NDPPrefixInformation
	dns    header.NDPRecursiveDNSServer
	search header.NDPDNSSearchList
	source header.NDPSourceLinkLayerAddressOption
}

// nextAdvert returns the next router advertisement and the frame that it came in.
func (r *rig) nextAdvert() (a advertisement, frame []byte) {
	r.t.Helper()
	frame = r.next(isICMPv6(header.ICMPv6RouterAdvert))
	ip := header.IPv6(frame[ethernetSize:])
	p := header.ICMPv6(ip.Payload())
	if sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(p))); checksum.Checksum(p, sum) != 0xffff {
		r.t.Error("the checksum is wrong")
	}
	if ip.HopLimit() != header.NDPHopLimit || fromAddress(ip.SourceAddress()) != gatewayLinkLocal || p.Code() != 0 {
		r.t.Errorf("from %v with a hop limit of %d, code %d", ip.SourceAddress(), ip.HopLimit(), p.Code())
	}
	a.NDPRouterAdvert = header.NDPRouterAdvert(p.MessageBody())
	options, err := a.Options().Iter(true)
	if err != nil {
		r.t.Fatal(err)
	}
	for {
		o, done, err := options.Next()
		if done || err != nil {
			return a, frame
		}
		switch o := o.(type) {
		case header.NDPPrefixInformation:
			a.prefix = o
		case header.NDPRecursiveDNSServer:
			a.dns = o
		case header.NDPDNSSearchList:
			a.search = o
		case header.NDPSourceLinkLayerAddressOption:
			a.source = o
		}
	}
}

func TestGuestsFindTheRouter(t *testing.T) {
	r := newRig(t, rigOptions{bare: true, Options: Options{MTU: 1400, Search: []string{"corp.example", "example.com"}}})
	reminded := func() bool {
		r.e.guests.mu.Lock()
		defer r.e.guests.mu.Unlock()
		return r.e.guests.timer != nil
	}
	// Its address, too, is found as any neighbour's.
	r.send(messageFrame(nestedLink, netip.MustParseAddr("ff02::1:ff00:2"), about(header.ICMPv6NeighborSolicit, gatewayLinkLocal, linkLayer(1, nestedMAC)...)...), vnetHeader{})
	if frame := r.next(isICMPv6(header.ICMPv6NeighborAdvert)); fromAddress(header.IPv6(frame[ethernetSize:]).SourceAddress()) != gatewayLinkLocal {
		t.Errorf("the advertisement is %x", frame)
	}
	if reminded() {
		t.Error("guests are reminded that have not asked")
	}
	r.send(routerSolicit(nestedLink, linkLayer(1, nestedMAC)...), vnetHeader{})
	a, frame := r.nextAdvert()
	if dst := header.IPv6(frame[ethernetSize:]).DestinationAddress(); macAddr(frame) != nestedMAC || fromAddress(dst) != nestedLink {
		t.Errorf("it goes to %v at %x", dst, frame[:6])
	}
	if !a.ManagedAddrConfFlag() || !a.OtherConfFlag() || a.RouterLifetime() != routerLifetime*1e9 || a.CurrHopLimit() != 64 || a.source.EthernetAddress() != tcpip.LinkAddress(gatewayMAC[:]) {
		t.Errorf("got %x", []byte(a.NDPRouterAdvert))
	}
	if fromAddress(a.prefix.Prefix()) != defaultIPv6.Addr() || a.prefix.PrefixLength() != 64 || !a.prefix.OnLinkFlag() || !a.prefix.AutonomousAddressConfigurationFlag() ||
		a.prefix.ValidLifetime() != header.NDPInfiniteLifetime || a.prefix.PreferredLifetime() != header.NDPInfiniteLifetime {
		t.Errorf("got %v", a.prefix)
	}
	if servers, err := a.dns.Addresses(); err != nil || len(servers) != 1 || fromAddress(servers[0]) != r.net.subnets[1].dns || a.dns.Lifetime() != header.NDPInfiniteLifetime {
		t.Errorf("got %v", a.dns)
	}
	if search, err := a.search.DomainNames(); err != nil || !slices.Equal(search, []string{"corp.example", "example.com"}) || a.search.Lifetime() != header.NDPInfiniteLifetime {
		t.Errorf("got %v", a.search)
	}
	if !bytes.Contains(a.NDPRouterAdvert, []byte{ndMTU, 1, 0, 0, 0, 0, 1400 >> 8, 1400 & 0xff}) {
		t.Errorf("no MTU in %x", []byte(a.NDPRouterAdvert))
	}

	r.send(routerSolicit(netip.IPv6Unspecified()), vnetHeader{})
	_, frame = r.nextAdvert()
	if dst := header.IPv6(frame[ethernetSize:]).DestinationAddress(); macAddr(frame) != nestedMAC || fromAddress(dst) != allNodes {
		t.Errorf("to one without an address it goes to %v at %x", dst, frame[:6])
	}
	if !reminded() {
		t.Error("guests that have asked are not reminded")
	}
	r.e.guests.remind()
	_, frame = r.nextAdvert()
	if dst := header.IPv6(frame[ethernetSize:]).DestinationAddress(); macAddr(frame) != allNodesMAC || fromAddress(dst) != allNodes {
		t.Errorf("the reminder goes to %v at %x", dst, frame[:6])
	}
}

func TestOurOwnAddressesAnswerPings(t *testing.T) {
	r := newRig(t, rigOptions{bare: true})
	r.introduce()
	ping := []byte{uint8(header.ICMPv6EchoRequest), 0, 0, 0, 0, 1, 0, 1}
	for _, s := range r.net.subnets {
		for _, a := range []netip.Addr{s.gateway, s.dns} {
			if a.Is4() {
				r.send(echoRequest(a), vnetHeader{})
				r.next(isICMPv4(header.ICMPv4EchoReply))
				continue
			}
			r.send(messageFrame(childIPv6, a, ping...), vnetHeader{})
			r.next(isICMPv6(header.ICMPv6EchoReply))
		}
	}
	r.send(messageFrame(nestedLink, netip.MustParseAddr("ff02::1:ff00:2"), about(header.ICMPv6NeighborSolicit, gatewayLinkLocal, linkLayer(1, nestedMAC)...)...), vnetHeader{})
	r.send(messageFrame(nestedLink, gatewayLinkLocal, ping...), vnetHeader{})
	r.next(isICMPv6(header.ICMPv6EchoReply))
}

func TestAnAdvertisementFitsAnyIPv6Link(t *testing.T) {
	long := slices.Repeat([]string{"a.very.long.domain.of.a.very.large.company.example"}, 99)
	a := advertiser{mtu: minIPv6MTU, search: func() []string { return append(long, "", "no..name") }}
	var err error
	if a.subnet, err = newSubnet(netip.MustParsePrefix("2001:db8::/112")); err != nil {
		t.Fatal(err)
	}
	head, rest := a.message()
	if n := header.IPv6MinimumSize + len(head) + len(rest); n > minIPv6MTU || n < maxSearchOption {
		t.Errorf("it has %d bytes", n)
	}
	message := header.NDPRouterAdvert(append(head[4:], rest...))
	options, err := message.Options().Iter(true)
	if err != nil {
		t.Fatal(err)
	}
	for {
		o, done, _ := options.Next()
		if done {
			break
		}
		// No addresses are made up in a network that is not of 64 bits.
		if p, ok := o.(header.NDPPrefixInformation); ok && p.AutonomousAddressConfigurationFlag() {
			t.Errorf("got %v", p)
		}
	}
}

// Whatever the stack wants to know of the link, it asks as the gateway.
func TestNeighboursAreAskedForInTheGatewaysName(t *testing.T) {
	r := newRig(t, rigOptions{bare: true})
	for i, to := range []netip.Addr{r.net.subnets[0].dns, loopbackIPv4, r.net.subnets[1].dns, loopbackIPv6} {
		to, s := netip.AddrPortFrom(to, 9), r.net.subnets[family(to)] // which refuses
		from := hostAddr(s.prefix, 0x40+i)
		r.send(between(nestedMAC, gatewayMAC, udpFrame(netip.AddrPortFrom(from, 4000), to, "x")), vnetHeader{})
		if from.Is4() {
			question := header.ARP(r.next(func(f []byte) bool { return header.Ethernet(f).Type() == header.ARPProtocolNumber })[ethernetSize:])
			if got := netip.AddrFrom4([4]byte(question.ProtocolAddressSender())); question.Op() != header.ARPRequest || got != s.gateway {
				t.Errorf("%v asks for %v", got, from)
			}
			r.send(arpFrame(header.ARPReply, nestedMAC, from.String(), s.gateway.String()), vnetHeader{})
		} else {
			ip := header.IPv6(r.next(isICMPv6(header.ICMPv6NeighborSolicit))[ethernetSize:])
			sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), ip.PayloadLength())
			if got := fromAddress(ip.SourceAddress()); got != s.gateway || checksum.Checksum(ip.Payload(), sum) != 0xffff {
				t.Errorf("%v asks for %v, in %x", got, from, []byte(ip))
			}
			answer := about(header.ICMPv6NeighborAdvert, from, linkLayer(2, nestedMAC)...)
			answer[4] = 0x60 // solicited, override
			r.send(messageFrame(from, s.gateway, answer...), vnetHeader{})
		}
		if frame := r.next(func(f []byte) bool {
			return isICMPv4(header.ICMPv4DstUnreachable)(f) || isICMPv6(header.ICMPv6DstUnreachable)(f)
		}); macAddr(frame) != nestedMAC {
			t.Errorf("the answer goes to %x", frame[:6])
		}
	}
}
