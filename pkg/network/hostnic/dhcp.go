package hostnic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A DHCP client for the card (RFC 2131), in the network namespace of the card. IPv6
// needs none: the kernel listens to routers.
//
//	acquire  DISCOVER ... ACK                by broadcast, without an address
//	   |
//	   v   at T1                             by unicast to the server (RENEWING)
//	 bound ------> renew ---> bound
//	   ^   at T2 -> rebind -> bound          by broadcast (REBINDING)
//	   |   NAK, or the lease is over
//	   +----------- acquire
//
// A lease that nobody will ask for again, because the Ethernet address was made for
// one gate, is given back at the end (release.go). The kernel gets the address with the
// lifetime of its lease: when nobody renews it, as when all gates on the card have
// ended, it goes by itself.

// lease is what a DHCP server has granted.
type lease struct {
	// ACK is the server's word.
	ACK *dhcpv4.DHCPv4

	Address     netip.Prefix
	Gateways    []netip.Addr
	Nameservers []netip.Addr
	Search      []string

	// The times at which it is renewed, rebound, and over.
	renewAt, rebindAt, overAt time.Time
}

// patience is how long a server may take to answer. A question is asked anew after
// one second, two, and so on.
const (
	patience   = 15 * time.Second
	firstRetry = time.Second
	retries    = 4
)

// acquire asks for an address.
func acquire(ctx context.Context, link netlink.Link) (*lease, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client, err := nclient4.New(link.Attrs().Name, nclient4.WithTimeout(firstRetry), nclient4.WithRetry(retries))
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", link.Attrs().Name, err)
	}
	defer client.Close()
	granted, err := client.Request(ctx, wanted)
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: no address: %w: is there a DHCP server on this network?", link.Attrs().Name, err)
	}
	return readLease(granted.ACK)
}

// renew asks the server that has granted the lease for more time.
func (l *lease) renew(ctx context.Context, link netlink.Link) (*lease, error) {
	raw, err := nclient4.NewRawUDPConn(link.Attrs().Name, dhcpv4.ClientPort)
	if err != nil {
		return nil, err
	}
	out, err := net.ListenUDP("udp4", &net.UDPAddr{IP: l.ACK.YourIPAddr, Port: dhcpv4.ClientPort})
	if err != nil {
		raw.Close()
		return nil, err
	}
	return l.extend(ctx, link, unicast{raw, out}, &net.UDPAddr{IP: l.ACK.ServerIdentifier(), Port: dhcpv4.ServerPort})
}

// unicast sends by unicast from the address of the lease. It hears broadcasts, too,
// for that is how a server says no (RFC 2131, 4.1).
type unicast struct {
	net.PacketConn // raw
	out            *net.UDPConn
}

func (u unicast) WriteTo(b []byte, to net.Addr) (int, error) { return u.out.WriteTo(b, to) }

func (u unicast) Close() error { return errors.Join(u.PacketConn.Close(), u.out.Close()) }

// rebind asks whatever server there is.
func (l *lease) rebind(ctx context.Context, link netlink.Link) (*lease, error) {
	raw, err := nclient4.NewRawUDPConn(link.Attrs().Name, dhcpv4.ClientPort)
	if err != nil {
		return nil, err
	}
	return l.extend(ctx, link, raw, nclient4.DefaultServers)
}

// errTaken is a lease that the server takes back.
var errTaken = errors.New("the server takes the address back")

// extend asks for more time on conn, which it closes.
func (l *lease) extend(ctx context.Context, link netlink.Link, conn net.PacketConn, server *net.UDPAddr) (*lease, error) {
	client, err := nclient4.NewWithConn(conn, link.Attrs().HardwareAddr, nclient4.WithTimeout(firstRetry), nclient4.WithRetry(retries))
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer client.Close()
	request, err := dhcpv4.NewRenewFromAck(l.ACK, wanted)
	if err != nil {
		return nil, err
	}
	answer, err := client.SendAndRead(ctx, server, request, nclient4.IsMessageType(dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak))
	if err != nil {
		return nil, err
	}
	if answer.MessageType() == dhcpv4.MessageTypeNak {
		return nil, errTaken
	}
	return readLease(answer)
}

// wanted asks for what a lease is read for.
var wanted = dhcpv4.WithRequestedOptions(
	dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionDomainNameServer,
	dhcpv4.OptionDomainName, dhcpv4.OptionDNSDomainSearchList,
	dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue)

// shortest is how long a lease lasts at least, and for how long it is not renewed,
// whatever the server says: nobody is asked without a pause.
const shortest = time.Second

// readLease reads what was granted. The defaults are those of RFC 2131, 4.4.5.
func readLease(ack *dhcpv4.DHCPv4) (*lease, error) {
	l := &lease{ACK: ack}
	addr, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	bits := 32
	if ones, _ := ack.SubnetMask().Size(); ones > 0 { // 0 is of what is no mask, too
		bits = ones
	}
	if l.Address = netip.PrefixFrom(addr, bits); !ok || !isCards(addr) {
		return nil, fmt.Errorf("DHCP: the server grants no address: %v", ack.YourIPAddr)
	}
	if routers := addresses(ack.Router()); len(routers) > 0 {
		l.Gateways = routers[:1]
	}
	l.Nameservers = addresses(ack.DNS())
	if labels := ack.DomainSearch(); labels != nil {
		l.Search = domains(labels.Labels...)
	} else {
		l.Search = domains(ack.DomainName()) // some servers put several there
	}
	now := time.Now()
	over := max(shortest, ack.IPAddressLeaseTime(time.Hour)) // 136 years is forever, and half of what a Duration holds
	l.overAt = now.Add(over)
	l.renewAt = now.Add(min(over, max(shortest, ack.IPAddressRenewalTime(over/2))))
	l.rebindAt = now.Add(min(over, max(shortest, ack.IPAddressRebindingTime(over-over/8))))
	return l, nil
}

// domains are the names in what a server calls a domain. They are to stand in a line of
// resolv.conf(5), where blanks are between them.
func domains(texts ...string) []string {
	return strings.FieldsFunc(strings.Join(texts, " "), func(r rune) bool { return r <= ' ' || r == 0x7f })
}

func addresses(list []net.IP) []netip.Addr {
	var all []netip.Addr
	for _, ip := range list {
		if a, ok := netip.AddrFromSlice(ip.To4()); ok {
			all = append(all, a)
		}
	}
	return all
}

// apply gives the interface the address and the routes, and takes those of an earlier
// lease away.
func (l *lease) apply(link netlink.Link) error {
	old, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	left := max(1, int(time.Until(l.overAt)/time.Second)) // 0 is forever
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(l.Address), ValidLft: left, PreferedLft: left}); err != nil {
		return fmt.Errorf("add address %v to %s: %w", l.Address, link.Attrs().Name, err)
	}
	for _, a := range old {
		leased := a.Flags&unix.IFA_F_PERMANENT == 0
		if addr, _ := netip.AddrFromSlice(a.IP.To4()); leased && addr != l.Address.Addr() {
			err = errors.Join(err, netlink.AddrDel(link, &a))
		}
	}
	if err = errors.Join(err, l.applyRoutes(link)); err != nil {
		return fmt.Errorf("routes of the lease on %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// applyRoutes makes the routes of the lease, and removes those of an earlier one.
func (l *lease) applyRoutes(link netlink.Link) error {
	leased := &netlink.Route{LinkIndex: link.Attrs().Index, Protocol: unix.RTPROT_DHCP}
	old, err := netlink.RouteListFiltered(netlink.FAMILY_V4, leased, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	now := l.routes()
	for _, r := range now {
		r.LinkIndex, r.Protocol = leased.LinkIndex, leased.Protocol
		err = errors.Join(err, netlink.RouteReplace(r))
	}
	for _, r := range old {
		if !slices.ContainsFunc(now, func(n *netlink.Route) bool { return n.Dst.String() == r.Dst.String() }) {
			err = errors.Join(err, netlink.RouteDel(&r))
		}
	}
	return err
}

// routes are those of the lease. Classless ones are instead of the router
// (RFC 3442).
func (l *lease) routes() []*netlink.Route {
	classless := l.ACK.ClasslessStaticRoute()
	var all []*netlink.Route
	for _, r := range classless {
		route := &netlink.Route{Dst: r.Dest, Gw: r.Router}
		if r.Router.IsUnspecified() {
			route.Gw, route.Scope = nil, netlink.SCOPE_LINK
		}
		all = append(all, route)
	}
	if len(classless) > 0 {
		return all
	}
	for _, gw := range l.Gateways {
		flags := 0
		if !l.Address.Masked().Contains(gw) {
			flags = unix.RTNH_F_ONLINK
		}
		all = append(all, &netlink.Route{Dst: ipNet(everything(gw)), Gw: gw.AsSlice(), Flags: flags})
	}
	return all
}

// news is what the child half tells the parent half, as JSON.
type news struct {
	Address     netip.Prefix `json:"address"`
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	Search      []string     `json:"search,omitempty"`

	// Release gives the lease back.
	Release *release `json:"release,omitempty"`

	// Trouble is what goes wrong; then there is nothing else.
	Trouble string `json:"trouble,omitempty"`
}

// keep keeps the lease for as long as the process lives, and tells of what changes.
func (l *lease) keep(link netlink.Link, tell func(news)) {
	for {
		next, err := l.next(context.Background(), link)
		if err == nil {
			err = next.apply(link)
			l = next
		}
		if err != nil {
			tell(news{Trouble: err.Error()})
			time.Sleep(pauseAfterTrouble)
			continue
		}
		tell(l.news())
	}
}

// news is what there is to tell of the lease.
func (l *lease) news() news {
	return news{Address: l.Address, Nameservers: l.Nameservers, Search: l.Search, Release: l.release()}
}

// pauseAfterTrouble is how long a client waits that could not even ask.
const pauseAfterTrouble = 10 * time.Second

// leastPause is how long a client waits at least before it asks again (RFC 2131,
// 4.4.5).
const leastPause = time.Minute

// next waits until the lease has to be looked after, and returns the one after it.
func (l *lease) next(ctx context.Context, link netlink.Link) (*lease, error) {
	for _, state := range []struct {
		at, until time.Time
		ask       func(context.Context, netlink.Link) (*lease, error)
	}{{l.renewAt, l.rebindAt, l.renew}, {l.rebindAt, l.overAt, l.rebind}} {
		for at := state.at; at.Before(state.until); at = time.Now().Add(max(leastPause, time.Until(state.until)/2)) {
			time.Sleep(time.Until(at))
			asking, cancel := context.WithDeadline(ctx, state.until)
			next, err := state.ask(asking, link)
			cancel()
			if err == nil {
				return next, nil
			}
			if errors.Is(err, errTaken) {
				// It may be gone already.
				_ = netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(l.Address)})
				return acquire(ctx, link)
			}
		}
		time.Sleep(time.Until(state.until))
	}
	return acquire(ctx, link)
}
