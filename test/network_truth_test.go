package test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// What a guest sees of what routers and hosts outside say: the same as a program
// on the host would see.

// farther is a machine behind the machine outside, which is its router.
type farther struct {
	*testenv.Outside
	addr4, addr6 netip.Addr
}

// farther makes the machine outside a router to one more machine. The link
// between those two takes packets of mtu bytes.
func (s site) farther(t *testing.T, mtu int) farther {
	t.Helper()
	far := farther{s.Host.Outside(t), netip.MustParseAddr("198.51.100.226"), netip.MustParseAddr("2001:db8:f::2")}
	var ns *os.File
	far.Do(t, func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	defer ns.Close()
	run := func(m *testenv.Outside, line string) {
		t.Helper()
		cmd := m.Command("sh", "-ec", line)
		cmd.ExtraFiles = []*os.File{ns}
		if r := m.Run(t, cmd); r.Code != 0 {
			t.Fatalf("%s: %v", line, r)
		}
	}
	run(far.Outside, "ip link delete eth0")
	run(s.outside, fmt.Sprintf(`
		ip link add far mtu %[1]d address 02:00:00:00:00:01 type veth peer name near mtu %[1]d address 02:00:00:00:00:02 netns /proc/self/fd/3
		ip address add 198.51.100.225/28 dev far
		ip address add 2001:db8:f::1/64 dev far nodad
		ip link set far up
		ip neighbour add 2001:db8:f::2 lladdr 02:00:00:00:00:02 dev far
		echo 1 >/proc/sys/net/ipv4/ip_forward
		echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
		# Tests ask more often than a router likes to answer.
		echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
		echo 0 >/proc/sys/net/ipv6/icmp/ratelimit`, mtu))
	run(far.Outside, `
		ip address add 198.51.100.226/28 dev near
		ip address add 2001:db8:f::2/64 dev near nodad
		ip link set near up
		ip neighbour add 2001:db8:f::1 lladdr 02:00:00:00:00:01 dev near
		ip route add default via 198.51.100.225
		ip route add default via 2001:db8:f::1
		echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
		echo 0 >/proc/sys/net/ipv6/icmp/ratelimit`)
	return far
}

// dialSized takes ADDR SIZE, and connects a UDP socket to the address.
func dialSized(args []string) (conn net.Conn, size int, err error) {
	if _, err := fmt.Sscan(args[1], &size); err != nil {
		return nil, 0, err
	}
	conn, err = net.Dial("udp", args[0])
	return conn, size, err
}

// udp-error ADDR SIZE sends datagrams on a connected socket until there is an
// error, and prints it. They are not to be fragmented. The socket asks for all
// errors; without that, the kernel tells of the lasting ones only.
var _ = testenv.Probe("udp-error", func(args []string) int {
	conn, size, err := dialSized(args)
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return report(err)
	}
	ipv6 := netip.MustParseAddrPort(args[0]).Addr().Is6()
	err = raw.Control(func(fd uintptr) {
		if ipv6 {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
		} else {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
		}
	})
	if err != nil {
		return report(err)
	}
	for deadline := time.Now().Add(testenv.Patience / 2); time.Now().Before(deadline); {
		if _, err = conn.Write(pattern(size)); err == nil {
			if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				return report(err)
			}
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	mtu := 0
	err = errors.Join(err, raw.Control(func(fd uintptr) {
		if ipv6 {
			mtu, _ = unix.GetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_MTU)
		} else {
			mtu, _ = unix.GetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MTU)
		}
	}))
	fmt.Println(outcome(err), mtu)
	return 0
})

// udp-large ADDR SIZE sends datagrams, on a socket with the kernel's defaults,
// until one comes back.
var _ = testenv.Probe("udp-large", func(args []string) int {
	conn, size, err := dialSized(args)
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	for deadline := time.Now().Add(testenv.Patience); time.Now().Before(deadline); {
		if _, err := conn.Write(pattern(size)); err != nil && !errors.Is(err, syscall.EMSGSIZE) {
			return report(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return report(err)
		}
		if n, err := conn.Read(make([]byte, 65535)); err == nil && n == size {
			return report(nil)
		}
	}
	return report(os.ErrDeadlineExceeded)
})

func TestTracesShowTheHopsOutside(t *testing.T) {
	s := newSite(t)
	far := s.farther(t, 1500)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for name, hops := range map[string][]netip.Addr{
		"over IPv4": {netip.MustParseAddr("10.0.2.2"), s.outside.Addr4, far.addr4},
		"over IPv6": {netip.MustParseAddr("fd67:6174:656b::2"), s.outside.Addr6, far.addr6},
	} {
		for _, program := range []string{"traceroute -U -n -w 5", "traceroute -n -w 5", "traceroute -I -n -w 5", "traceroute -T -n -w 5", "tracepath -n"} {
			t.Run(program+" "+name, func(t *testing.T) {
				out := g.run(t, append(strings.Fields(program), hops[2].String())...)
				for i, hop := range hops {
					found := false
					for line := range strings.Lines(out) {
						f := strings.Fields(line)
						found = found || len(f) > 1 && strings.TrimSuffix(f[0], ":") == fmt.Sprint(i+1) && f[1] == hop.String()
					}
					if !found {
						t.Errorf("%s\nwant %v as hop %d", out, hop, i+1)
					}
				}
				if strings.Contains(out, "*") || strings.Contains(out, "!") || strings.Contains(out, "no reply") || strings.Contains(out, "asymm") {
					t.Errorf("%s\nwant all hops to answer", out)
				}
			})
		}
	}
	g.stop(t)
}

// The path's MTU is smaller behind the router than at the gate.
func TestThePathsMTUReachesTheGuest(t *testing.T) {
	s := newSite(t)
	far := s.farther(t, 1400)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for name, addr := range map[string]netip.Addr{"over IPv4": far.addr4, "over IPv6": far.addr6} {
		t.Run(name, func(t *testing.T) {
			server := addrOf(serveUDP(t, far, at(addr, 0), echoUDP)).String()
			// Twice: the host's kernel knows the path by then.
			for range 2 {
				if got := g.run(t, "probe", "udp-error", server, "1450"); got != "message too long 1400\n" {
					t.Errorf("the socket sees %q, want that the message is too long, and an MTU of 1400", got)
				}
				g.run(t, "ip", "route", "flush", "cache")
				g.run(t, "ip", "-6", "route", "flush", "cache")
			}
			g.run(t, "probe", "udp-large", server, "1450")
			g.run(t, "probe", "udp-large", server, "9000")
			if out := g.run(t, "tracepath", "-n", addr.String()); !strings.Contains(out, "pmtu 1400") {
				t.Errorf("tracepath: %s\nwant pmtu 1400", out)
			}
			out := g.run(t, "ping", "-c", "2", "-i", "0.01", "-W", "10", "-M", "dont", "-s", "1440", addr.String())
			if !strings.Contains(out, " 0% packet loss") {
				t.Errorf("ping: %s", out)
			}
		})
	}
	g.stop(t)
}

// Routes to nowhere on the router, and on the host itself.
func TestUnreachableIsToldAtOnce(t *testing.T) {
	s := newSite(t)
	s.farther(t, 1500)
	noRoute := netip.MustParseAddr("203.0.113.1")
	for _, line := range []string{
		"ip route add unreachable 198.51.100.201", "ip -6 route add unreachable 2001:db8:ffff::201",
		"ip route add prohibit 198.51.100.202", "ip -6 route add prohibit 2001:db8:ffff::202",
	} {
		if r := s.outside.Run(t, s.outside.Command("sh", "-c", line)); r.Code != 0 {
			t.Fatal(r)
		}
	}
	for _, line := range []string{
		"route add unreachable 198.51.100.203", "-6 route add unreachable 2001:db8:ffff::203",
		"route add prohibit 198.51.100.204", "-6 route add prohibit 2001:db8:ffff::204",
		"route add throw 203.0.113.0/24", "-6 route add throw 2001:db8:eeee::/48",
	} {
		if r := s.Run(t, s.RootCommand("ip", strings.Fields(line)...)); r.Code != 0 {
			t.Fatal(r)
		}
	}
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for _, c := range []struct{ name, addr, tcp, udp string }{
		{"a closed port", s.outside.Addr4.String(), "connection refused", "connection refused"},
		{"a closed port over IPv6", s.outside.Addr6.String(), "connection refused", "connection refused"},
		{"unreachable at the router", "198.51.100.201", "no route to host", "no route to host"},
		{"unreachable at the router over IPv6", "2001:db8:ffff::201", "network is unreachable", "network is unreachable"},
		{"prohibited at the router", "198.51.100.202", "no route to host", "no route to host"},
		{"prohibited at the router over IPv6", "2001:db8:ffff::202", "permission denied", "permission denied"},
		{"unreachable on the host", "198.51.100.203", "no route to host", "no route to host"},
		{"unreachable on the host over IPv6", "2001:db8:ffff::203", "no route to host", "no route to host"},
		{"prohibited on the host", "198.51.100.204", "no route to host", "no route to host"},
		{"prohibited on the host over IPv6", "2001:db8:ffff::204", "permission denied", "permission denied"},
		{"no route", noRoute.String(), "network is unreachable", "network is unreachable"},
		{"no route over IPv6", "2001:db8:eeee::1", "network is unreachable", "network is unreachable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := at(netip.MustParseAddr(c.addr), 9)
			if got, want := g.run(t, "probe", "connect", to), to+" "+c.tcp+"\n"; got != want {
				t.Errorf("TCP: %q, want %q", got, want)
			}
			if got := g.run(t, "probe", "udp-error", to, "100"); !strings.HasPrefix(got, c.udp+" ") {
				t.Errorf("UDP: %q, want %q", got, c.udp)
			}
		})
	}
	g.stop(t)
}

// The gate's interface has its addresses, and nothing that is in doubt.
func TestIPv6InsideIsSettled(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	out := g.run(t, "ip", "-6", "-o", "address", "show", "dev", "tap0")
	if strings.Count(out, "inet6") != 2 || !strings.Contains(out, " fd67:6174:656b::100/64 scope global") || !strings.Contains(out, " fe80::") {
		t.Errorf("%s\nwant the address and a link-local one", out)
	}
	for _, doubt := range []string{"tentative", "dadfailed", "dynamic", "deprecated"} {
		if strings.Contains(out, doubt) {
			t.Errorf("%s\nwant nothing %s", out, doubt)
		}
	}
	if out := g.run(t, "ip", "-6", "route"); strings.Contains(out, "proto ra") || strings.Count(out, "default") != 1 {
		t.Errorf("%s\nwant one default route, of our own", out)
	}
	g.stop(t)
}

// Without IPv6 the interface has no address of it, and the loopback keeps its own.
func TestWithoutIPv6TheInterfaceHasNone(t *testing.T) {
	s := newSite(t)
	for _, flag := range []string{"--ipv6=false", "--mtu=1000"} {
		g := startGate(t, s.Host, "--net=slirp", flag, "sleep", "infinity")
		if out := g.run(t, "ip", "-6", "-o", "address", "show", "dev", "tap0"); out != "" {
			t.Errorf("%s: %s\nwant no address", flag, out)
		}
		if out := g.run(t, "ip", "-6", "route", "get", "::1"); !strings.Contains(out, "dev lo") {
			t.Errorf("%s: %s\nwant ::1 on lo", flag, out)
		}
		if out := g.run(t, "ip", "-6", "-o", "address", "show", "dev", "lo"); !strings.Contains(out, " ::1/128") {
			t.Errorf("%s: %s\nwant ::1 on lo", flag, out)
		}
		g.stop(t)
	}
}

// An address that the gateway has cannot be taken inside; any other can.
func TestDuplicateAddressesAreDetected(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	g.run(t, "sysctl", "-q", "-w", "net.ipv6.conf.tap0.accept_dad=1")
	g.run(t, "ip", "address", "add", "fd67:6174:656b::2/64", "dev", "tap0")
	g.run(t, "ip", "address", "add", "fd67:6174:656b::77/64", "dev", "tap0")
	testenv.Until(t, "both addresses to be settled", func() bool {
		out := g.run(t, "ip", "-6", "-o", "address", "show", "dev", "tap0", "tentative", "-dadfailed")
		return !strings.Contains(out, "inet6")
	})
	failed := g.run(t, "ip", "-6", "-o", "address", "show", "dev", "tap0", "dadfailed")
	if !strings.Contains(failed, "fd67:6174:656b::2/64") || strings.Contains(failed, "::77/64") {
		t.Errorf("duplicates: %q, want the gateway's address alone", failed)
	}
	g.stop(t)
}

// On a host without IPv6, what is IPv6 fails at once, and what is not is not held
// up by it.
func TestIPv6FailsAtOnceOnAHostWithoutIt(t *testing.T) {
	s := newSite(t)
	port := serveTCP(t, s.outside, "0.0.0.0:0", echoTCP).Port()
	s.Do(t, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0o644)
	})
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for _, addr := range []string{"2001:db8::2", "2606:4700::1111"} {
		to := at(netip.MustParseAddr(addr), int(port))
		if got, want := g.run(t, "probe", "connect", to), to+" network is unreachable\n"; got != want {
			t.Errorf("TCP: %q, want %q", got, want)
		}
		if got := g.run(t, "probe", "udp-error", to, "100"); !strings.HasPrefix(got, "network is unreachable ") {
			t.Errorf("UDP: %q, want that the network is unreachable", got)
		}
		if r := s.Run(t, g.in("ping", "-c", "1", "-W", "30", addr)); !strings.Contains(r.Stdout, "Destination unreachable: No route") {
			t.Errorf("ping: %v, want no route", r)
		}
	}
	g.run(t, "probe", "exchange", at(s.outside.Addr4, int(port)), "1000")
	g.stop(t)
}
