package slirp

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/pkg/network/slirp/dhcp"
)

// guests configures the guests of the namespace, machines that are bridged to its
// interface, as the child half configured that one: the addresses of the networks,
// the gateway, the DNS server and the MTU. They ask by DHCP (package dhcp) or for a
// router (advert.go). The child itself asks for nothing.
type guests struct {
	server *dhcp.Server
	writer *datagramWriter
	advert advertiser

	mu     sync.Mutex // guards timer and closed, and is held while guests are told
	timer  *time.Timer
	closed bool

	// answered and ignored count the questions, full those for an address of which
	// none was left.
	answered, ignored atomic.Uint64
	full              overflow
}

// newGuests returns what answers the guests of n. close ends it.
func newGuests(n *Network, w *datagramWriter) *guests {
	search := func() []string {
		return slices.DeleteFunc(slices.Clone(n.source.conf().search), func(s string) bool { return encodeName(s) == nil })
	}
	g := &guests{writer: w, advert: advertiser{subnet: n.subnets[1], mtu: uint32(w.mtu), search: search}}
	config := dhcp.Config{MTU: w.mtu, Search: search, Server: gatewayMAC, Child: n.childMAC, Full: g.full.add}
	for i, to := range []*dhcp.Network{&config.IPv4, &config.IPv6} {
		if s := n.subnets[i]; s.enabled() {
			*to = dhcp.Network{Prefix: s.prefix, Gateway: s.gateway, DNS: s.dns, Child: s.child}
		}
	}
	g.server = dhcp.New(config)
	return g
}

// isDHCP says whether a datagram that came to address dst is for the DHCP server,
// which guests reach by broadcast and, to renew what they have over IPv4, at the
// gateway. From no address comes nothing else.
func (in *inspector) isDHCP(d *datagram) bool {
	src, dst := d.src.Addr(), d.dst.Addr()
	switch {
	case d.segment != 0:
		return false
	case dst.Is4():
		return d.dst.Port() == dhcp.ServerPort4 && in.subnets[0].enabled() &&
			(dst == broadcastIPv4 && (src.IsUnspecified() || in.guest(src)) || dst == in.subnets[0].gateway && in.guest(src))
	}
	return d.dst.Port() == dhcp.ServerPort6 && in.subnets[1].enabled() && dst == dhcp.Servers6 && src.IsLinkLocalUnicast()
}

// ask answers a message of DHCP.
func (g *guests) ask(d *datagram) {
	defer g.full.tell()
	if d.dst.Addr().Is4() {
		r, ok := g.server.Answer4(d.payload)
		g.count(ok)
		if ok {
			from := netip.AddrPortFrom(g.writer.gateways[0], dhcp.ServerPort4)
			g.writer.write(r.MAC, from, netip.AddrPortFrom(r.To, dhcp.ClientPort4), r.Payload)
		}
		return
	}
	answer := g.server.Answer6(d.payload, d.mac)
	g.count(answer != nil)
	if answer != nil {
		from := netip.AddrPortFrom(gatewayLinkLocal, dhcp.ServerPort6)
		g.writer.write(d.mac, from, netip.AddrPortFrom(d.src.Addr(), dhcp.ClientPort6), answer)
	}
}

func (g *guests) count(answered bool) {
	if answered {
		g.answered.Add(1)
	} else {
		g.ignored.Add(1)
	}
}

// solicit answers the question for a router, to the one who asks. One who has no
// address yet has the answer at the address of all, but in a frame of its own (RFC
// 6085): nobody else is told what it did not ask for.
func (g *guests) solicit(d *datagram) {
	g.count(true)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer == nil && !g.closed {
		g.timer = time.AfterFunc(advertInterval, g.remind)
	}
	to := d.src.Addr()
	if to.IsUnspecified() {
		to = allNodes
	}
	g.advertise(d.mac, to)
}

// remind tells all guests of the router again, before they forget it.
func (g *guests) remind() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	g.advertise(allNodesMAC, allNodes)
	g.timer.Reset(advertInterval)
}

// advertise sends a router advertisement.
func (g *guests) advertise(mac macAddr, to netip.Addr) {
	head, options := g.advert.message()
	out := outgoing{to: mac, src: gatewayLinkLocal, dst: to, proto: header.ICMPv6ProtocolNumber, ttl: header.NDPHopLimit}
	g.writer.forwardICMP(&out, &head, options)
}

// close ends the reminders. ask and solicit must not be called any more.
func (g *guests) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.timer != nil {
		g.timer.Stop()
	}
}
