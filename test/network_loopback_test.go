package test

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// A gate's gateways, where no other network is asked for.
const (
	gateway4 = "10.0.2.2"
	gateway6 = "fd67:6174:656b::2"
)

// routedOut makes packets for addresses of the namespace itself go out to the
// gateway, as a program that is root inside may.
const routedOut = `
	echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
	ip route flush table local 127.0.0.0/8
	ip address del 127.0.0.1/8 dev lo
	ip -6 address del ::1/128 dev lo
	for net in 127.0.0.0/8 0.0.0.0/8 10.0.2.3 10.0.2.1 10.0.2.200; do
		ip route add $net via ` + gateway4 + ` src 10.0.2.100
	done
	for net in ::1 fd67:6174:656b::3 fd67:6174:656b::1 fd67:6174:656b::200; do
		ip -6 route add $net via ` + gateway6 + ` src fd67:6174:656b::100
	done
	ip route get 127.0.0.1; ip -6 route get ::1`

// What could be taken for the host: the gateway, the rest of the namespace's
// own network, where there is nobody, and loopback itself.
var (
	gateways = []string{gateway4, gateway6}
	nobody   = []string{dns4, dns6, "10.0.2.1", "10.0.2.200", "fd67:6174:656b::1", "fd67:6174:656b::200"}
	loopback = []string{"127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.1", "::1"}
)

// withPort joins addresses with a port, after what comes before them.
func withPort(before, addrs []string, port uint16) []string {
	out := slices.Clone(before)
	for _, addr := range addrs {
		out = append(out, net.JoinHostPort(addr, strconv.Itoa(int(port))))
	}
	return out
}

func TestTheHostsLoopbackIsClosed(t *testing.T) {
	for name, flags := range map[string][]string{
		"by default":                    {},
		"with --host-loopback=none":     {"--host-loopback=none"},
		"with --disable-host-loopback":  {"--disable-host-loopback"},
		"but for another port":          {"--host-loopback=1"},
		"and open at the gateway alone": {"--host-loopback=all"},
	} {
		t.Run(name, func(t *testing.T) {
			closed := slices.Concat(gateways, nobody)
			if slices.Contains(flags, "--host-loopback=all") {
				closed = nobody
			}
			s := newSite(t)
			// Both servers listen on all addresses of the Host, so that whatever
			// arrives there is seen.
			var accepted atomic.Int32
			tcp := serveTCP(t, s.Host, "[::]:0", func(conn *net.TCPConn) {
				accepted.Add(1)
				echoTCP(conn)
			}).Port()
			arrived := make(chan string, 100)
			udp := addrOf(serveUDP(t, s.Host, "[::]:0", func(_ *net.UDPConn, payload []byte, _ netip.AddrPort) {
				arrived <- string(payload)
			})).Port()
			g := startGate(t, s.Host, append(append([]string{"--net=slirp"}, flags...), "sleep", "infinity")...)
			if routes := g.run(t, "sh", "-ec", routedOut); strings.Count(routes, " dev tap0 ") != 2 {
				t.Fatalf("loopback inside is not routed to the gateway:\n%s", routes)
			}

			// What is sent to loopback may be left unanswered.
			begun := g.in(withPort([]string{"probe", "pending", "1"}, loopback, tcp)...)
			stdin, end := newPipe(t)
			begun.Stdin = stdin
			silent := s.Start(t, begun)
			awaitLine(t, silent, "begun\n")
			want := strings.Join(withPort(nil, closed, tcp), " connection refused\n") + " connection refused\n"
			if got := g.run(t, withPort([]string{"probe", "connect"}, closed, tcp)...); got != want {
				t.Errorf("connections:\n%s\nwant:\n%s", got, want)
			}
			for range 3 {
				g.run(t, "probe", "exchange", at(s.outside.HostAddr4, int(tcp)), "100000")
			}
			end.Close()
			if r := silent.Wait(t); !strings.Contains(r.Stdout, "0 connected") {
				t.Errorf("connections to loopback: %v", r)
			}
			if n := accepted.Load(); n != 3 {
				t.Errorf("%d connections came to the host, want the 3 for its own address", n)
			}
			// Datagrams arrive in order, so that the last is the first to come.
			last := at(s.outside.HostAddr4, int(udp))
			addrs := withPort(nil, slices.Concat(closed, loopback), udp)
			is4 := func(addr string) bool { return addr[0] != '[' }
			g.run(t, append([]string{"probe", "send"}, slices.DeleteFunc(slices.Clone(addrs), is4)...)...)
			is6 := func(addr string) bool { return addr[0] == '[' }
			g.run(t, append(append([]string{"probe", "send"}, slices.DeleteFunc(addrs, is6)...), last)...)
			if got := receive(t, arrived, "the last datagram"); got != last {
				t.Errorf("a datagram for %s came to the host", got)
			}
		})
	}
}

func TestTheHostsLoopbackOpensAtTheGateway(t *testing.T) {
	s := newSite(t)
	// Servers that listen on loopback addresses alone.
	tcp4, tcp6 := serveTCP(t, s.Host, "127.0.0.1:0", echoTCP), serveTCP(t, s.Host, "[::1]:0", echoTCP)
	udp4, udp6 := addrOf(serveUDP(t, s.Host, "127.0.0.1:0", echoUDP)), addrOf(serveUDP(t, s.Host, "[::1]:0", echoUDP))
	other := serveTCP(t, s.Host, "127.0.0.1:0", echoTCP)
	ports := ""
	for _, a := range []netip.AddrPort{tcp4, tcp6, udp4, udp6} {
		ports += strconv.Itoa(int(a.Port())) + ","
	}
	inside := func(a netip.AddrPort) string {
		gateway := gateway4
		if a.Addr().Is6() {
			gateway = gateway6
		}
		return at(netip.MustParseAddr(gateway), int(a.Port()))
	}
	for name, c := range map[string]struct {
		opened string
		other  string // what comes of the other port
	}{
		"all":              {"all", "ok"},
		"some ports":       {ports[:len(ports)-1], "connection refused"},
		"a range of ports": {"1-" + strconv.Itoa(int(other.Port())-1) + "," + strconv.Itoa(int(other.Port())+1) + "-65535", "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, s.Host, "--net=slirp", "--host-loopback="+c.opened, "sleep", "infinity")
			g.run(t, "probe", "exchange", inside(tcp4), "100000")
			g.run(t, "probe", "exchange", inside(tcp6), "100000")
			// Answers come from the address that was asked.
			g.run(t, "probe", "echo", inside(udp4), inside(udp6))
			if got, want := g.run(t, "probe", "connect", inside(other)), inside(other)+" "+c.other+"\n"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			g.stop(t)
		})
	}
}
