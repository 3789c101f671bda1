package test

import (
	"os"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// The host's resolver configuration, as it changes, and what becomes of queries
// when upstreams do not answer.

func TestTheNamespacesResolvConfFollowsTheHosts(t *testing.T) {
	s := newSite(t)
	s.names(t, zone...)
	server := "nameserver " + s.outside.Addr4.String()
	s.resolvConf(t, server, "search nowhere.test")
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	await := func(search, options string) {
		t.Helper()
		want := search + "nameserver " + dns4 + "\nnameserver " + dns6 + "\n" + options
		testenv.Until(t, "the namespace's resolv.conf", func() bool { return g.run(t, "cat", "/etc/resolv.conf") == want })
	}
	await("search nowhere.test\n", "")
	// In place.
	s.resolvConf(t, server, "search example.test", "options ndots:1")
	await("search example.test\n", "options ndots:1\n")
	if got := g.run(t, "getent", "ahostsv4", "web"); !strings.HasPrefix(got, "198.51.100.80 ") {
		t.Errorf("web is %s", got)
	}
	// Another file in its place, as most programs do it.
	s.WriteFile(t, "/etc/resolv.conf.new", server+"\nsearch a.test\n", 0o644)
	if err := os.Rename(s.Path("/etc/resolv.conf.new"), s.Path("/etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	await("search a.test\n", "")
	// A link, as systemd has it, and then what it leads to.
	if err := os.MkdirAll(s.Path("/run/systemd/resolve"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.WriteFile(t, "/run/systemd/resolve/stub-resolv.conf", server+"\nsearch b.test\n", 0o644)
	if err := os.Symlink("../run/systemd/resolve/stub-resolv.conf", s.Path("/etc/resolv.conf.new")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.Path("/etc/resolv.conf.new"), s.Path("/etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	await("search b.test\n", "")
	s.WriteFile(t, "/run/systemd/resolve/stub-resolv.conf", server+"\nsearch c.test\noptions edns0\n", 0o644)
	await("search c.test\n", "options edns0\n")
	g.stop(t)
}

func TestDeadUpstreamsAreAServerFailureInTime(t *testing.T) {
	s := newSite(t)
	s.resolvConf(t, "nameserver "+blackholes[0].String(), "nameserver "+blackholes[1].String(), "options timeout:1")
	if r := s.outside.Run(t, s.outside.Command("ip", "route", "add", "blackhole", blackholes[0].String())); r.Code != 0 {
		t.Fatal(r)
	}
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for _, how := range []string{"+notcp", "+tcp"} {
		// The same wait that the namespace's resolver has. What is left of it for the way
		// is a tenth, and on a busy machine not always enough.
		testenv.Until(t, "a server failure in time, "+how, func() bool {
			return g.dig(t, "@"+dns4, how, "+timeout=1", "web.example.test") == "SERVFAIL"
		})
	}
	g.stop(t)
}

func TestUpstreamsRotate(t *testing.T) {
	s := newSite(t)
	first := names(t, s.Host, s.RootCommand, []string{"127.0.0.53"}, zone...)
	second := names(t, s.Host, s.RootCommand, []string{"127.0.0.54"}, zone...)
	s.resolvConf(t, "nameserver 127.0.0.53", "nameserver 127.0.0.54", "options rotate")
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for range 4 {
		if got := g.dig(t, "@"+dns4, "web.example.test"); got != "NOERROR 198.51.100.80" {
			t.Error(got)
		}
	}
	for i, p := range []*testenv.Process{first, second} {
		if n := strings.Count(p.Stderr(), "query[A] web.example.test"); n != 2 {
			t.Errorf("upstream %d has got %d of 4 queries", i, n)
		}
	}
	g.stop(t)
}

func TestTheGatewayIsFoundByName(t *testing.T) {
	s := newSite(t)
	s.resolvConf(t, "nameserver "+s.outside.HostAddr4.String()) // nobody
	port := serveTCP(t, s.Host, "127.0.0.1:0", echoTCP).Port()
	g := startGate(t, s.Host, "--net=slirp", "--host-loopback=all", "sleep", "infinity")
	for question, want := range map[string]string{
		"host.gatekit.internal A":    "NOERROR " + gateway4,
		"host.gatekit.internal AAAA": "NOERROR " + gateway6,
		"host.gatekit.internal TXT":  "NOERROR",
	} {
		if got := g.dig(t, append([]string{"@" + dns4}, strings.Fields(question)...)...); got != want {
			t.Errorf("%s: %s, want %s", question, got, want)
		}
	}
	if got := g.run(t, "getent", "ahostsv4", "host.gatekit.internal"); !strings.HasPrefix(got, gateway4+" ") {
		t.Error(got)
	}
	g.run(t, "probe", "exchange", at(mustAddr(gateway4), int(port)), "1000")
	g.stop(t)
}
