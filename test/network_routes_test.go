package test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// Where flows leave the host, when there is more than one way, or there was
// another one when the gate started.

// anycast are addresses that each of several machines outside has: which of them
// answers tells the way that was taken.
var anycast = []netip.Addr{mustAddr("198.51.100.250"), mustAddr("2001:db8:fa::1")}

// ways is a Host with two machines outside that have the anycast addresses.
// Servers on them say who has answered, and whom.
type ways struct {
	site
	other    *testenv.Outside
	tcp, udp int // ports of the servers
}

const nowhere = "network is unreachable"

func newWays(t *testing.T) ways {
	s := newSite(t)
	w := ways{site: s, other: s.Host.Outside(t), tcp: 7000, udp: 7001}
	site{s.Host, w.other}.acquaint(t)
	for name, o := range map[string]*testenv.Outside{"first": s.outside, "other": w.other} {
		for _, a := range anycast {
			if r := o.Run(t, o.Command("ip", "address", "add", a.String(), "dev", "lo", "nodad")); r.Code != 0 {
				t.Fatal(r)
			}
			serveTCP(t, o, at(a, w.tcp), func(conn *net.TCPConn) {
				_, _ = conn.Read(make([]byte, 1))
				fmt.Fprint(conn, name, " ", conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
			})
			serveUDP(t, o, at(a, w.udp), func(c *net.UDPConn, _ []byte, from netip.AddrPort) {
				_, _ = c.WriteToUDPAddrPort(fmt.Append(nil, name, " ", from.Addr()), from)
			})
		}
	}
	return w
}

// ip runs lines of ip(8) on the Host.
func (s site) ip(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if r := s.Run(t, s.RootCommand("ip", strings.Fields(line)...)); r.Code != 0 {
			t.Fatalf("ip %s: %v", line, r)
		}
	}
}

// leave takes the Host off a network.
func (w ways) leave(t *testing.T, o *testenv.Outside) {
	t.Helper()
	w.ip(t, "address flush dev "+o.Interface, "link set down dev "+o.Interface)
}

// up gives the Host its addresses on a network.
func (w ways) up(t *testing.T, o *testenv.Outside) {
	t.Helper()
	w.ip(t, "link set up dev "+o.Interface)
	w.hasAddress(t, o.HostAddr4.String()+"/28", o.Interface)
	w.hasAddress(t, o.HostAddr6.String()+"/64", o.Interface)
}

// join puts the Host on a network, with a default route.
func (w ways) join(t *testing.T, o *testenv.Outside) {
	t.Helper()
	w.up(t, o)
	w.ip(t, "route add default via "+o.Addr4.String(), "-6 route add default via "+o.Addr6.String()+" dev "+o.Interface)
}

// asks ADDR sends a datagram for each line of its stdin, from one socket, and
// prints the answer, or the error of which the kernel tells.
var _ = testenv.Probe("asks", func(args []string) int {
	conn, err := net.Dial("udp", args[0])
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			// One of them is for the other family, and fails.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
		})
	}
	if err != nil {
		return report(err)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		buf := make([]byte, 100)
		n := 0
		ok := testenv.Eventually(testenv.Patience, func() bool {
			if _, err = conn.Write([]byte("who?")); err == nil {
				err = conn.SetReadDeadline(time.Now().Add(narrow))
			}
			if err == nil {
				n, err = conn.Read(buf)
			}
			return err == nil || !errors.Is(err, os.ErrDeadlineExceeded)
		})
		if !ok || err != nil {
			fmt.Println(outcome(err))
			continue
		}
		fmt.Println(string(buf[:n]))
	}
	return 0
})

// asker is a socket inside that lives for longer than a way.
type asker struct {
	*testenv.Process
	keys *os.File
	said int
}

func (g *gate) asker(t *testing.T, to string) *asker {
	t.Helper()
	stdin, keys := newPipe(t)
	cmd := g.in("probe", "asks", to)
	cmd.Stdin = stdin
	return &asker{Process: g.host.Start(t, cmd), keys: keys}
}

func (a *asker) ask(t *testing.T) string {
	t.Helper()
	fmt.Fprintln(a.keys)
	testenv.Until(t, "an answer to the datagram", func() bool { return strings.Count(a.Stdout(), "\n") > a.said })
	line := strings.Split(a.Stdout(), "\n")[a.said]
	a.said++
	return line
}

// goes says by which way new connections, a socket that has been there before, and
// pings leave the host, for each family: the machine that answers, and the address
// that it answers to.
func (w ways) goes(t *testing.T, g *gate, askers []*asker, machine string, from ...netip.Addr) {
	t.Helper()
	for i, to := range anycast {
		want := nowhere
		if machine != nowhere {
			want = machine + " " + from[i].String()
		}
		if machine == nowhere {
			if got := g.run(t, "probe", "connect", at(to, w.tcp)); got != at(to, w.tcp)+" "+want+"\n" {
				t.Errorf("TCP: %q, want %q", got, want)
			}
		} else if got := g.run(t, "probe", "read", at(to, w.tcp)); got != want+" ok\n" {
			t.Errorf("TCP: %q, want %q", got, want)
		}
		if got := askers[i].ask(t); got != want {
			t.Errorf("UDP: %q, want %q", got, want)
		}
		if r := w.Run(t, g.in("ping", "-n", "-c1", "-W10", to.String())); (r.Code == 0) != (machine != nowhere) {
			t.Errorf("ping: %v, want what fits to %q", r, want)
		}
	}
}

// askers are one for each family.
func (w ways) askers(t *testing.T, g *gate) (askers []*asker) {
	t.Helper()
	for _, to := range anycast {
		askers = append(askers, g.asker(t, at(to, w.udp)))
	}
	return askers
}

// The host's routing decides, for each flow, at the moment of it.
func TestFlowsFollowTheHostsRoutes(t *testing.T) {
	w := newWays(t)
	first, other := w.outside, w.other
	w.leave(t, first)
	w.leave(t, other)
	g := startGate(t, w.Host, "--net=slirp", "sleep", "infinity")
	askers := w.askers(t, g)
	w.goes(t, g, askers, nowhere)

	w.join(t, first) // the host comes up
	w.goes(t, g, askers, "first", first.HostAddr4, first.HostAddr6)

	w.leave(t, first) // and moves to another network
	w.goes(t, g, askers, nowhere)
	w.join(t, other)
	w.goes(t, g, askers, "other", other.HostAddr4, other.HostAddr6)

	// A VPN, as wg-quick(8) raises one: a table that goes before the main one.
	w.up(t, first)
	w.ip(t, "route add default table 51820 via "+first.Addr4.String(), "-6 route add default table 51820 via "+first.Addr6.String()+" dev "+first.Interface)
	w.goes(t, g, askers, "other", other.HostAddr4, other.HostAddr6)
	w.ip(t, "rule add not fwmark 51820 table 51820", "-6 rule add not fwmark 51820 table 51820")
	w.goes(t, g, askers, "first", first.HostAddr4, first.HostAddr6)
	w.ip(t, "rule del not fwmark 51820 table 51820", "-6 rule del not fwmark 51820 table 51820")
	w.goes(t, g, askers, "other", other.HostAddr4, other.HostAddr6)
	g.stop(t)
}

// What is to leave by an interface leaves by no other, and by none while that is
// not there.
func TestFlowsLeaveByTheInterfaceThatIsAskedFor(t *testing.T) {
	w := newWays(t)
	other := w.other
	byOther := []string{"route add default metric 100 via " + other.Addr4.String(), "-6 route add default metric 2000 via " + other.Addr6.String() + " dev " + other.Interface}
	w.ip(t, byOther...)
	g := startGate(t, w.Host, "--net=slirp", "--outbound-interface="+other.Interface, "sleep", "infinity")
	askers := w.askers(t, g)
	w.goes(t, g, askers, "other", other.HostAddr4, other.HostAddr6)
	w.leave(t, other)
	w.goes(t, g, askers, nowhere)
	w.up(t, other)
	w.ip(t, byOther...)
	w.goes(t, g, askers, "other", other.HostAddr4, other.HostAddr6)
	g.stop(t)
}

// An address of one family says nothing about the other.
func TestAnOutboundAddressIsForItsFamily(t *testing.T) {
	w := newWays(t)
	first, second4, second6 := w.outside, mustAddr("198.51.100.9"), mustAddr("2001:db8::9")
	w.hasAddress(t, second4.String()+"/28", first.Interface)
	w.hasAddress(t, second6.String()+"/64", first.Interface)
	w.ip(t, "-6 route replace default via "+first.Addr6.String()+" dev "+first.Interface+" src "+first.HostAddr6.String())
	for _, c := range []struct {
		flag   netip.Addr
		source [2]netip.Addr
	}{
		{second4, [2]netip.Addr{second4, first.HostAddr6}},
		{second6, [2]netip.Addr{first.HostAddr4, second6}},
	} {
		g := startGate(t, w.Host, "--net=slirp", "--outbound-addr="+c.flag.String(), "sleep", "infinity")
		w.goes(t, g, w.askers(t, g), "first", c.source[0], c.source[1])
		for i, to := range anycast {
			if from := w.pingedFrom(t, g, to); from != c.source[i] {
				t.Errorf("ping comes from %v, want %v", from, c.source[i])
			}
		}
		g.Signal(signalTerm)
		g.Wait(t)
	}
}

// pingedFrom is the source of a ping as the first machine sees it.
func (w ways) pingedFrom(t *testing.T, g *gate, to netip.Addr) netip.Addr {
	t.Helper()
	network, request := "ip4:icmp", byte(8)
	if to.Is6() {
		network, request = "ip6:ipv6-icmp", 128
	}
	var conn *net.IPConn
	w.outside.Do(t, func() (err error) {
		conn, err = net.ListenIP(network, &net.IPAddr{IP: to.AsSlice()})
		return err
	})
	defer conn.Close()
	g.run(t, "ping", "-n", "-c1", "-W10", to.String())
	if err := conn.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 1500); ; {
		n, from, err := conn.ReadFromIP(buf)
		if err != nil {
			t.Fatal(err)
		}
		if a, ok := netip.AddrFromSlice(from.IP); ok && n > 0 && buf[0] == request {
			return a.Unmap()
		}
	}
}

// A cloud's metadata is a server like any other, unless a rule says no.
func TestMetadataIsReachedUnlessDenied(t *testing.T) {
	s := newSite(t)
	for _, metadata := range []netip.Addr{mustAddr("169.254.169.254"), mustAddr("fd00:ec2::254")} {
		if r := s.outside.Run(t, s.outside.Command("ip", "address", "add", metadata.String(), "dev", "lo", "nodad")); r.Code != 0 {
			t.Fatal(r)
		}
		addr := at(metadata, int(serveTCP(t, s.outside, at(metadata, 0), echoTCP).Port()))
		g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
		g.run(t, "probe", "exchange", addr, "1000")
		g.stop(t)
		rule := metadata.String()
		if metadata.Is6() {
			rule = "[" + rule + "]"
		}
		g = startGate(t, s.Host, "--net=slirp", "--egress-deny=any://"+rule, "sleep", "infinity")
		if got := g.run(t, "probe", "connect", addr); got != addr+" connection refused\n" {
			t.Error(got)
		}
		g.stop(t)
	}
}
