package test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

// What ends: flows that a policy does not allow any more, names with their answers,
// and flows that nobody uses.

// greet ADDR greets a server and prints what comes, until it is killed; what it
// cannot send is printed too. It greets again at each line of its stdin.
var _ = testenv.Probe("greet", func(args []string) int {
	conn, err := net.Dial("udp", args[0])
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	go func() {
		for buf := make([]byte, 2048); ; {
			n, err := conn.Read(buf)
			if err != nil {
				fmt.Println("error:", outcome(err))
				continue
			}
			fmt.Println("heard", string(buf[:n]))
		}
	}()
	for {
		if _, err := conn.Write([]byte("hello")); err != nil {
			fmt.Println("error:", outcome(err))
		}
		var line string
		if _, err := fmt.Scanln(&line); err != nil {
			return 0
		}
	}
})

func TestDatagramsAndPingsEndWithThePolicy(t *testing.T) {
	s := newSite(t)
	s.allowPings(t)
	s.unlimitedICMP(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		peers := make(chan netip.AddrPort, 16)
		server := serveUDP(t, s.outside, at(outside, 0), func(c *net.UDPConn, payload []byte, from netip.AddrPort) {
			_, _ = c.WriteToUDPAddrPort([]byte("welcome"), from)
			peers <- from
		})
		greet := g.in("probe", "greet", addrOf(server).String())
		stdin, again := newPipe(t)
		greet.Stdin = stdin
		p := s.Start(t, greet)
		peer := receive(t, peers, "a greeting")
		awaitLine(t, p, "heard welcome\n")
		pings := s.Start(t, g.in("ping", "-n", "-i", "0.2", outside.String()))
		awaitLine(t, pings, "bytes from "+outside.String())

		g.ctlOutput(t, "policy", "set", "--default=allow", "--deny="+rule("udp", outside, int(addrOf(server).Port())), "--deny=icmp://*")
		// The flow's socket of the host is gone, so that what comes for it is refused.
		testenv.Until(t, "the end of the flow", func() bool { return s.isOver(t, peer) })
		if _, err := again.WriteString("again\n"); err != nil {
			t.Fatal(err)
		}
		awaitLine(t, p, "error: ")
		awaitLine(t, pings, "(?i)filtered|prohibited")
		g.ctlOutput(t, "policy", "set", "--default=allow")
		p.Kill()
		p.Wait(t)
		pings.Kill()
		pings.Wait(t)
	})
	g.stop(t)
}

// connectedUDP is a socket of the machine outside that sends to an address.
func (s site) connectedUDP(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	s.outside.Do(t, func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	return conn
}

// isOver says whether the host refuses what comes for a flow from a stranger, as
// where its socket is closed. What a stranger sends does not keep the flow alive.
func (s site) isOver(t *testing.T, flow netip.AddrPort) bool {
	t.Helper()
	conn := s.connectedUDP(t, flow)
	defer conn.Close()
	_, err := conn.Write([]byte("stranger"))
	if err == nil {
		err = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	}
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	return refused(err)
}

// A flow to an NTP server ends after seconds, another does not.
func TestFlowsOfAQuestionEndSoon(t *testing.T) {
	s := newSite(t)
	s.unlimitedICMP(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	var ends []netip.AddrPort
	for _, port := range []int{123, 5000} {
		peers := make(chan netip.AddrPort, 1)
		server := serveUDP(t, s.outside, at(s.outside.Addr4, port), func(_ *net.UDPConn, _ []byte, from netip.AddrPort) { peers <- from })
		g.run(t, "probe", "send", addrOf(server).String())
		ends = append(ends, receive(t, peers, "a datagram"))
	}
	if s.isOver(t, ends[0]) {
		t.Error("the flow to the NTP server has ended at once")
	}
	testenv.Until(t, "the end of the flow to the NTP server", func() bool { return s.isOver(t, ends[0]) })
	if s.isOver(t, ends[1]) {
		t.Error("the other flow has ended too")
	}
	g.stop(t)
}

// A name opens its addresses for as long as its answer is good; a connection that
// began in time goes on.
func TestNamesCloseWithTheirAnswers(t *testing.T) {
	s := newSite(t)
	addr := s.outside.Addr4
	s.names(t, "--local=/test/", "--host-record=web.example.test,"+addr.String()+",1")
	s.resolvConf(t, "nameserver "+addr.String())
	port := int(serveTCP(t, s.outside, at(addr, 0), echoTCP).Port())
	g := startGate(t, s.Host, "--net=slirp", "--egress-default=deny", "--egress-allow=tcp://web.example.test", "sleep", "infinity")
	if got := g.dig(t, "@"+dns4, "web.example.test"); got != "NOERROR "+addr.String() {
		t.Fatal(got)
	}
	held := g.in("socat", "-", "TCP:"+at(addr, port))
	stdin, keys := newPipe(t)
	held.Stdin = stdin
	p := s.Start(t, held)
	if _, err := keys.WriteString("one\n"); err != nil {
		t.Fatal(err)
	}
	awaitLine(t, p, "one\n")
	testenv.Until(t, "the name's end", func() bool {
		return g.run(t, "probe", "connect", at(addr, port)) == at(addr, port)+" connection refused\n"
	})
	if _, err := keys.WriteString("two\n"); err != nil {
		t.Fatal(err)
	}
	awaitLine(t, p, "two\n")
	g.dig(t, "@"+dns4, "web.example.test")
	g.run(t, "probe", "exchange", at(addr, port), "1000")
	p.Kill()
	p.Wait(t)
	g.stop(t)
}

// A name that resolves to a loopback address, in whatever spelling, does not lead to
// the host's, not even where the policy allows the name and nothing else.
func TestANameDoesNotLeadToTheHostsLoopback(t *testing.T) {
	s := newSite(t)
	spellings := []string{"127.0.0.1", "127.1.2.3", "0.0.0.0", "0.0.0.1", gateway4, "::1", "::ffff:127.0.0.1", "::", "::127.0.0.1", gateway6}
	args := []string{"--local=/test/"}
	for i, addr := range spellings {
		args = append(args, fmt.Sprintf("--host-record=n%d.example.test,%s,1000", i, addr))
	}
	s.names(t, args...)
	s.resolvConf(t, "nameserver "+s.outside.Addr4.String())
	touched := make(chan string, 64)
	port := serveTCP(t, s.Host, "[::]:0", func(c *net.TCPConn) { touched <- c.LocalAddr().String() }).Port()
	g := startGate(t, s.Host, "--net=slirp", "--egress-default=deny", "--egress-allow=any://*.example.test", "sleep", "infinity")
	if routes := g.run(t, "sh", "-ec", routedOut); strings.Count(routes, " dev tap0 ") != 2 {
		t.Fatalf("loopback inside is not routed to the gateway:\n%s", routes)
	}
	for i, addr := range spellings {
		kind := "A"
		if strings.Contains(addr, ":") {
			kind = "AAAA"
		}
		if got := g.dig(t, "@"+dns4, fmt.Sprintf("n%d.example.test", i), kind); got != "NOERROR "+addr {
			t.Errorf("%s: %s", addr, got)
		}
	}
	pending := g.in(withPort([]string{"probe", "pending", "1"}, []string{"127.0.0.1", "127.1.2.3", "0.0.0.1", "::1", "::", "::ffff:127.0.0.1"}, port)...)
	stdin, end := newPipe(t)
	pending.Stdin = stdin
	p := s.Start(t, pending)
	awaitLine(t, p, "begun\n")
	for _, addr := range []string{gateway4, gateway6} {
		to := at(mustAddr(addr), int(port))
		if got := g.run(t, "probe", "connect", to); got != to+" connection refused\n" {
			t.Error(got)
		}
	}
	// The kernel inside takes this one for its own loopback, which it does not have.
	g.run(t, withPort([]string{"probe", "connect"}, []string{"0.0.0.0"}, port)...)
	end.Close()
	if r := p.Wait(t); !strings.Contains(r.Stdout, "0 connected") {
		t.Errorf("connections to loopback: %v", r)
	}
	if len(touched) > 0 {
		t.Errorf("the host was reached at %s", <-touched)
	}
	g.stop(t)
}
