package test

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// What the namespace may reach, as programs inside see it.

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

// rule is one for an address.
func rule(proto string, addr netip.Addr, port int) string { return proto + "://" + at(addr, port) }

func TestWhatIsDeniedIsRefusedAtOnce(t *testing.T) {
	s := newSite(t)
	open, shut := int(serveTCP(t, s.outside, "[::]:0", echoTCP).Port()), int(serveTCP(t, s.outside, "[::]:0", echoTCP).Port())
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		udp := addrOf(serveUDP(t, s.outside, at(outside, 0), echoUDP))
		closed := addrOf(serveUDP(t, s.outside, at(outside, 0), echoUDP))
		for name, flags := range map[string][]string{
			"by the default":     {"--egress-default=deny", "--egress-allow=" + rule("tcp", outside, open), "--egress-allow=" + rule("udp", outside, int(udp.Port()))},
			"by rules that deny": {"--egress-deny=" + rule("tcp", outside, shut), "--egress-deny=" + rule("udp", outside, int(closed.Port())), "--egress-deny=icmp://*"},
		} {
			t.Run(name, func(t *testing.T) {
				g := startGate(t, s.Host, append(append([]string{"--net=slirp"}, flags...), "sleep", "infinity")...)
				want := fmt.Sprintf("%s ok\n%s connection refused\n", at(outside, open), at(outside, shut))
				if got := g.run(t, "probe", "connect", at(outside, open), at(outside, shut)); got != want {
					t.Errorf("got\n%swant\n%s", got, want)
				}
				g.run(t, "probe", "echo", udp.String())
				prohibited := "no route to host" // ICMP_PKT_FILTERED, in Linux
				if outside.Is6() {
					prohibited = "permission denied"
				}
				r := s.Run(t, g.in("probe", "udp-error", closed.String(), "100"))
				if !strings.Contains(r.Stdout, prohibited) {
					t.Errorf("a datagram: %v, want %s", r, prohibited)
				}
				if r := s.Run(t, g.in("ping", "-n", "-c1", "-W20", outside.String())); r.Code == 0 || !strings.Contains(r.Stdout, "filtered") && !strings.Contains(r.Stdout, "rohibited") {
					t.Errorf("ping: %v", r)
				}
				g.stop(t)
			})
		}
	})
}

func TestNamesOpenTheirAddressesOnly(t *testing.T) {
	s := newSite(t)
	addr4, addr6 := s.outside.Addr4, s.outside.Addr6
	s.names(t, "--local=/test/", fmt.Sprintf("--host-record=web.example.test,%s,%s,1000", addr4, addr6),
		"--host-record=other.example.org,"+addr4.String()+",1000", "--cname=alias.example.test,web.example.test,1000")
	s.resolvConf(t, "nameserver "+addr4.String())
	port := int(serveTCP(t, s.outside, "[::]:0", echoTCP).Port())
	refused := func(a netip.Addr) string { return at(a, port) + " connection refused\n" }
	ok := func(a netip.Addr) string { return at(a, port) + " ok\n" }
	for name, c := range map[string]struct {
		rule, asks string
		want       func(netip.Addr) string
	}{
		"the name":                 {"tcp://web.example.test", "web.example.test", ok},
		"a name below":             {"tcp://*.example.test:" + strconv.Itoa(port), "web.example.test", ok},
		"an alias":                 {"tcp://alias.example.test", "alias.example.test", ok},
		"what an alias stands for": {"tcp://web.example.test", "alias.example.test", refused},
		"another name":             {"tcp://web.example.test", "other.example.org", refused},
		"another port":             {"tcp://web.example.test:1", "web.example.test", refused},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, s.Host, "--net=slirp", "--egress-default=deny", "--egress-allow="+c.rule, "sleep", "infinity")
			if got := g.run(t, "probe", "connect", at(addr4, port)); got != refused(addr4) {
				t.Errorf("before the name is looked up: %s", got)
			}
			for _, how := range []string{"+notcp", "+tcp"} {
				g.dig(t, "@"+dns4, how, c.asks, map[string]string{"+notcp": "A", "+tcp": "AAAA"}[how])
			}
			if got := g.run(t, "probe", "connect", at(addr4, port)); got != c.want(addr4) {
				t.Errorf("after: %s", got)
			}
			if got := g.run(t, "probe", "connect", at(addr6, port)); c.asks != "other.example.org" && got != c.want(addr6) {
				t.Errorf("after, over IPv6: %s", got)
			}
			g.stop(t)
		})
	}
}

func TestThePolicyChangesLive(t *testing.T) {
	s := newSite(t)
	port := int(serveTCP(t, s.outside, "[::]:0", echoTCP).Port())
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		held := s.Start(t, g.in("socat", "-u", "TCP:"+at(outside, port), "-"))
		testenv.Until(t, "the connection", func() bool {
			return strings.Contains(g.ctlOutput(t, "connections", "--json"), outside.String())
		})
		if r := g.ctl(t, "policy", "set", "--default=allow"); r.Code != 0 {
			t.Fatal(r)
		}
		g.run(t, "probe", "exchange", at(outside, port), "1000")
		g.ctlOutput(t, "policy", "deny", rule("tcp", outside, port))
		testenv.Until(t, "the end of the connection", func() bool { return !held.Running() })
		held.Wait(t)
		if got := g.run(t, "probe", "connect", at(outside, port)); got != at(outside, port)+" connection refused\n" {
			t.Error(got)
		}
		if got := g.ctlOutput(t, "policy", "show", "--json"); got != fmt.Sprintf(`{"default":"allow","allow":[],"deny":[%q]}`+"\n", rule("tcp", outside, port)) {
			t.Error(got)
		}
		g.ctlOutput(t, "policy", "set", "--default=deny", "--allow=any://*")
		g.run(t, "probe", "exchange", at(outside, port), "1000")
	})
	if r := g.ctl(t, "policy", "allow", "tcp://10.0.0.0/99"); r.Code != 1 || len(lacks(r.Stderr, `"tcp://10.0.0.0/99"`)) > 0 {
		t.Errorf("a bad rule: %v", r)
	}
	g.stop(t)
}

// Of many who add a rule at once, none overwrites another's.
func TestRulesThatAreAddedAtOnceAllStay(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	var adding []*testenv.Process
	for i := range 20 {
		verb := []string{"allow", "deny"}[i%2]
		adding = append(adding, s.Start(t, s.Command("gatectl", "--socket", g.socket(), "policy", verb, fmt.Sprintf("tcp://198.51.100.7:%d", i+1))))
	}
	for _, p := range adding {
		if r := p.Wait(t); r.Code != 0 {
			t.Error(r)
		}
	}
	out := g.ctlOutput(t, "policy", "show", "--json")
	for i := range 20 {
		if strings.Count(out, fmt.Sprintf(`"tcp://198.51.100.7:%d"`, i+1)) != 1 {
			t.Errorf("rule %d is not there once: %s", i+1, out)
		}
	}
	g.stop(t)
}

func TestTheHostsOwnAddressesCanBeShut(t *testing.T) {
	s := newSite(t)
	port := int(serveTCP(t, s.Host, "[::]:0", echoTCP).Port())
	if r := s.Run(t, s.RootCommand("ip", "route", "add", "local", "203.0.113.0/24", "dev", "lo")); r.Code != 0 {
		t.Fatal(r)
	}
	g := startGate(t, s.Host, "--net=slirp", "--egress-deny=any://@host", "sleep", "infinity")
	local := at(mustAddr("203.0.113.7"), port) // no interface has it
	if got := g.run(t, "probe", "connect", local); got != local+" connection refused\n" {
		t.Error(got)
	}
	s.both(t, func(t *testing.T, _, host netip.Addr) {
		if got := g.run(t, "probe", "connect", at(host, port)); got != at(host, port)+" connection refused\n" {
			t.Error(got)
		}
	})
	g.stop(t)
}

func TestAGateWithoutAPolicySaysSo(t *testing.T) {
	s := newSite(t)
	for _, flag := range []string{"--egress-default=deny", "--egress-deny=tcp://*", "--outbound-interface=lo"} {
		if r := runGate(t, s.Host, flag, "true"); r.Code != 2 || len(lacks(r.Stderr, "--net=slirp")) > 0 {
			t.Errorf("%s: %v", flag, r)
		}
	}
	for flag, want := range map[string]string{
		"--egress-deny=tcp:1":         `"tcp:1"`,
		"--egress-default=maybe":      "maybe",
		"--outbound-addr=localhost":   "localhost",
		"--outbound-addr=127.0.0.1":   "127.0.0.1",
		"--outbound-interface=a/b":    "a/b",
		"--egress-allow=icmp://*:80":  "icmp has no ports",
		"--egress-allow=tcp://::1:80": "brackets",
	} {
		if r := runGate(t, s.Host, "--net=slirp", flag, "true"); r.Code != 2 || len(lacks(r.Stderr, want)) > 0 {
			t.Errorf("%s: %v", flag, r)
		}
	}
	g := startGate(t, s.Host, "--net=none", "sleep", "infinity")
	if r := g.ctl(t, "policy", "show"); r.Code != 1 || len(lacks(r.Stderr, "start it with slirp")) > 0 {
		t.Errorf("gatectl policy show: %v", r)
	}
	g.stop(t)
}

func TestOutgoingConnectionsHaveTheSourceThatIsAskedFor(t *testing.T) {
	s := newSite(t)
	second4, second6 := mustAddr("198.51.100.9"), mustAddr("2001:db8::9")
	s.hasAddress(t, second4.String()+"/28", s.outside.Interface)
	s.hasAddress(t, second6.String()+"/64", s.outside.Interface)
	server := s.names(t, zone...)
	s.resolvConf(t, "nameserver "+s.outside.Addr4.String())
	g := startGate(t, s.Host, "--net=slirp", "--outbound-addr="+second4.String(), "--outbound-addr="+second6.String(),
		"--outbound-interface="+s.outside.Interface, "--host-loopback=all", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, host netip.Addr) {
		want := second4
		if outside.Is6() {
			want = second6
		}
		tcp := s.outside.Start(t, s.outside.Command("socat", "-u", "TCP6-LISTEN:7000,ipv6only=0,reuseaddr", "SYSTEM:echo $SOCAT_PEERADDR"))
		testenv.Until(t, "the listener", func() bool {
			return s.outside.Run(t, s.outside.Command("sh", "-c", "ss -Hltn sport = 7000 | grep -q .")).Code == 0
		})
		g.run(t, "probe", "connect", at(outside, 7000))
		r := tcp.Wait(t)
		got := strings.Trim(strings.TrimSpace(r.Stdout), "[]")
		if a, err := netip.ParseAddr(got); err != nil || a.Unmap() != want {
			t.Errorf("TCP comes from %q, want %v", got, want)
		}
		arrived := make(chan netip.Addr, 16)
		udp := addrOf(serveUDP(t, s.outside, at(outside, 0), func(_ *net.UDPConn, _ []byte, from netip.AddrPort) { arrived <- from.Addr() }))
		g.run(t, "probe", "send", udp.String())
		if from := receive(t, arrived, "a datagram"); from != want {
			t.Errorf("UDP comes from %v, want %v", from, want)
		}
	})
	g.dig(t, "@"+dns4, "web.example.test")
	if log := server.Stderr(); !strings.Contains(log, "web.example.test from "+second4.String()) {
		t.Errorf("the name server saw:\n%s", log)
	}
	// The host's loopback has no other way.
	port := int(serveTCP(t, s.Host, "127.0.0.1:0", echoTCP).Port())
	g.run(t, "probe", "exchange", at(mustAddr(gateway4), port), "1000")
	g.stop(t)
	for flag, want := range map[string]string{
		"--outbound-addr=" + s.outside.Addr4.String(): "not an address of this host",
		"--outbound-interface=nosuch0":                "no such interface",
	} {
		if r := runGate(t, s.Host, "--net=slirp", flag, "true"); r.Code != 1 || len(lacks(r.Stderr, want)) > 0 {
			t.Errorf("%s: %v", flag, r)
		}
	}
}

func TestOnlyRootInsideChangesThePolicy(t *testing.T) {
	s := newSite(t)
	r := runGate(t, s.Host, "--net=slirp", "--egress-default=deny", "sh", "-c", `
		setpriv --reuid=1000 --regid=1000 --clear-groups gatectl policy set --default=allow; gatectl policy show
		gatectl policy set --default=allow; gatectl policy show`)
	if want := "ACTION  RULE\ndeny    (default)\nACTION  RULE\nallow   (default)\n"; r.Stdout != want || strings.Count(r.Stderr, "permission denied") != 1 {
		t.Errorf("%v\nwant a change by root alone:\n%s", r, want)
	}
}
