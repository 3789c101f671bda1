package slirp

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Router advertisements (RFC 4861, 4.2) for the guests of the namespace. A guest
// that asks for a router is answered at once: it has the gateway, the network, the
// MTU, the DNS server and the search domains (RFC 8106), and is told that there is
// DHCPv6 as well. In a network of 64 bits it makes an address of its own (SLAAC, RFC
// 4862), because there are guests that do nothing else.
//
// An advertisement that nobody has asked for would be due every few minutes, and
// wake two machines up. So all in it is good for ever but the router itself: that is
// good for 18 hours, the most that fits (RFC 8319), and guests are reminded of it
// three times in that time. Where none has ever asked, none is reminded.

var (
	allNodes    = netip.IPv6LinkLocalAllNodes()
	allNodesMAC = macAddr{0x33, 0x33, 0, 0, 0, 1}
)

// routerLifetime is how long, in seconds, a guest sends by the gateway without
// hearing of it.
const routerLifetime = 65535

// advertInterval is how often guests are reminded.
const advertInterval = routerLifetime * time.Second / 3

// infiniteLifetime is for ever (RFC 4861, 4.6.2; RFC 8106, 5.1).
const infiniteLifetime = 0xffffffff

// Types of options.
const (
	ndSourceLinkLayer = 1
	ndPrefix          = 3
	ndMTU             = 5
	ndDNSServers      = 25
	ndSearch          = 31
)

// advertiser makes advertisements.
type advertiser struct {
	subnet subnet
	mtu    uint32
	search func() []string
}

// inspectSolicit checks a router solicitation (RFC 4861, 6.1.1).
func inspectSolicit(packet []byte, src, dst netip.Addr, d *datagram) verdict {
	const headerSize = 8
	p := packet[header.IPv6MinimumSize:]
	if header.IPv6(packet).HopLimit() != header.NDPHopLimit || p[1] != 0 || len(p) < headerSize || !soundNeighbourOptions(p[headerSize:]) {
		return drop
	}
	if !soundICMP(p, src, dst) {
		return drop
	}
	d.src, d.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	return toRouter
}

// message is an advertisement: the header up to the first option, in two parts.
func (a *advertiser) message() (head transportHeader, rest []byte) {
	const managed, other = 0x80, 0x40 // DHCPv6 has addresses, and the rest
	head = transportHeader{0: uint8(header.ICMPv6RouterAdvert), 4: ownTTL, 5: managed | other}
	binary.BigEndian.PutUint16(head[6:], routerLifetime)
	rest = make([]byte, 8, 256) // no word on how long neighbours are reachable

	rest = append(rest, ndSourceLinkLayer, 1)
	rest = append(rest, gatewayMAC[:]...)
	rest = append(rest, ndMTU, 1, 0, 0)
	rest = binary.BigEndian.AppendUint32(rest, a.mtu)
	rest = a.appendPrefix(rest)
	rest = append(rest, ndDNSServers, 3, 0, 0)
	rest = binary.BigEndian.AppendUint32(rest, infiniteLifetime)
	rest = append(rest, a.subnet.dns.AsSlice()...)
	return head, a.appendSearch(rest)
}

// appendPrefix appends the network, in which all are neighbours.
func (a *advertiser) appendPrefix(b []byte) []byte {
	const onLink, autonomous = 0x80, 0x40
	flags := byte(onLink)
	if a.subnet.prefix.Bits() == 64 { // what is left is for an interface identifier
		flags |= autonomous
	}
	b = append(b, ndPrefix, 4, byte(a.subnet.prefix.Bits()), flags)
	b = binary.BigEndian.AppendUint32(b, infiniteLifetime)
	b = binary.BigEndian.AppendUint32(b, infiniteLifetime)
	b = append(b, 0, 0, 0, 0)
	return append(b, a.subnet.prefix.Addr().AsSlice()...)
}

// maxSearchOption is how many bytes the search domains have room in. An
// advertisement must not be fragmented (RFC 6980).
const maxSearchOption = 1024

// appendSearch appends the search domains that fit.
func (a *advertiser) appendSearch(b []byte) []byte {
	const headerSize = 8
	option := make([]byte, headerSize)
	for _, domain := range a.search() {
		if name := encodeName(domain); len(option)+len(name) <= maxSearchOption {
			option = append(option, name...)
		}
	}
	if len(option) == headerSize {
		return b
	}
	for len(option)%8 != 0 {
		option = append(option, 0)
	}
	option[0], option[1] = ndSearch, byte(len(option)/8)
	binary.BigEndian.PutUint32(option[4:], infiniteLifetime)
	return append(b, option...)
}

// encodeName is a domain as RFC 1035 (3.1) has it; nil for what is none.
func encodeName(domain string) []byte {
	const maxLabel, maxName = 63, 255
	var name []byte
	for label := range strings.SplitSeq(strings.TrimSuffix(domain, "."), ".") {
		if len(label) == 0 || len(label) > maxLabel {
			return nil
		}
		name = append(append(name, byte(len(label))), label...)
	}
	if len(name) >= maxName {
		return nil
	}
	return append(name, 0)
}
