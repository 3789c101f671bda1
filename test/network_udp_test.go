package test

import (
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

func TestDatagramsOfAllSizesGoToSeveralPeersFromOneSocket(t *testing.T) {
	s := newSite(t)
	other := s.Host.Outside(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for name, addrs := range map[string][]netip.Addr{
		"over IPv4": {s.outside.Addr4, other.Addr4, s.outside.HostAddr4},
		"over IPv6": {s.outside.Addr6, other.Addr6, s.outside.HostAddr6},
		"over both": {s.outside.Addr4, s.outside.Addr6},
	} {
		t.Run(name, func(t *testing.T) {
			// Which of them is where is told by the address.
			machines := map[netip.Addr]machine{
				s.outside.Addr4: s.outside, s.outside.Addr6: s.outside, other.Addr4: other, other.Addr6: other,
				s.outside.HostAddr4: s.Host, s.outside.HostAddr6: s.Host,
			}
			args := []string{"probe", "echo"}
			for _, addr := range addrs {
				for range 2 { // two ports of each
					args = append(args, addrOf(serveUDP(t, machines[addr], at(addr, 0), echoUDP)).String())
				}
			}
			g.run(t, args...)
		})
	}
	g.stop(t)
}

func TestDatagramsThatTheKernelCutsArriveOneByOne(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		g.run(t, "probe", "segments", addrOf(serveUDP(t, s.outside, at(outside, 0), echoUDP)).String())
	})
}

// All that a socket inside sends comes from one address and port of the host,
// wherever it goes (RFC 4787, REQ-1).
func TestPeersSeeOneSource(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, host netip.Addr) {
		sources := make(chan netip.AddrPort, 2)
		args := []string{"probe", "send"}
		for range 2 {
			server := serveUDP(t, s.outside, at(outside, 0), func(_ *net.UDPConn, _ []byte, from netip.AddrPort) { sources <- from })
			args = append(args, addrOf(server).String())
		}
		g.run(t, args...)
		first, second := receive(t, sources, "the first datagram"), receive(t, sources, "the second")
		if first != second || first.Addr() != host {
			t.Errorf("the servers see %v and %v, want one port of %v", first, second, host)
		}
	})
}

// A server may say more than it was asked, and say it later. What another
// program of the same machine sends does not come in.
func TestDatagramsInsideHaveTheirTrueSource(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		stranger := listenUDP(t, s.outside, at(outside, 0))
		defer stranger.Close()
		server := serveUDP(t, s.outside, at(outside, 0), func(c *net.UDPConn, _ []byte, from netip.AddrPort) {
			for _, say := range []struct {
				from *net.UDPConn
				what string
			}{{c, "one"}, {stranger, "strange"}, {c, "two"}, {c, "end"}} {
				_, _ = say.from.WriteToUDPAddrPort([]byte(say.what), from)
			}
		})
		from := addrOf(server).String()
		want := []string{from + " one", from + " two", from + " end"}
		for line := range strings.Lines(g.run(t, "probe", "hear", from)) {
			line = strings.TrimSuffix(line, "\n")
			if len(want) == 0 || line != want[0] {
				t.Fatalf("heard %q, want %q", line, want)
			}
			want = want[1:]
		}
	})
}

func TestUDPFilteringOffLetsStrangersIn(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "--udp-filtering=none", "sleep", "infinity")
	stranger := listenUDP(t, s.outside, at(s.outside.Addr4, 0))
	defer stranger.Close()
	server := serveUDP(t, s.outside, at(s.outside.Addr4, 0), func(c *net.UDPConn, _ []byte, from netip.AddrPort) {
		_, _ = stranger.WriteToUDPAddrPort([]byte("strange"), from)
		_, _ = c.WriteToUDPAddrPort([]byte("end"), from)
	})
	from := addrOf(server).String()
	want := addrOf(stranger).String() + " strange\n" + from + " end\n"
	if got := g.run(t, "probe", "hear", from); got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
}

// socat is an ordinary client: it connects its socket, and so gets nothing but
// what comes from the address that it asked.
func TestAConnectedSocketGetsItsAnswer(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		server := serveUDP(t, s.outside, at(outside, 0), func(c *net.UDPConn, payload []byte, from netip.AddrPort) {
			_, _ = c.WriteToUDPAddrPort(fmt.Appendf(nil, "[%s]", payload), from)
		})
		client := g.in("socat", "-T30", "-", "UDP:"+addrOf(server).String())
		stdin, keys := newPipe(t)
		client.Stdin = stdin
		p := s.Start(t, client)
		for _, word := range []string{"one", "two", "three"} {
			if _, err := keys.WriteString(word); err != nil {
				t.Fatal(err)
			}
			awaitLine(t, p, `\[`+word+`\]`)
		}
	})
}

// meet SERVER has two sockets learn from a server where the outside sees them, and speak
// to each other there.
var _ = testenv.Probe("meet", func(args []string) int {
	server := netip.MustParseAddrPort(args[0])
	var conns [2]*net.UDPConn
	var seen [2]netip.AddrPort
	buf := make([]byte, 100)
	for i := range conns {
		conn, err := net.ListenUDP("udp", nil)
		if err != nil {
			return report(err)
		}
		defer conn.Close()
		conns[i] = conn
		n := 0
		if _, err = conn.WriteToUDPAddrPort([]byte("where am I?"), server); err == nil {
			err = conn.SetReadDeadline(time.Now().Add(testenv.Patience))
		}
		if err == nil {
			n, err = conn.Read(buf)
		}
		if err == nil {
			seen[i], err = netip.ParseAddrPort(string(buf[:n]))
		}
		if err != nil {
			return report(err)
		}
	}
	// Each has to send first, so that the other is let in.
	for range 2 {
		for i, conn := range conns {
			if _, err := conn.WriteToUDPAddrPort([]byte("hello"), seen[1-i]); err != nil {
				return report(err)
			}
		}
	}
	for i, conn := range conns {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return report(err)
		}
		if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); from != seen[1-i] || string(buf[:n]) != "hello" {
			return report(fmt.Errorf("%q from %v, want the other at %v", buf[:n], from, seen[1-i]))
		}
	}
	return report(nil)
})

// Two behind the same gate that find each other through a third meet (RFC 4787, 6:
// hairpinning).
func TestTwoInsideMeetWhereTheOutsideSeesThem(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		server := serveUDP(t, s.outside, at(outside, 0), func(c *net.UDPConn, _ []byte, from netip.AddrPort) {
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			_, _ = c.WriteToUDPAddrPort([]byte(from.String()), from)
		})
		if got := g.run(t, "probe", "meet", addrOf(server).String()); got != "ok\n" {
			t.Error(got)
		}
	})
	g.stop(t)
}

// A server that goes on to send to a program that is gone is refused, as the program's
// own machine would refuse it.
func TestAStreamToAProgramThatIsGoneIsRefused(t *testing.T) {
	s := newSite(t)
	s.unlimitedICMP(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		peers := make(chan netip.AddrPort, 1)
		server := serveUDP(t, s.outside, at(outside, 0), func(_ *net.UDPConn, _ []byte, from netip.AddrPort) { peers <- from })
		g.run(t, "probe", "send", addrOf(server).String())
		peer := receive(t, peers, "the program's datagram")
		testenv.Until(t, "the server to be refused", func() bool {
			if _, err := server.WriteToUDPAddrPort([]byte("more"), peer); err != nil {
				t.Fatal(err)
			}
			return s.isOver(t, peer)
		})
	})
	g.stop(t)
}

// sockets ADDR COUNT exchanges a datagram with a server from many sockets, one
// after the other.
var _ = testenv.Probe("sockets", func(args []string) int {
	var count int
	if _, err := fmt.Sscan(args[1], &count); err != nil {
		return report(err)
	}
	for range count {
		conn, err := net.Dial("udp", args[0])
		if err != nil {
			return report(err)
		}
		err = echoConnected(conn.(*net.UDPConn), []byte("x"))
		conn.Close()
		if err != nil {
			return report(err)
		}
	}
	return report(nil)
})

// Flows that were used least recently make room where the host gives the gate few
// descriptors, and the user is told.
func TestFlowsMakeRoomWhereDescriptorsAreFew(t *testing.T) {
	s := newSite(t)
	server := addrOf(serveUDP(t, s.outside, at(s.outside.Addr4, 0), echoUDP)).String()
	r := s.Run(t, s.Command("sh", "-c", "ulimit -n 64; exec gatekit --debug --net=slirp probe sockets "+server+" 200"))
	if r.Code != 0 {
		t.Fatal(r)
	}
	if n := strings.Count(r.Stderr, "no descriptors are left"); n != 1 || !strings.Contains(r.Stderr, "ulimit -n") {
		t.Errorf("%v\nwant one line that says so", r)
	}
	for _, want := range []string{`msg="the network has ended"`, "counters.framesAccepted=", "counters.udp.evicted="} {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("%v\nwant %s", r, want)
		}
	}
}

// wide ADDR... sends a datagram to each, of one family, from a socket that lets
// multicast go beyond the link, with the address as its payload.
var _ = testenv.Probe("wide", func(args []string) int {
	ipv6 := netip.MustParseAddrPort(args[0]).Addr().Is6()
	network := map[bool]string{false: "udp4", true: "udp6"}[ipv6]
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return report(err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		if ipv6 {
			optErr = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_MULTICAST_HOPS, 8)
		} else {
			optErr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MULTICAST_TTL, 8)
		}
	})
	if err := errors.Join(err, optErr); err != nil {
		return report(err)
	}
	for _, addr := range args {
		if _, err := conn.WriteToUDPAddrPort([]byte(addr), netip.MustParseAddrPort(addr)); err != nil {
			return report(fmt.Errorf("send to %s: %w", addr, err))
		}
	}
	return report(nil)
})

// What a program sends to all, or to a group, reaches nobody outside, not even one
// who listens to the group.
func TestBroadcastAndMulticastStayInside(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for group, others := range map[string][]string{"239.1.2.3": {"255.255.255.255", "10.0.2.255"}, "ff0e::1234": nil} {
		t.Run(group, func(t *testing.T) {
			var member *net.UDPConn
			s.outside.Do(t, func() error {
				link, err := net.InterfaceByName("eth0")
				if err == nil {
					member, err = net.ListenMulticastUDP("udp", link, &net.UDPAddr{IP: net.ParseIP(group)})
				}
				return err
			})
			defer member.Close()
			port, outside := addrOf(member).Port(), s.outside.Addr4
			if mustAddr(group).Is6() {
				outside = s.outside.Addr6
			}
			arrived := make(chan string, 16)
			last := addrOf(serveUDP(t, s.outside, at(outside, 0), func(_ *net.UDPConn, payload []byte, _ netip.AddrPort) { arrived <- string(payload) })).String()
			g.run(t, append(withPort([]string{"probe", "wide"}, append(others, group), port), last)...)
			if got := receive(t, arrived, "the last datagram"); got != last {
				t.Errorf("a datagram to %s came outside", got)
			}
			if err := member.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			if n, err := member.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the group got %q, %v", buf[:n], err)
			}
		})
	}
	g.stop(t)
}
