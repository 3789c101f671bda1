package test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// losing has the namespace's kernel lose every thirteenth segment, in both directions.
const losing = `
nft -f - <<END
table inet bad
delete table inet bad
table inet bad {
	chain in {
		type filter hook input priority 0
		iifname "tap0" meta l4proto tcp numgen inc mod 13 == 7 counter drop
	}
	chain out {
		type filter hook output priority 0
		oifname "tap0" meta l4proto tcp numgen inc mod 13 == 7 counter drop
	}
}
END
`

// A stream there and back is whole when a real kernel loses much of it.
func TestAStreamPassesANamespaceThatLosesSegments(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "--mtu=1500", "sleep", "infinity")
	want := strings.Repeat("0123456789abcde\n", 1<<17)
	for name, outside := range map[string]netip.Addr{"over IPv4": s.outside.Addr4, "over IPv6": s.outside.Addr6} {
		t.Run(name, func(t *testing.T) {
			g.run(t, "sh", "-ec", losing)
			server := serveTCP(t, s.outside, at(outside, 0), func(conn *net.TCPConn) {
				io.Copy(conn, conn)
				conn.CloseWrite()
			})
			talk := fmt.Sprintf("exec 3<>/dev/tcp/%v/%d; yes 0123456789abcde | head -c %[3]d >&3 & head -c %[3]d <&3", server.Addr(), server.Port(), len(want))
			if got := g.succeed(t, g.in("timeout", "60", "bash", "-c", talk)); got != want {
				t.Errorf("%d bytes come of %d", len(got), len(want))
			}
			if lost := g.run(t, "nft", "list", "table", "inet", "bad"); strings.Contains(lost, " packets 0 ") {
				t.Errorf("nothing was lost in a direction:\n%s", lost)
			}
		})
	}
	g.stop(t)
}
