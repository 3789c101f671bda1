package test

import (
	"slices"
	"strings"
	"testing"
)

// reverseHeader is that of a list of forwards.
var reverseHeader = []string{"ID", "PROTO", "PARENTIP", "PARENTPORT", "CHILDIP", "CHILDPORT", "SOURCEIP", "DIRECTION"}

// reversing is a test of reverse forwards to echo services of the host: TCP and UDP, at
// 127.0.0.1:5432 and [::1]:5433.
type reversing struct {
	flags []string // of the gate
	add   []string
	reach func(t *testing.T, g *gate) // what the namespace reaches by them
	list  [][]string
	after []string // what refuses when they are removed
}

// try adds them, kills the gate, reaches and lists those that have come back, and removes
// them.
func (r reversing) try(t *testing.T) {
	t.Helper()
	s := newSite(t)
	for _, network := range []string{"tcp", "udp"} {
		awaitLine(t, s.Start(t, s.Command("probe", "service", network, "127.0.0.1:5432", "[::1]:5433")), `serving .*\n`)
	}
	start := func() *gate {
		return startGate(t, s.Host, slices.Concat(r.flags, []string{"--restore-ports", "sleep", "infinity"})...)
	}
	g := start()
	ids := strings.Fields(g.ctlOutput(t, append([]string{"add-ports", "--reverse"}, r.add...)...))
	for range 2 {
		r.reach(t, g)
		g.Kill()
		g.Wait(t)
		g = start()
	}
	if got := table(g.ctlOutput(t, "list-ports")); !slices.EqualFunc(got, slices.Insert(r.list, 0, reverseHeader), slices.Equal) {
		t.Errorf("list-ports prints %q", got)
	}
	taken := g.ctl(t, "add-ports", "--reverse", r.add[0])
	if !strings.HasSuffix(taken.Stderr, "bind: address already in use by forward 1 (reverse "+r.add[0]+")\n") {
		t.Errorf("once more: %v", taken)
	}
	if got := g.ctlOutput(t, append([]string{"remove-ports"}, ids...)...); got != strings.Join(ids, "\n")+"\n" {
		t.Errorf("remove-ports prints %q", got)
	}
	for _, at := range r.after {
		if got := g.run(t, "probe", "connect", at); got != at+" connection refused\n" {
			t.Errorf("after remove-ports: %q", got)
		}
	}
	g.stop(t)
}

// The namespace reaches single ports of the host by its own loopback, and nothing
// more: such a forward is added, listed, removed and restored as the others are.
func TestTheNamespaceReachesPortsOfTheHost(t *testing.T) {
	for name, flags := range map[string][]string{
		"slirp":    {"--net=slirp"},
		"none":     {"--net=none", "--port-driver=builtin"},
		"detached": {"--net=slirp", "--detach-netns"},
	} {
		t.Run(name, func(t *testing.T) {
			reversing{
				flags: flags,
				add:   []string{"127.0.0.1:5432:5432/tcp", "[::1]:5433:53/udp"},
				reach: func(t *testing.T, g *gate) {
					g.run(t, "probe", "exchange", "127.0.0.1:5432", "100000")
					g.run(t, "probe", "exchange", "[::1]:5432", "100000")
					g.run(t, "probe", "echo", "127.0.0.1:53", "[::1]:53") // a privileged port of the namespace
				},
				list: [][]string{
					{"1", "tcp", "127.0.0.1", "5432", "-", "5432", "-", "reverse"},
					{"2", "udp", "::1", "5433", "-", "53", "-", "reverse"},
				},
				after: []string{"127.0.0.1:5432", "[::1]:5432"},
			}.try(t)
		})
	}
}

// The gateway's address is nobody's inside, and leads to single ports of the host,
// whatever their number there, where a reverse forward says so.
func TestTheGatewayLeadsToPortsOfTheHost(t *testing.T) {
	for name, flags := range map[string][]string{
		"slirp":    {"--net=slirp"},
		"detached": {"--net=slirp", "--detach-netns", "--source-ip=off"},
	} {
		t.Run(name, func(t *testing.T) {
			reversing{
				flags: flags,
				add: []string{"127.0.0.1:5432:10.0.2.2:5432/tcp", "[::1]:5433:[fd67:6174:656b::2]:80/tcp",
					"127.0.0.1:5432:10.0.2.2:53/udp", "[::1]:5433:[fd67:6174:656b::2]:5432/udp6"},
				reach: func(t *testing.T, g *gate) {
					g.run(t, "probe", "exchange", "10.0.2.2:5432", "100000")
					g.run(t, "probe", "exchange", "[fd67:6174:656b::2]:80", "100000")
					g.run(t, "probe", "echo", "10.0.2.2:53", "[fd67:6174:656b::2]:5432")
					if got := g.run(t, "probe", "connect", "10.0.2.2:53"); got != "10.0.2.2:53 connection refused\n" {
						t.Errorf("a port of the gateway's for UDP: %q", got)
					}
				},
				list: [][]string{
					{"1", "tcp", "127.0.0.1", "5432", "10.0.2.2", "5432", "-", "reverse"},
					{"2", "tcp", "::1", "5433", "fd67:6174:656b::2", "80", "-", "reverse"},
					{"3", "udp", "127.0.0.1", "5432", "10.0.2.2", "53", "-", "reverse"},
					{"4", "udp6", "::1", "5433", "fd67:6174:656b::2", "5432", "-", "reverse"},
				},
				after: []string{"10.0.2.2:5432", "[fd67:6174:656b::2]:80"},
			}.try(t)
		})
	}
	t.Run("without a gateway", func(t *testing.T) {
		g := startGate(t, newSite(t).Host, "--net=none", "--port-driver=builtin", "sleep", "infinity")
		r := g.ctl(t, "add-ports", "--reverse", "127.0.0.1:5432:10.0.2.2:5432/tcp")
		if r.Code != 1 || !strings.HasSuffix(r.Stderr, "the namespace does not have the address 10.0.2.2, nor a gateway that has it\n") {
			t.Errorf("%v", r)
		}
		g.stop(t)
	})
}

func TestReverseSpecsThatCannotWorkAreWrongUsage(t *testing.T) {
	g := startGate(t, newSite(t).Host, "--net=slirp", "sleep", "infinity")
	for _, spec := range []string{"auto", "0:5432/tcp", "0.0.0.0:5432:5432/tcp"} {
		if r := g.ctl(t, "add-ports", "--reverse", spec); r.Code != 2 {
			t.Errorf("%q: %v", spec, r)
		}
	}
	g.stop(t)
}
