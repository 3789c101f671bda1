package test

import (
	"slices"
	"strings"
	"testing"
)

// The namespace reaches single ports of the host by its own loopback, and nothing
// more: such a forward is added, listed, removed and restored as the others are.
func TestTheNamespaceReachesPortsOfTheHost(t *testing.T) {
	for name, flags := range map[string][]string{
		"slirp":    {"--net=slirp"},
		"none":     {"--net=none", "--port-driver=builtin"},
		"detached": {"--net=slirp", "--detach-netns"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			for _, service := range [][]string{{"tcp", "127.0.0.1:5432"}, {"udp", "[::1]:5432"}} {
				awaitLine(t, s.Start(t, s.Command("probe", append([]string{"service"}, service...)...)), `serving .*\n`)
			}
			start := func() *gate {
				return startGate(t, s.Host, slices.Concat(flags, []string{"--restore-ports", "sleep", "60"})...)
			}
			g := start()
			run := func(command ...string) string {
				t.Helper()
				if name == "detached" {
					return g.succeed(t, g.inDetached(command...))
				}
				return g.run(t, command...)
			}
			if got := g.ctlOutput(t, "add-ports", "--reverse", "127.0.0.1:5432:5432/tcp", "[::1]:5432:53/udp"); got != "1\n2\n" {
				t.Errorf("add-ports prints %q", got)
			}
			for range 2 {
				run("probe", "exchange", "127.0.0.1:5432", "100000")
				run("probe", "exchange", "[::1]:5432", "100000")
				run("probe", "echo", "127.0.0.1:53", "[::1]:53") // a privileged port of the namespace
				g.Kill()
				g.Wait(t)
				g = start()
			}
			want := [][]string{
				{"ID", "PROTO", "PARENTIP", "PARENTPORT", "CHILDIP", "CHILDPORT", "SOURCEIP", "DIRECTION"},
				{"1", "tcp", "127.0.0.1", "5432", "-", "5432", "-", "reverse"},
				{"2", "udp", "::1", "5432", "-", "53", "-", "reverse"},
			}
			if got := table(g.ctlOutput(t, "list-ports")); !slices.EqualFunc(got, want, slices.Equal) {
				t.Errorf("list-ports prints %q", got)
			}
			g.ctlOutput(t, "remove-ports", "1", "2")
			if got := run("probe", "connect", "127.0.0.1:5432"); got != "127.0.0.1:5432 connection refused\n" {
				t.Errorf("after remove-ports: %q", got)
			}
			for _, args := range [][]string{{"auto"}, {"0:5432/tcp"}, {"0.0.0.0:5432:5432/tcp"}} {
				if r := g.ctl(t, append([]string{"add-ports", "--reverse"}, args...)...); r.Code != 2 {
					t.Errorf("%q: %v", args, r)
				}
			}
			g.stop(t)
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
			s := newSite(t)
			for _, network := range []string{"tcp", "udp"} {
				awaitLine(t, s.Start(t, s.Command("probe", "service", network, "127.0.0.1:5432", "[::1]:5433")), `serving .*\n`)
			}
			start := func() *gate {
				return startGate(t, s.Host, slices.Concat(flags, []string{"--restore-ports", "sleep", "60"})...)
			}
			g := start()
			run := func(command ...string) string {
				t.Helper()
				if name == "detached" {
					return g.succeed(t, g.inDetached(command...))
				}
				return g.run(t, command...)
			}
			if got := g.ctlOutput(t, "add-ports", "--reverse", "127.0.0.1:5432:10.0.2.2:5432/tcp", "[::1]:5433:[fd67:6174:656b::2]:80/tcp",
				"127.0.0.1:5432:10.0.2.2:53/udp", "[::1]:5433:[fd67:6174:656b::2]:5432/udp6"); got != "1\n2\n3\n4\n" {
				t.Errorf("add-ports prints %q", got)
			}
			for range 2 {
				run("probe", "exchange", "10.0.2.2:5432", "100000")
				run("probe", "exchange", "[fd67:6174:656b::2]:80", "100000")
				run("probe", "echo", "10.0.2.2:53", "[fd67:6174:656b::2]:5432")
				if got := run("probe", "connect", "10.0.2.2:53"); got != "10.0.2.2:53 connection refused\n" {
					t.Errorf("a port of the gateway's for UDP: %q", got)
				}
				g.Kill()
				g.Wait(t)
				g = start()
			}
			want := [][]string{
				{"ID", "PROTO", "PARENTIP", "PARENTPORT", "CHILDIP", "CHILDPORT", "SOURCEIP", "DIRECTION"},
				{"1", "tcp", "127.0.0.1", "5432", "10.0.2.2", "5432", "-", "reverse"},
				{"2", "tcp", "::1", "5433", "fd67:6174:656b::2", "80", "-", "reverse"},
				{"3", "udp", "127.0.0.1", "5432", "10.0.2.2", "53", "-", "reverse"},
				{"4", "udp6", "::1", "5433", "fd67:6174:656b::2", "5432", "-", "reverse"},
			}
			if got := table(g.ctlOutput(t, "list-ports")); !slices.EqualFunc(got, want, slices.Equal) {
				t.Errorf("list-ports prints %q", got)
			}
			taken := g.curl(t, "POST", "/v1/ports", `{"proto":"tcp","parentPort":1,"childIP":"10.0.2.2","childPort":5432,"reverse":true}`)
			if !strings.HasSuffix(taken, " 409") || !strings.Contains(taken, "bind: address already in use by forward 1 (reverse 127.0.0.1:5432:10.0.2.2:5432/tcp)") {
				t.Errorf("a second forward at its port: %s", taken)
			}
			g.ctlOutput(t, "remove-ports", "1", "2", "3", "4")
			for _, at := range []string{"10.0.2.2:5432", "[fd67:6174:656b::2]:80"} {
				if got := run("probe", "connect", at); got != at+" connection refused\n" {
					t.Errorf("after remove-ports: %q", got)
				}
			}
			g.stop(t)
		})
	}
	t.Run("without a gateway", func(t *testing.T) {
		g := startGate(t, newSite(t).Host, "--net=none", "--port-driver=builtin", "sleep", "60")
		r := g.ctl(t, "add-ports", "--reverse", "127.0.0.1:5432:10.0.2.2:5432/tcp")
		if r.Code != 1 || !strings.HasSuffix(r.Stderr, "the namespace does not have the address 10.0.2.2, nor a gateway that has it\n") {
			t.Errorf("%v", r)
		}
		g.stop(t)
	})
}
