package test

import (
	"fmt"
	"os/exec"
	"slices"
	"testing"
)

// dockerRules are what Docker 28 sets up for -p 8090:80 and more of a container, with its
// userland proxy on, in the words of nft: what comes for 127.0.0.1 by another
// interface than lo is dropped, all else is passed on to the container.
const dockerRules = `
ip link add docker0 type bridge
ip address add 172.17.0.1/16 dev docker0
ip link set docker0 up
ip link add veth0 type veth peer name eth0 netns $1
ip link set veth0 master docker0 up
echo 1 > /proc/sys/net/ipv4/ip_forward
nft -f - <<END
table ip raw {
	chain PREROUTING {
		type filter hook prerouting priority raw
		ip daddr 127.0.0.1 iifname != "lo" tcp dport { 8090, 8091 } drop
		ip daddr 127.0.0.1 iifname != "lo" udp dport 8090 drop
	}
}
table ip nat {
	chain DOCKER {
		ip daddr 127.0.0.1 iifname != "docker0" tcp dport 8090 dnat to 172.17.0.2:80
		ip daddr 127.0.0.1 iifname != "docker0" tcp dport 8091 dnat to 172.17.0.2:81
		ip daddr 127.0.0.1 iifname != "docker0" udp dport 8090 dnat to 172.17.0.2:80
	}
	chain PREROUTING {
		type nat hook prerouting priority dstnat
		fib daddr type local jump DOCKER
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat
		ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
	}
}
END
`

// containerNetwork is the container's side of the bridge.
const containerNetwork = `
ip link set lo up
ip address add 172.17.0.2/16 dev eth0
ip link set eth0 up
ip route add default via 172.17.0.1
`

// A container behind Docker's rules sees its clients as they are. What the rules do
// not catch would reach Docker's own proxy, which is not there.
func TestAContainerBehindDockersRulesSeesItsClients(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8090:127.0.0.1:8090/tcp4", "-p", "8090:127.0.0.1:8090/udp4",
		"-p", "8091:127.0.0.1:8091/tcp4", "sleep", "infinity")
	container := g.host.Start(t, g.in("unshare", "-n", "sh", "-c", "echo made; exec sleep infinity"))
	awaitLine(t, container, "(made)")
	inContainer := func(command ...string) *exec.Cmd {
		return g.in(slices.Concat([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", container.PID())}, command)...)
	}
	g.run(t, "sh", "-ec", dockerRules, "rules", fmt.Sprint(container.PID()))
	g.succeed(t, inContainer("sh", "-ec", containerNetwork))
	g.witnessBy(t, inContainer, "tcp,0.0.0.0,80", "udp,0.0.0.0,80")
	for _, network := range []string{"tcp", "udp"} {
		for range 2 {
			expectOwn(t, network, s.outside, at(s.outside.HostAddr4, 8090))
		}
	}
	g.startService(t, inContainer("probe", "service", "tcp", "0.0.0.0:81"))
	if err := tryTCP(t, s.outside, at(s.outside.HostAddr4, 8091), large); err != nil {
		t.Error(err)
	}
}
