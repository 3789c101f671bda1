package test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// With --detach-netns the command is in the host's network, and the card beside it, in
// the gate's own: as containerd-rootless.sh has it, with any network.
func TestACardIsInTheDetachedNetwork(t *testing.T) {
	for name, c := range map[string]struct {
		flags, card string
		site        func(*testing.T) lanSite
		lend        []string
	}{
		"lent":             {"", "eth1", newLANSite, []string{}},
		"lent, with DHCP":  {"", "eth1", newLANSite, []string{"--dhcp"}},
		"of a bridge":      {"", "eth0", newBridgeSite, nil},
		"of a bridge, PID": {"--pidns", "eth0", newBridgeSite, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := c.site(t)
			server := s.serveDHCP(t, leased)
			args := onBridge()
			if c.lend != nil {
				s.lend(t, c.lend...)
				args = onCard()
			}
			args = append(args, "--detach-netns")
			if c.flags != "" {
				args = append(args, c.flags)
			}
			g := startGate(t, s.Host, append(args, "sleep", "infinity")...)
			if got, want := g.inside(t, "sh", "-c", "ip -brief link; cat /etc/resolv.conf"), s.root(t, "ip -brief link; cat /etc/resolv.conf"); got != want {
				t.Errorf("the command's network is\n%s\nwant the host's:\n%s", got, want)
			}
			got := g.run(t, "ip", "-brief", "address")
			if lines := strings.Split(strings.TrimSpace(got), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[1], c.card) {
				t.Errorf("the detached network has\n%s\nwant lo and %s", got, c.card)
			}
			g.run(t, "ping", "-c1", "-W5", s.lan.Addr4.String())
			g.witness(t, "tcp,0.0.0.0,80")
			forward := g.add(t, "127.0.0.1:0:80/tcp")[0].Spec
			if saw, _ := seen(t, "tcp", s.Host, fmt.Sprintf("127.0.0.1:%d", forward.ParentPort)); !saw.Addr().IsLoopback() {
				t.Errorf("by the forward the service sees %v", saw)
			}
			if c.lend == nil || len(c.lend) > 0 {
				renewals := func() int { return strings.Count(server.Stderr()+server.Stdout(), "DHCPREQUEST(eth0) "+leased) }
				then := renewals()
				testenv.Until(t, "the renewal of the lease", func() bool { return renewals() > then })
			}
			g.stop(t)
			if c.lend != nil {
				s.giveBack(t)
				s.clean(t)
			}
		})
	}
}
