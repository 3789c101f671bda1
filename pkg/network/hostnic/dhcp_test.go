package hostnic

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"

	"github.com/gatekit/gatekit/internal/testenv"
)

// exchange is what a client is to ask, and what a server answers: an address with
// more options, "no", or "" for silence.
type exchange struct {
	asks, answers string
	more          []dhcpv4.Modifier
}

// dhcpServer goes through exchanges. What the client says again because it was not
// answered goes unanswered again.
type dhcpServer struct {
	address netip.Addr
	script  []exchange
	asked   []string // what it was asked; the rest of script is to come
	conns   []net.PacketConn
	wrong   chan string
}

// serve starts a server on a machine. It takes broadcasts by a socket of their own,
// so that it knows how it was asked.
func serve(t *testing.T, o *testenv.Outside, script []exchange) *dhcpServer {
	t.Helper()
	s := &dhcpServer{address: o.Addr4, script: script, wrong: make(chan string, 1)}
	type packet struct {
		how  string
		data []byte
	}
	packets := make(chan packet)
	for how, addr := range map[string]string{"unicast": o.Addr4.String(), "broadcast": "255.255.255.255"} {
		var conn net.PacketConn
		o.Do(t, func() (err error) {
			conn, err = net.ListenPacket("udp4", addr+":67")
			return err
		})
		s.conns = append(s.conns, conn)
		go func() {
			b := make([]byte, 2048)
			for {
				n, _, err := conn.ReadFrom(b)
				if err != nil {
					packets <- packet{}
					return
				}
				packets <- packet{how, slices.Clone(b[:n])}
			}
		}()
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for left := len(s.conns); left > 0; {
			p := <-packets
			if p.data == nil {
				left--
				continue
			}
			s.take(p.how, p.data)
		}
	}()
	t.Cleanup(func() {
		for _, c := range s.conns {
			c.Close()
		}
		<-ended
	})
	return s
}

func (s *dhcpServer) take(how string, data []byte) {
	m, err := dhcpv4.FromBytes(data)
	if err != nil {
		s.fail(err.Error())
		return
	}
	asks := fmt.Sprintf("%v by %s", m.MessageType(), how)
	if !m.ClientIPAddr.IsUnspecified() {
		asks += fmt.Sprintf(" from %v", m.ClientIPAddr)
	}
	if len(s.script) == 0 || asks != s.script[0].asks {
		if n := len(s.asked); n == 0 || asks != s.asked[n-1] {
			s.fail(asks)
		}
		return
	}
	e := s.script[0]
	s.asked, s.script = append(s.asked, asks), s.script[1:]
	if e.answers == "" {
		return
	}
	options := []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.address.AsSlice()))}
	switch kind := m.MessageType(); {
	case e.answers == "no":
		options = append(options, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak))
	case kind == dhcpv4.MessageTypeDiscover:
		options = append(options, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer))
	default:
		options = append(options, dhcpv4.WithMessageType(dhcpv4.MessageTypeAck))
	}
	if e.answers != "no" {
		options = append(options, dhcpv4.WithYourIP(net.ParseIP(e.answers)), dhcpv4.WithLeaseTime(6),
			dhcpv4.WithNetmask(net.CIDRMask(28, 32)), dhcpv4.WithRouter(s.address.AsSlice()),
			dhcpv4.WithGeneric(dhcpv4.OptionRenewTimeValue, []byte{0, 0, 0, 2}),
			dhcpv4.WithGeneric(dhcpv4.OptionRebindingTimeValue, []byte{0, 0, 0, 4}))
	}
	answer, err := dhcpv4.NewReplyFromRequest(m, append(options, e.more...)...)
	if err == nil {
		_, err = s.conns[0].WriteTo(answer.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
	}
	if err != nil {
		s.fail(err.Error())
	}
}

func (s *dhcpServer) fail(what string) {
	select {
	case s.wrong <- what:
	default:
	}
}

func TestALeaseIsRenewedReboundGivenUpAndTakenBack(t *testing.T) {
	h := testenv.NewHost(t)
	o := h.Outside(t)
	const a, b, c = "198.51.100.5", "198.51.100.6", "198.51.100.7"
	_, there, _ := net.ParseCIDR("203.0.113.0/24")
	route := dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{Dest: there, Router: o.Addr4.AsSlice()}))
	server := serve(t, o, []exchange{
		{"DISCOVER by broadcast", a, nil}, {"REQUEST by broadcast", a, nil},
		// Silence at T1; another server, or the same, answers at T2.
		{"REQUEST by unicast from " + a, "", nil}, {"REQUEST by broadcast from " + a, a, nil},
		// An answer at T1, with other routes.
		{"REQUEST by unicast from " + a, a, []dhcpv4.Modifier{route}},
		// Silence until the lease is over.
		{"REQUEST by unicast from " + a, "", nil}, {"REQUEST by broadcast from " + a, "", nil},
		{"DISCOVER by broadcast", b, nil}, {"REQUEST by broadcast", b, nil},
		// A server that takes the address back.
		{"REQUEST by unicast from " + b, "no", nil},
		{"DISCOVER by broadcast", c, nil}, {"REQUEST by broadcast", c, nil},
	})
	var link netlink.Link
	var l *lease
	for i, want := range []struct{ address, routes string }{
		{a, "0.0.0.0/0"}, {a, "0.0.0.0/0"}, {a, "203.0.113.0/24"}, {b, "0.0.0.0/0"}, {c, "0.0.0.0/0"},
	} {
		var leased, routes []string
		h.Do(t, func() (err error) {
			if l == nil {
				if link, err = netlink.LinkByName(o.Interface); err == nil {
					l, err = acquire(context.Background(), link)
				}
			} else {
				l, err = l.next(context.Background(), link)
			}
			if err == nil {
				err = l.apply(link)
			}
			if err != nil {
				return err
			}
			leased, routes, err = leftBy(link, o.HostAddr4)
			return err
		})
		if !slices.Equal(leased, []string{want.address}) || !slices.Equal(routes, []string{want.routes}) {
			t.Errorf("lease %d: addresses %q and routes %q, want %s and %s", i, leased, routes, want.address, want.routes)
		}
	}
	if l.overAt.Before(time.Now()) {
		t.Error("the last lease is over")
	}
	select {
	case what := <-server.wrong:
		t.Errorf("out of turn: %s, after %s", what, strings.Join(server.asked, ", "))
	default:
	}
}

func TestTimesOfALease(t *testing.T) {
	const h = time.Hour
	seconds := func(code dhcpv4.OptionCode, n uint32) dhcpv4.Modifier {
		return dhcpv4.WithGeneric(code, binary.BigEndian.AppendUint32(nil, n))
	}
	for name, c := range map[string]struct {
		options             []dhcpv4.Modifier
		renew, rebind, over time.Duration
	}{
		"none named":     {nil, h / 2, h * 7 / 8, h},
		"the lease's":    {[]dhcpv4.Modifier{dhcpv4.WithLeaseTime(80)}, 40 * time.Second, 70 * time.Second, 80 * time.Second},
		"all":            {[]dhcpv4.Modifier{dhcpv4.WithLeaseTime(80), seconds(dhcpv4.OptionRenewTimeValue, 10), seconds(dhcpv4.OptionRebindingTimeValue, 20)}, 10 * time.Second, 20 * time.Second, 80 * time.Second},
		"after its end":  {[]dhcpv4.Modifier{dhcpv4.WithLeaseTime(80), seconds(dhcpv4.OptionRenewTimeValue, 100), seconds(dhcpv4.OptionRebindingTimeValue, 200)}, 80 * time.Second, 80 * time.Second, 80 * time.Second},
		"no time at all": {[]dhcpv4.Modifier{dhcpv4.WithLeaseTime(0), seconds(dhcpv4.OptionRenewTimeValue, 0), seconds(dhcpv4.OptionRebindingTimeValue, 0)}, time.Second, time.Second, time.Second},
		"forever":        {[]dhcpv4.Modifier{dhcpv4.WithLeaseTime(math.MaxUint32)}, math.MaxUint32 * time.Second / 2, math.MaxUint32 * time.Second / 8 * 7, math.MaxUint32 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			ack, err := dhcpv4.New(append(c.options, dhcpv4.WithYourIP(net.IPv4(198, 51, 100, 5)))...)
			if err != nil {
				t.Fatal(err)
			}
			then := time.Now()
			l, err := readLease(ack)
			if err != nil {
				t.Fatal(err)
			}
			for what, at := range map[string]struct {
				got  time.Time
				want time.Duration
			}{"renewal": {l.renewAt, c.renew}, "rebinding": {l.rebindAt, c.rebind}, "end": {l.overAt, c.over}} {
				if off := at.got.Sub(then) - at.want; off < 0 || off > 5*time.Second {
					t.Errorf("%s after %v, want %v", what, at.got.Sub(then), at.want)
				}
			}
		})
	}
}

func TestWhatALeaseSays(t *testing.T) {
	name := func(text string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptDomainName(text)) }
	for what, c := range map[string]struct {
		options []dhcpv4.Modifier
		bits    int
		search  []string
	}{
		"nothing":                  {nil, 32, nil},
		"a mask":                   {[]dhcpv4.Modifier{dhcpv4.WithNetmask(net.IPv4Mask(255, 255, 255, 240))}, 28, nil},
		"what is no mask":          {[]dhcpv4.Modifier{dhcpv4.WithNetmask(net.IPv4Mask(255, 0, 255, 0))}, 32, nil},
		"the mask of everything":   {[]dhcpv4.Modifier{dhcpv4.WithNetmask(net.IPv4Mask(0, 0, 0, 0))}, 32, nil},
		"a domain":                 {[]dhcpv4.Modifier{name("lan.test")}, 32, []string{"lan.test"}},
		"two as one":               {[]dhcpv4.Modifier{name("lan.test corp.test\x00")}, 32, []string{"lan.test", "corp.test"}},
		"one that is another line": {[]dhcpv4.Modifier{name("lan.test\noptions ndots:9")}, 32, []string{"lan.test", "options", "ndots:9"}},
		"a list":                   {[]dhcpv4.Modifier{name("x.test"), dhcpv4.WithDomainSearchList("a.test", "b\n.test")}, 32, []string{"a.test", "b", ".test"}},
	} {
		t.Run(what, func(t *testing.T) {
			ack, err := dhcpv4.New(append(c.options, dhcpv4.WithYourIP(net.IPv4(198, 51, 100, 5)))...)
			if err != nil {
				t.Fatal(err)
			}
			l, err := readLease(ack)
			if err != nil {
				t.Fatal(err)
			}
			if l.Address.Bits() != c.bits || !slices.Equal(l.Search, c.search) {
				t.Errorf("%v, domains %q; want a network of %d bits, %q", l.Address, l.Search, c.bits, c.search)
			}
		})
	}
}

func TestALeaseOfNoAddressIsNone(t *testing.T) {
	for _, addr := range []net.IP{net.IPv4zero, net.IPv4(127, 0, 0, 1), net.IPv4(224, 0, 0, 1)} {
		ack, err := dhcpv4.New(dhcpv4.WithYourIP(addr))
		if err != nil {
			t.Fatal(err)
		}
		if l, err := readLease(ack); err == nil {
			t.Errorf("a lease of %v is taken: %v", addr, l.Address)
		}
	}
}

// leftBy are the addresses and the routes that leases have left on an interface,
// which has an address of its own.
func leftBy(link netlink.Link, own netip.Addr) (addresses, routes []string, err error) {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range addrs {
		if ip := a.IP.String(); ip != own.String() {
			addresses = append(addresses, ip)
		}
	}
	all, err := netlink.RouteList(link, netlink.FAMILY_V4)
	for _, r := range all {
		if r.Protocol == 16 { // RTPROT_DHCP
			routes = append(routes, r.Dst.String())
		}
	}
	return addresses, routes, err
}
