package test

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

// witness NETWORK,ADDR,PORT... is a service that tells each client the address and
// port that it sees.
var _ = testenv.Probe("witness", func(args []string) int {
	for _, arg := range args {
		if err := testify(arg); err != nil {
			return report(err)
		}
	}
	fmt.Println("serving")
	select {} // until it is killed
})

// testify serves one address of a witness. tcp,::,80 is IPv6 alone.
func testify(at string) error {
	network, addr, _ := strings.Cut(at, ",")
	host, port, _ := strings.Cut(addr, ",")
	family := "4"
	if strings.Contains(host, ":") {
		family = "6"
	}
	answer := func(peer net.Addr) []byte {
		p := netip.MustParseAddrPort(peer.String())
		return fmt.Appendf(nil, "%s %d", p.Addr().WithZone(""), p.Port())
	}
	if network == "tcp" {
		l, err := net.Listen("tcp"+family, net.JoinHostPort(host, port))
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write(answer(conn.RemoteAddr()))
				conn.Close()
			}
		}()
		return nil
	}
	conn, err := net.ListenPacket("udp"+family, net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	go func() {
		for {
			_, peer, err := conn.ReadFrom(make([]byte, 65535))
			if err == nil {
				_, _ = conn.WriteTo(answer(peer), peer)
			}
		}
	}()
	return nil
}

// witness runs the service inside, at addresses written as tcp,0.0.0.0,80.
func (g *gate) witness(t *testing.T, at ...string) {
	t.Helper()
	g.witnessBy(t, g.in, at...)
}

// witnessBy does, by this way in.
func (g *gate) witnessBy(t *testing.T, in func(...string) *exec.Cmd, at ...string) {
	t.Helper()
	p := g.host.Start(t, in(append([]string{"probe", "witness"}, at...)...))
	awaitLine(t, p, "(serving)")
}

// seen asks a witness, by tcp or udp, whom it sees, and returns that and the
// client's own address.
func seen(t *testing.T, network string, from machine, addr string) (saw, own netip.AddrPort) {
	t.Helper()
	var answer []byte
	if network == "tcp" {
		conn, err := dialTCP(t, from, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if answer, err = io.ReadAll(conn); err != nil {
			t.Fatal(err)
		}
		own = netip.MustParseAddrPort(conn.LocalAddr().String())
	} else {
		conn := dialUDP(t, from, addr)
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("who am I?")); err != nil {
			t.Fatal(err)
		}
		answer = make([]byte, 100)
		n, err := conn.Read(answer)
		if err != nil {
			t.Fatal(err)
		}
		answer, own = answer[:n], addrOf(conn)
	}
	var ip string
	var port uint16
	if _, err := fmt.Sscan(string(answer), &ip, &port); err != nil {
		t.Fatalf("the service answers %q: %v", answer, err)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(ip), port), own
}

// expectOwn expects the service behind a forward to see the client as it is.
func expectOwn(t *testing.T, network string, from machine, addr string) {
	t.Helper()
	if saw, own := seen(t, network, from, addr); saw != own {
		t.Errorf("the service sees %v, want the client's own address, %v", saw, own)
	}
}

// expectLoopback expects it to see the loopback of the namespace.
func expectLoopback(t *testing.T, network string, from machine, addr string) {
	t.Helper()
	if saw, own := seen(t, network, from, addr); !saw.Addr().IsLoopback() {
		t.Errorf("the service sees %v of a client at %v, want the loopback", saw, own)
	}
}

// expectListed expects the forwards to be listed with whose address their services
// see.
func (g *gate) expectListed(t *testing.T, want ...string) {
	t.Helper()
	list, err := g.client(t).ListPorts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range list {
		got = append(got, p.SourceIP)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the services are listed as seeing the addresses of clients %q, want %q", got, want)
	}
}

func TestServicesSeeTheAddressOfTheirClient(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for i, c := range []struct{ service, child string }{
		{"0.0.0.0", ""},
		{"0.0.0.0", "127.0.0.1:"},
		{"0.0.0.0", "127.0.0.5:"},
		{"0.0.0.0", "10.0.2.100:"},
		{"127.0.0.1", ""},
		{"127.0.0.1", "127.0.0.1:"},
		{"10.0.2.100", "10.0.2.100:"},
		{"::", ""},
		{"::", "[::1]:"},
		{"::", "[fd67:6174:656b::100]:"},
		{"::1", ""},
		{"::1", "[::1]:"},
		{"fd67:6174:656b::100", "[fd67:6174:656b::100]:"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			t.Run(fmt.Sprintf("%s to a service on %s by %q", network, c.service, c.child), func(t *testing.T) {
				g.witness(t, fmt.Sprintf("%s,%s,%d", network, c.service, 7000+i))
				g.add(t, fmt.Sprintf("%d:%s%d/%s", 8000+i, c.child, 7000+i, network))
				host := s.outside.HostAddr4
				if netip.MustParseAddr(c.service).Is6() {
					host = s.outside.HostAddr6
				}
				for range 2 {
					expectOwn(t, network, s.outside, at(host, 8000+i))
				}
			})
		}
	}
	g.stop(t)
}

// everywhere are the addresses of a service on all loopbacks.
var everywhere = []string{"tcp,127.0.0.1,80", "tcp,::1,80", "udp,127.0.0.1,80", "udp,::1,80"}

// publishAll are the forwards to it.
var publishAll = []string{"-p", "8080:80/tcp", "-p", "8080:80/udp"}

func TestClientsKeepTheirAddressInAllKindsOfGates(t *testing.T) {
	for _, flags := range [][]string{
		{"--detach-netns"},
		{"--pidns", "--mtu=65520"},
		{"--single-id", "--mtu=1280", "--ifname=eth0.1", "--cidr=10.9.0.0/16"},
	} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			s := newSite(t)
			g := startGate(t, s.Host, slices.Concat([]string{"--net=slirp"}, flags, publishAll, []string{"sleep", "infinity"})...)
			g.witness(t, everywhere...)
			for _, network := range []string{"tcp", "udp"} {
				expectOwn(t, network, s.outside, at(s.outside.HostAddr4, 8080))
				expectOwn(t, network, s.outside, at(s.outside.HostAddr6, 8080))
			}
		})
	}
}

// Several clients at once, and one client on two forwards to one service, by the
// same port of its own.
func TestClientsAreToldApart(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, slices.Concat([]string{"--net=slirp"}, publishAll, []string{"-p", "8081:80/tcp", "sleep", "infinity"})...)
	g.witness(t, everywhere...)
	second := s.Host.Outside(t)
	for _, network := range []string{"tcp", "udp"} {
		expectOwn(t, network, s.outside, at(s.outside.HostAddr4, 8080))
		expectOwn(t, network, second, at(second.HostAddr4, 8080))
	}
	expectOwn(t, "tcp", s.outside, at(s.outside.HostAddr4, 8081))
}

func TestTheHostItselfIsSeenAsTheLoopback(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, slices.Concat([]string{"--net=slirp"}, publishAll, []string{"sleep", "infinity"})...)
	g.witness(t, everywhere...)
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), s.outside.HostAddr4, s.outside.HostAddr6} {
			expectLoopback(t, network, s.Host, at(addr, 8080))
		}
	}
}

func TestSourceIPCanBeTurnedOff(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, slices.Concat([]string{"--net=slirp", "--source-ip=off"}, publishAll, []string{"sleep", "infinity"})...)
	g.witness(t, everywhere...)
	g.expectListed(t, "off", "off")
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range []netip.Addr{s.outside.HostAddr4, s.outside.HostAddr6} {
			expectLoopback(t, network, s.outside, at(addr, 8080))
		}
	}
	if got := strings.TrimSpace(g.run(t, "cat", "/proc/sys/net/ipv4/conf/tap0/route_localnet")); got != "0" {
		t.Errorf("route_localnet of tap0 is %s, want nothing changed", got)
	}
	r := runGate(t, s.Host, "--net=slirp", "--source-ip=sometimes", "true")
	if r.Code != 2 || len(lacks(r.Stderr, "--source-ip=sometimes", "preserve or off")) > 0 {
		t.Errorf("with another value: %v", r)
	}
}

// shell runs commands inside, each of which must succeed.
func (g *gate) shell(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		g.run(t, strings.Fields(c)...)
	}
}

// Where the namespace has another way to a client than the gateway, or none, what a
// service answers does not come to the gate. So the client is served by the fast path, at
// once, and others are not.
func TestClientsToWhomAnotherRouteLeadsAreServed(t *testing.T) {
	s := newSite(t)
	second := s.Host.Outside(t)
	for name, route := range map[string]struct{ ipv4, ipv6 string }{
		"by another router":    {"CLIENT via 10.77.0.2", "CLIENT via fd77::2"},
		"as a neighbour":       {"CLIENT dev other", "CLIENT dev other"},
		"as a neighbour of us": {"CLIENT dev tap0", "CLIENT dev tap0"},
		"as an own address":    {"local CLIENT dev lo", "local CLIENT dev lo"},
		"to nowhere":           {"blackhole CLIENT", "blackhole CLIENT"},
		"to an error":          {"prohibit CLIENT", "unreachable CLIENT"},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, s.Host, slices.Concat([]string{"--net=slirp"}, publishAll, []string{"sleep", "infinity"})...)
			g.witness(t, everywhere...)
			g.expectListed(t, "preserve", "preserve")
			g.shell(t,
				"ip link add other type veth peer name end",
				"ip address add 10.77.0.1/24 dev other",
				"ip address add fd77::1/64 dev other nodad",
				"ip link set other up",
				"ip link set end up",
				"ip -4 route add "+strings.ReplaceAll(route.ipv4, "CLIENT", s.outside.Addr4.String()),
				"ip -6 route add "+strings.ReplaceAll(route.ipv6, "CLIENT", s.outside.Addr6.String()))
			for _, network := range []string{"tcp", "udp"} {
				expectLoopback(t, network, s.outside, at(s.outside.HostAddr4, 8080))
				expectLoopback(t, network, s.outside, at(s.outside.HostAddr6, 8080))
				expectOwn(t, network, second, at(second.HostAddr4, 8080))
				expectOwn(t, network, second, at(second.HostAddr6, 8080))
			}
			g.expectListed(t, "partly", "partly")
			told := map[netip.Addr]string{}
			for _, c := range parseConnections(t, g.ctlOutput(t, "connections", "--json")) { // of UDP, by now
				told[c.RemoteIP] = c.SourceIP
			}
			want := map[netip.Addr]string{s.outside.Addr4: "off", s.outside.Addr6: "off", second.Addr4: "preserve", second.Addr6: "preserve"}
			if !maps.Equal(told, want) {
				t.Errorf("the flows are told with %v, want %v", told, want)
			}
			g.stop(t)
			if log := g.Stderr(); strings.Contains(log, "does not answer") {
				t.Errorf("an answer was waited for: %s", log)
			}
		})
	}
}

// Where a firewall inside drops what comes in a client's name, TCP finds out by waiting,
// once for each client.
func TestClientsWhomAFirewallInsideDropsAreServed(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, slices.Concat([]string{"--net=slirp"}, publishAll, []string{"sleep", "infinity"})...)
	g.witness(t, everywhere...)
	g.shell(t,
		"nft add table ip wall",
		"nft add chain ip wall in { type filter hook input priority 0 ; }",
		"nft add rule ip wall in ip saddr "+s.outside.Addr4.String()+" drop")
	g.expectListed(t, "preserve", "preserve")
	for range 2 {
		expectLoopback(t, "tcp", s.outside, at(s.outside.HostAddr4, 8080))
	}
	expectOwn(t, "tcp", s.outside, at(s.outside.HostAddr6, 8080))
	g.expectListed(t, "partly", "preserve")
}

// Where it refuses that, nothing is waited for.
func TestClientsWhomAFirewallInsideRefusesAreServed(t *testing.T) {
	s := newSite(t)
	second := s.Host.Outside(t)
	g := startGate(t, s.Host, "--net=slirp", // to one address each, as Docker does
		"-p", "8080:127.0.0.1:80/tcp4", "-p", "8080:[::1]:80/tcp6", "-p", "8080:127.0.0.1:80/udp4", "-p", "8080:[::1]:80/udp6", "sleep", "infinity")
	g.witness(t, everywhere...)
	g.shell(t,
		"nft add table inet wall",
		"nft add chain inet wall in { type filter hook input priority 0 ; }")
	for from, prohibited := range map[string]string{
		"ip saddr " + s.outside.Addr4.String():  "",
		"ip6 saddr " + s.outside.Addr6.String(): " with icmpx admin-prohibited", // as firewalld does
	} {
		g.shell(t,
			"nft add rule inet wall in "+from+" meta l4proto tcp reject with tcp reset",
			"nft add rule inet wall in "+from+" meta l4proto udp reject"+prohibited)
	}
	for _, network := range []string{"tcp", "udp"} {
		expectLoopback(t, network, s.outside, at(s.outside.HostAddr4, 8080))
		expectLoopback(t, network, s.outside, at(s.outside.HostAddr6, 8080))
		expectOwn(t, network, second, at(second.HostAddr4, 8080))
		expectOwn(t, network, second, at(second.HostAddr6, 8080))
	}
	g.expectListed(t, "partly", "partly", "partly", "partly")
	g.stop(t)
	if log := g.Stderr(); strings.Contains(log, "does not answer") {
		t.Errorf("an answer was waited for: %s", log)
	}
}

// Clients of one family reach a service of the other, and an address inside that is
// neither the loopback's nor the interface's, by the fast path.
func TestWhereNoAddressCanBeKeptTheFastPathServes(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	g.run(t, "ip", "address", "add", "10.9.9.9/32", "dev", "lo")
	for i, c := range []struct {
		service, child string
		host           netip.Addr
		listed, saw    string
	}{
		{"::1", "[::1]", s.outside.HostAddr4, "partly", "::1"},
		{"127.0.0.1", "127.0.0.1", s.outside.HostAddr6, "partly", "127.0.0.1"},
		{"fd67:6174:656b::100", "[fd67:6174:656b::100]", s.outside.HostAddr4, "partly", "fd67:6174:656b::100"},
		{"10.0.2.100", "10.0.2.100", s.outside.HostAddr6, "partly", "10.0.2.100"},
		{"10.9.9.9", "10.9.9.9", s.outside.HostAddr4, "off", "10.9.9.9"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			t.Run(network+" from "+c.host.String()+" to "+c.service, func(t *testing.T) {
				g.witness(t, fmt.Sprintf("%s,%s,%d", network, c.service, 7000+i))
				added := g.add(t, fmt.Sprintf("%d:%s:%d/%s", 8000+i, c.child, 7000+i, network))
				if added[0].SourceIP != c.listed {
					t.Errorf("it is listed as %q, want %q", added[0].SourceIP, c.listed)
				}
				if saw, _ := seen(t, network, s.outside, at(c.host, 8000+i)); saw.Addr().String() != c.saw {
					t.Errorf("the service sees %v, want %s", saw, c.saw)
				}
			})
		}
	}
}

// Without a service the client sees a reset, as on the host; with one that listens
// on the other family alone, it is served by that.
func TestRefusalsReachTheClient(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/tcp", "-p", "8081:81/tcp", "-p", "8081:81/udp", "sleep", "infinity")
	for _, host := range []netip.Addr{s.outside.HostAddr4, s.outside.HostAddr6} {
		conn, err := dialTCP(t, s.outside, at(host, 8080))
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if got := outcome(err); got != "connection reset by peer" {
			t.Errorf("without a service, the client of %v sees %q", host, got)
		}
	}
	g.serve(t, "tcp", "127.0.0.1:80")
	g.witness(t, "tcp,::1,81", "udp,::1,81")
	for _, network := range []string{"tcp", "udp"} { // of a datagram there is only one
		expectLoopback(t, network, s.outside, at(s.outside.HostAddr4, 8081))
		expectOwn(t, network, s.outside, at(s.outside.HostAddr6, 8081))
	}
	if err := tryTCP(t, s.outside, at(s.outside.HostAddr4, 8080), 1000); err != nil {
		t.Errorf("the service that came later: %v", err)
	}
}

// A strict reverse path filter, set on the host or inside, looks for the client
// behind lo.
func TestAStrictReversePathFilterLetsClientsIn(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, slices.Concat([]string{"--net=slirp"}, publishAll, []string{"sleep", "infinity"})...)
	g.witness(t, everywhere...)
	g.run(t, "sh", "-c", "for f in all default tap0; do echo 1 > /proc/sys/net/ipv4/conf/$f/rp_filter; done")
	for _, network := range []string{"tcp", "udp"} {
		expectOwn(t, network, s.outside, at(s.outside.HostAddr4, 8080))
	}
}

// The connections of a forward that is removed are cut, also those that no
// goroutine of the port driver has.
func TestRemovingAForwardCutsItsClients(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	g.serve(t, "tcp", "127.0.0.1:80")
	added := g.add(t, "8080:80/tcp")
	conn, err := dialTCP(t, s.outside, at(s.outside.HostAddr4, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := g.client(t).RemovePort(t.Context(), added[0].ID); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); outcome(err) != "connection reset by peer" {
		t.Errorf("the client sees %q", outcome(err))
	}
}
