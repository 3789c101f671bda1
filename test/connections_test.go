package test

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
)

// parseConnections reads what gatectl connections --json prints, without the times,
// and without the ports that the kernel inside has chosen.
func parseConnections(t *testing.T, text string) []api.Connection {
	t.Helper()
	var list []api.Connection
	if err := json.Unmarshal([]byte(text), &list); err != nil || list == nil {
		t.Fatalf("gatectl connections --json prints %s: %v", text, err)
	}
	for i := range list {
		f := &list[i]
		if f.AgeSeconds > int(testenv.Patience.Seconds()) || f.IdleSeconds > f.AgeSeconds {
			t.Errorf("a flow is %d seconds old, and idle for %d", f.AgeSeconds, f.IdleSeconds)
		}
		f.AgeSeconds, f.IdleSeconds = 0, 0
		if f.Direction == "outbound" && f.ChildPort != 0 {
			f.ChildPort = chosen
		}
	}
	return list
}

// chosen stands for a port that the kernel has chosen.
const chosen = 1

// flowOf is an open flow with these ends.
func flowOf(proto, direction string, child, remote netip.AddrPort) api.Connection {
	return api.Connection{
		Proto: proto, Direction: direction, State: "open",
		ChildIP: child.Addr(), ChildPort: int(child.Port()), RemoteIP: remote.Addr(), RemotePort: int(remote.Port()),
	}
}

// ofForward is a flow that came by a forward.
func ofForward(f api.Connection, id int, sourceIP string) api.Connection {
	f.Forward, f.SourceIP = id, sourceIP
	return f
}

// carried is a flow that has carried as many bytes each way.
func carried(f api.Connection, bytes uint64) api.Connection {
	f.BytesIn, f.BytesOut = &bytes, &bytes
	return f
}

// localOf is where a socket of a client is.
func localOf(conn net.Conn) netip.AddrPort { return netip.MustParseAddrPort(conn.LocalAddr().String()) }

func TestConnectionsSaysWhoSpeaksToWhom(t *testing.T) {
	s := newSite(t)
	s.allowPings(t)
	s.both(t, func(t *testing.T, outside, host netip.Addr) {
		loopback, child := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.0.2.100")
		if outside.Is6() {
			loopback, child = netip.IPv6Loopback(), netip.MustParseAddr("fd67:6174:656b::100")
		}
		web, echo := netip.AddrPortFrom(loopback, 80), netip.AddrPortFrom(loopback, 81)
		g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/tcp", "-p", at(loopback, 8081)+":80/tcp", "-p", "8082:81/udp", "sleep", "infinity")
		if out := g.ctlOutput(t, "connections", "--json"); out != "[]\n" {
			t.Errorf("at first, gatectl connections --json prints %s", out)
		}
		g.serve(t, "tcp", web.String())
		g.serve(t, "udp", echo.String())

		// Three flows that the namespace begins.
		stream := serveTCP(t, s.outside, at(outside, 0), echoTCP)
		talk := g.in("socat", "-t60", "-", "TCP:"+stream.String())
		stdin, say := newPipe(t)
		talk.Stdin = stdin
		talker := s.Start(t, talk)
		if _, err := say.WriteString("hello\n"); err != nil {
			t.Fatal(err)
		}
		awaitLine(t, talker, "(hello)\n")
		datagrams := addrOf(serveUDP(t, s.outside, at(outside, 0), echoUDP))
		greeting := g.in("probe", "greet", datagrams.String())
		greeting.Stdin, _ = newPipe(t)
		awaitLine(t, s.Start(t, greeting), "heard (hello)\n")

		g.run(t, "ping", "-n", "-c1", outside.String())

		// A client on the host, and two outside, who are seen as they are.
		far, err := dialTCP(t, s.outside, at(host, 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		near, err := dialTCP(t, s.Host, at(loopback, 8081))
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		sender := dialUDP(t, s.outside, at(host, 8082))
		defer sender.Close()
		for _, conn := range []net.Conn{far, near, sender} {
			if err := greet(conn); err != nil {
				t.Fatal(err)
			}
		}

		want := []api.Connection{
			flowOf("icmp", "outbound", netip.AddrPortFrom(child, chosen), netip.AddrPortFrom(outside, 0)),
			carried(flowOf("tcp", "outbound", netip.AddrPortFrom(child, chosen), stream), uint64(len("hello\n"))),
			flowOf("udp", "outbound", netip.AddrPortFrom(child, chosen), datagrams),
			carried(ofForward(flowOf("tcp", "forward", web, localOf(far)), 1, "preserve"), 1),
			carried(ofForward(flowOf("tcp", "forward", web, localOf(near)), 2, "off"), 1),
			ofForward(flowOf("udp", "forward", echo, localOf(sender)), 3, "preserve"),
		}
		sameAddress := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
		ctl := []string{"gatectl", "--socket", g.socket(), "connections", "--json"}
		for who, out := range map[string]string{"the owner": g.ctlOutput(t, ctl[3:]...), "root inside": g.run(t, ctl...)} {
			if diff := cmp.Diff(want, parseConnections(t, out), sameAddress); diff != "" {
				t.Errorf("connections as %s sees them (-want +got):\n%s", who, diff)
			}
		}
		if rows := table(g.ctlOutput(t, "connections")); len(rows) != 7 || rows[4][5] != "preserve" || rows[5][5] != "off" {
			t.Errorf("gatectl connections prints %q", rows)
		}
		if r := s.Run(t, g.in(append([]string{"setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"}, ctl...)...)); r.Code != 1 || r.Stdout != "" {
			t.Errorf("for another user inside: %v", r)
		}

		// What is over is not listed.
		talker.Kill()
		far.Close()
		near.Close()
		testenv.Until(t, "the end of the connections", func() bool {
			return !strings.Contains(g.ctlOutput(t, "connections", "--json"), `"tcp"`)
		})
		g.stop(t)
	})
}
