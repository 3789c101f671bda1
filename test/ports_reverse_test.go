package test

import (
	"slices"
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
