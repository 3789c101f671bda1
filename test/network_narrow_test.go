package test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// behindNAT puts a machine behind a router of the gate's namespace, to which there is a
// link that takes 1300 bytes. The machine itself takes it for one of 1500, and offers
// segments of that size.
const behindNAT = `
sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
nft -f - <<END
table inet nat {
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "tap0" masquerade
	}
}
END
ip link add narrow mtu 1500 type veth peer name eth0 netns %[1]d
ip address add 10.99.0.1/24 dev narrow
ip -6 address add fd99::1/64 dev narrow nodad
ip link set narrow up
nsenter --net=/proc/%[1]d/ns/net sh -ec '
	ip link set lo up; ip link set eth0 up
	ip address add 10.99.0.2/24 dev eth0; ip route add default via 10.99.0.1
	ip -6 address add fd99::2/64 dev eth0 nodad; ip -6 route add default via fd99::1'
ip link set narrow mtu 1300
`

// A stream from outside passes a link inside that is narrower than both its ends: who
// sends it, the gate, learns of it by the router's ICMP error.
func TestAStreamPassesANarrowLinkInside(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	machine := g.host.Start(t, g.in("unshare", "-n", "sh", "-c", "echo made; exec sleep infinity"))
	awaitLine(t, machine, "(made)")
	g.run(t, "sh", "-ec", fmt.Sprintf(behindNAT, machine.PID()))
	want := strings.Repeat("0123456789abcdef", 1<<16)
	for name, outside := range map[string]netip.Addr{"over IPv4": s.outside.Addr4, "over IPv6": s.outside.Addr6} {
		t.Run(name, func(t *testing.T) {
			server := serveTCP(t, s.outside, at(outside, 0), func(conn *net.TCPConn) { conn.Write([]byte(want)) })
			fetch := fmt.Sprintf("exec 3<>/dev/tcp/%v/%d; cat <&3", server.Addr(), server.Port())
			got := g.succeed(t, g.in("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", machine.PID()), "timeout", "20", "bash", "-c", fetch))
			if got != want {
				t.Errorf("%d bytes come of %d", len(got), len(want))
			}
		})
	}
	// No segment came in fragments, which would be put together on their way.
	if got := g.run(t, "nstat", "-az", "IpFragCreates", "Ip6FragCreates"); strings.Count(got, " 0 ") != 2 {
		t.Errorf("the router fragments:\n%s", got)
	}
	g.stop(t)
}
