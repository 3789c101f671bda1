package test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/gatekit/gatekit/internal/testenv"
)

// Two machines with a gate each, and an overlay between the gates: how k3s and
// usernetes grow past one machine. What is made inside is what flannel makes: a
// VXLAN device that learns nothing, with UDP 8472 published by the builtin driver,
// and a bridge for pods (docs/multi-node.md has the same commands).
//
//	node 0                                           node 1
//	pod 10.42.0.2 - cni0 10.42.0.1                   cni0 10.42.1.1 - pod 10.42.1.2
//	                flannel.1 10.42.0.0              flannel.1 10.42.1.0
//	                   | UDP to 198.51.100.2:8472       |
//	        gate     tap0 ---- slirp -- host ======= host -- forward of 8472 ---- gate

// node is a gate on a machine of its own, with a pod.
type node struct {
	*gate
	host netip.Addr // on the network of the machines
	pod  *gate      // the pod's namespaces
}

// vxlanPort is flannel's.
const vxlanPort = 8472

// twoNodes starts two gates on two machines, and connects them.
func twoNodes(t *testing.T, mtu int, args ...string) [2]node {
	t.Helper()
	var nodes [2]node
	hosts := twoHosts(t)
	for i, h := range hosts {
		flags := []string{"--net=slirp", fmt.Sprintf("-p=%d:%[1]d/udp", vxlanPort)}
		g := startGate(t, h, append(append(flags, args...), "sleep", "infinity")...)
		nodes[i] = node{gate: g, host: hostAddr(i)}
	}
	for i, n := range nodes {
		n.overlay(t, i, nodes[1-i].host, mtu)
		nodes[i].pod = n.startPod(t, i, mtu)
	}
	return nodes
}

// hostAddr is a machine's address on the network of both.
func hostAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + i)}) }

// twoHosts are two machines on one network.
func twoHosts(t *testing.T) [2]*testenv.Host {
	t.Helper()
	hosts := [2]*testenv.Host{testenv.NewHost(t), testenv.NewHost(t)}
	var ns *os.File
	hosts[1].Do(t, func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	defer ns.Close()
	hosts[0].Do(t, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: "eth0"},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(int(ns.Fd())),
		})
	})
	for i, h := range hosts {
		script := fmt.Sprintf("ip address add %v/28 dev eth0 && ip link set eth0 up", hostAddr(i))
		if r := h.Run(t, h.RootCommand("sh", "-c", script)); r.Code != 0 {
			t.Fatal(r)
		}
	}
	return hosts
}

// overlay makes what flannel makes on a node, towards the one other node.
func (n node) overlay(t *testing.T, i int, peer netip.Addr, mtu int) {
	t.Helper()
	n.run(t, "sh", "-ec", fmt.Sprintf(`
		echo 1 >/proc/sys/net/ipv4/ip_forward
		ip link add flannel.1 address 02:42:00:00:00:%02[1]d mtu %[4]d type vxlan id 1 dev tap0 local 10.0.2.100 dstport %[5]d nolearning noudpcsum
		ip address add 10.42.%[1]d.0/32 dev flannel.1
		ip link set flannel.1 up
		ip route add 10.42.%[2]d.0/24 via 10.42.%[2]d.0 dev flannel.1 onlink
		ip neighbour add 10.42.%[2]d.0 lladdr 02:42:00:00:00:%02[2]d dev flannel.1 nud permanent
		bridge fdb append 02:42:00:00:00:%02[2]d dev flannel.1 dst %[3]v
		ip link add cni0 type bridge
		ip address add 10.42.%[1]d.1/24 dev cni0
		ip link set cni0 mtu %[4]d up
	`, i, 1-i, peer, mtu, vxlanPort))
}

// startPod starts a pod on the node's bridge: a process with a network namespace.
func (n node) startPod(t *testing.T, i, mtu int) *gate {
	t.Helper()
	p := n.gate.host.Start(t, n.in("unshare", "-n", "sh", "-c", "echo apart; exec sleep infinity"))
	awaitLine(t, p, "apart\n")
	pod := &gate{Process: p, host: n.gate.host, childPID: p.PID()}
	n.run(t, "sh", "-ec", fmt.Sprintf(`
		ip link add pod0 mtu %d type veth peer name eth0 mtu %[1]d netns %d
		ip link set pod0 master cni0 up
	`, mtu, p.PID()))
	pod.run(t, "sh", "-ec", fmt.Sprintf(`
		ip address add 10.42.%[1]d.2/24 dev eth0
		ip link set eth0 up
		ip route add default via 10.42.%[1]d.1
	`, i))
	return pod
}

func TestPodsOfTwoNodesReachEachOther(t *testing.T) {
	const mtu = 1450 // an Ethernet's, less what VXLAN puts before a frame
	for name, args := range map[string][]string{
		"as it comes":                  nil,
		"senders seen as the loopback": {"--source-ip=off"},
		"gates with the largest MTU":   {"--mtu=65520"},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := twoNodes(t, mtu, args...)
			for i, n := range nodes {
				addr := fmt.Sprintf("10.42.%d.2", i)
				n.pod.serve(t, "tcp", addr+":80")
				n.serve(t, "tcp", fmt.Sprintf("10.42.%d.1:80", i))
				who := n.gate.host.Start(t, n.pod.in("socat", "-d", "-d", "TCP4-LISTEN:81,fork,reuseaddr", "SYSTEM:echo $SOCAT_PEERADDR"))
				awaitLine(t, who, "listening on .*\n")
			}
			for i, n := range nodes {
				pod, gateway := fmt.Sprintf("10.42.%d.2", 1-i), fmt.Sprintf("10.42.%d.1", 1-i)
				for _, command := range []*exec.Cmd{
					n.pod.in("probe", "exchange", pod+":80", "3000000"),
					n.pod.in("probe", "exchange", gateway+":80", "3000000"),
					n.in("probe", "exchange", pod+":80", "3000000"),
					n.in("ping", "-n", "-c", "1", fmt.Sprintf("10.42.%d.0", 1-i)),
					// The largest that the overlay takes comes through whole.
					n.pod.in("ping", "-n", "-c", "1", "-M", "do", "-s", fmt.Sprint(mtu-28), pod),
				} {
					n.succeed(t, command)
				}
				seen := strings.TrimSpace(n.succeed(t, n.pod.in("socat", "-u", "TCP4:"+pod+":81", "-")))
				if want := fmt.Sprintf("10.42.%d.2", i); seen != want {
					t.Errorf("the service sees %s, want the pod's own address, %s", seen, want)
				}
			}
		})
	}
}
