package test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// A gate's name servers, where no other network is asked for.
const (
	dns4 = "10.0.2.3"
	dns6 = "fd67:6174:656b::3"
)

// names runs dnsmasq on a machine, where it knows the records and refuses all
// else, and logs each question.
func names(t *testing.T, m machine, command func(string, ...string) *exec.Cmd, addrs []string, records ...string) *testenv.Process {
	t.Helper()
	args := []string{
		"--no-daemon", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--no-resolv", "--no-hosts",
		"--bind-interfaces", "--except-interface=lo", "--log-queries", "--log-facility=-",
	}
	for _, addr := range addrs {
		args = append(args, "--listen-address="+addr)
	}
	p := m.Start(t, command("dnsmasq", append(args, records...)...))
	awaitLine(t, p, "started, version")
	return p
}

// names runs dnsmasq on the machine outside, at both of its addresses.
func (s site) names(t *testing.T, records ...string) *testenv.Process {
	t.Helper()
	return names(t, s.outside, s.outside.Command, []string{s.outside.Addr4.String(), s.outside.Addr6.String()}, records...)
}

// resolvConf writes the Host's own resolv.conf.
func (s site) resolvConf(t *testing.T, lines ...string) {
	t.Helper()
	s.WriteFile(t, "/etc/resolv.conf", strings.Join(lines, "\n")+"\n", 0o644)
}

// dig asks a question in the gate and returns the answer's status, or what dig
// says where there is none, and then its records.
func (g *gate) dig(t *testing.T, args ...string) string {
	t.Helper()
	r := g.host.Run(t, g.in(append([]string{"dig", "+noall", "+comments", "+answer", "+tries=1", "+timeout=20"}, args...)...))
	status := "no answer: " + r.Stdout
	var records []string
	for line := range strings.Lines(r.Stdout) {
		if _, after, ok := strings.Cut(line, "status: "); ok {
			status, _, _ = strings.Cut(after, ",")
		}
		if fields := strings.Fields(line); len(fields) > 4 && fields[2] == "IN" {
			records = append(records, strings.Join(fields[4:], " "))
		}
	}
	return strings.Join(append([]string{status}, records...), " ")
}

// zone is a zone with one name, which has both addresses.
var zone = []string{"--local=/test/", "--host-record=web.example.test,198.51.100.80,2001:db8::80"}

func TestNamesAreLookedUpThroughTheGateway(t *testing.T) {
	s := newSite(t)
	long := strings.Repeat("long", 50)
	server := s.names(t, append(zone, "--txt-record=big.example.test,"+strings.Join([]string{long, long, long, long, long}, ","))...)
	s.resolvConf(t, "nameserver "+s.outside.Addr4.String())
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for _, dns := range []string{dns4, dns6} {
		for _, how := range []string{"+notcp", "+tcp"} {
			t.Run("at "+dns+" "+how, func(t *testing.T) {
				for question, want := range map[string]string{
					"web.example.test A":    "NOERROR 198.51.100.80",
					"web.example.test AAAA": "NOERROR 2001:db8::80",
					"no.example.test A":     "NXDOMAIN",
					"www.example.org A":     "REFUSED",
				} {
					if got := g.dig(t, append([]string{"@" + dns, how}, strings.Fields(question)...)...); got != want {
						t.Errorf("%s: %s, want %s", question, got, want)
					}
				}
			})
		}
		t.Run("at "+dns+" an answer too large for a datagram comes over TCP", func(t *testing.T) {
			got := g.dig(t, "@"+dns, "+noedns", "big.example.test", "TXT")
			if strings.Count(got, long) != 5 || strings.Contains(got, "ERROR;") {
				t.Error(got)
			}
		})
	}
	// The questions came from the host, and nothing was added to them.
	if log := server.Stderr(); !strings.Contains(log, "query[AAAA] web.example.test from "+s.outside.HostAddr4.String()) {
		t.Errorf("the name server saw:\n%s", log)
	}
	g.stop(t)
}

func TestProgramsFindNames(t *testing.T) {
	s := newSite(t)
	s.names(t, zone...)
	s.resolvConf(t, "nameserver "+s.outside.Addr4.String(), "search nowhere.test example.test", "options ndots:1")
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for _, c := range []struct{ database, name, want string }{
		{"ahostsv4", "web.example.test", "198.51.100.80"},
		{"ahostsv6", "web.example.test", "2001:db8::80"},
		{"ahostsv4", "web", "198.51.100.80"}, // by the search domain
	} {
		if got := g.run(t, "getent", c.database, c.name); !strings.HasPrefix(got, c.want+" ") {
			t.Errorf("getent %s %s: %s, want %s", c.database, c.name, got, c.want)
		}
	}
	g.stop(t)
}

func TestTheHostsResolversAreAsked(t *testing.T) {
	known := "NOERROR 198.51.100.80"
	for name, c := range map[string]struct {
		resolvConf func(s site) []string
		flags      func(s site) []string
		want       string
	}{
		"on the host's loopback": {
			resolvConf: func(s site) []string { return []string{"nameserver 127.0.0.53"} },
			want:       known,
		},
		"over IPv6": {
			resolvConf: func(s site) []string { return []string{"nameserver " + s.outside.Addr6.String()} },
			want:       known,
		},
		"the second, when the first is dead": {
			resolvConf: func(s site) []string {
				return []string{"nameserver " + s.outside.HostAddr4.String(), "nameserver " + s.outside.Addr4.String()}
			},
			want: known,
		},
		"the second, when the first refuses": {
			resolvConf: func(s site) []string {
				return []string{"nameserver 127.0.0.54", "nameserver " + s.outside.Addr4.String()}
			},
			want: known,
		},
		"those of --dns instead": {
			resolvConf: func(s site) []string { return []string{"nameserver " + s.outside.HostAddr4.String()} },
			flags:      func(s site) []string { return []string{"--dns=" + s.outside.Addr4.String()} },
			want:       known,
		},
		"--dns with a port, over IPv6": {
			resolvConf: func(s site) []string { return []string{"nameserver " + s.outside.HostAddr4.String()} },
			flags:      func(s site) []string { return []string{fmt.Sprintf("--dns=[%s]:53", s.outside.Addr6)} },
			want:       known,
		},
		"the second of --dns": {
			resolvConf: func(s site) []string { return []string{"nameserver " + s.outside.HostAddr4.String()} },
			flags: func(s site) []string {
				return []string{"--dns=" + s.outside.HostAddr4.String(), "--dns=" + s.outside.Addr4.String()}
			},
			want: known,
		},
		"and a dead one is a server failure at once": {
			resolvConf: func(s site) []string { return []string{"nameserver " + s.outside.HostAddr4.String()} },
			want:       "SERVFAIL",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.names(t, zone...)
			names(t, s.Host, s.RootCommand, []string{"127.0.0.53"}, zone...)
			names(t, s.Host, s.RootCommand, []string{"127.0.0.54"}) // refuses all
			s.resolvConf(t, c.resolvConf(s)...)
			flags := []string{"--net=slirp"}
			if c.flags != nil {
				flags = append(flags, c.flags(s)...)
			}
			g := startGate(t, s.Host, append(flags, "sleep", "infinity")...)
			if got := g.dig(t, "@"+dns4, "web.example.test"); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if got := g.dig(t, "@"+dns6, "+tcp", "web.example.test"); got != c.want {
				t.Errorf("over TCP: %s, want %s", got, c.want)
			}
		})
	}
}

func TestAnotherResolverOfTheHostIsFollowed(t *testing.T) {
	s := newSite(t)
	s.names(t, zone...)
	s.resolvConf(t, "nameserver "+s.outside.HostAddr4.String())
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	if got := g.dig(t, "@"+dns4, "web.example.test"); got != "SERVFAIL" {
		t.Errorf("before: %s", got)
	}
	s.resolvConf(t, "nameserver "+s.outside.Addr4.String())
	testenv.Until(t, "an answer of the new resolver", func() bool {
		return g.dig(t, "@"+dns4, "web.example.test") == "NOERROR 198.51.100.80"
	})
}

// The questions of others are not stalled by one that finds no answer.
func TestAQuestionWithoutAnAnswerStallsNobody(t *testing.T) {
	s := newSite(t)
	s.names(t, zone...)
	// Questions for slow.example.test are passed on to nobody.
	hole := blackholes[0].String()
	names(t, s.Host, s.RootCommand, []string{"127.0.0.53"}, "--server=/slow.example.test/"+hole, "--server=/example.test/"+s.outside.Addr4.String())
	s.resolvConf(t, "nameserver 127.0.0.53")
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	slow := s.Start(t, g.in("dig", "+tries=1", "+timeout=20", "@"+dns4, "slow.example.test"))
	for range 5 {
		if got := g.dig(t, "@"+dns4, "web.example.test"); got != "NOERROR 198.51.100.80" {
			t.Error(got)
		}
	}
	slow.Kill()
	slow.Wait(t)
}

func TestResolvConfNamesTheGateway(t *testing.T) {
	for name, c := range map[string]struct {
		flags []string
		want  string
	}{
		"with the host's search domains and options": {
			nil, "search a.test b.test\nnameserver " + dns4 + "\nnameserver " + dns6 + "\noptions ndots:2\n",
		},
		"with the domains of --dns-search": {
			[]string{"--dns-search=c.test", "--dns-search=d.test"},
			"search c.test d.test\nnameserver " + dns4 + "\nnameserver " + dns6 + "\noptions ndots:2\n",
		},
		"without IPv6": {
			[]string{"--ipv6=false"}, "search a.test b.test\nnameserver " + dns4 + "\noptions ndots:2\n",
		},
		"of other networks": {
			[]string{"--cidr=172.16.9.0/24", "--cidr6=fd00:9::/64"},
			"search a.test b.test\nnameserver 172.16.9.3\nnameserver fd00:9::3\noptions ndots:2\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.resolvConf(t, "nameserver 198.51.100.2", "search a.test b.test", "options ndots:2")
			if got := output(t, s.Host, append(append([]string{"--net=slirp"}, c.flags...), "cat", "/etc/resolv.conf")...); got != c.want {
				t.Errorf("resolv.conf inside is:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}
