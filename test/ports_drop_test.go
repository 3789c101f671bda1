package test

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

// listener PORT... is a service of UDP that has nothing to say: it writes what it hears,
// and of whom.
var _ = testenv.Probe("listener", func(args []string) int {
	for _, port := range args {
		conn, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return report(err)
		}
		go func() {
			buf := make([]byte, 65535)
			for {
				n, peer, err := conn.ReadFrom(buf)
				if err == nil {
					fmt.Printf("%s of %v\n", buf[:n], peer.(*net.UDPAddr).AddrPort().Addr().Unmap())
				}
			}
		}()
	}
	fmt.Println("serving")
	select {} // until it is killed
})

// chatter ADDR... sends a datagram to each address every millisecond, whether anybody hears
// it or not.
var _ = testenv.Probe("chatter", func(args []string) int {
	tick := time.NewTicker(time.Millisecond)
	for {
		for _, addr := range args {
			conn, err := net.Dial("udp", addr)
			if err == nil {
				_, _ = conn.Write([]byte(padded("")))
				conn.Close()
			}
		}
		<-tick.C
	}
})

// padded makes datagrams of one length, so that they cannot be told apart by it.
func padded(text string) string { return fmt.Sprintf("%-60s", text) }

// insist sends datagrams, one at a time, until one is answered, as clients do, and expects
// that the last but one is answered then as well: of two that were dropped the gate is sure.
// It returns whom the service sees.
func insist(t *testing.T, from machine, addr string) netip.Addr {
	t.Helper()
	conn := dialUDP(t, from, addr)
	defer conn.Close()
	answer := make([]byte, 100)
	n := 0
	testenv.Until(t, "an answer by "+addr, func() (ok bool) {
		if _, err := conn.Write([]byte("who am I?")); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		var err error
		n, err = conn.Read(answer)
		return err == nil
	})
	_ = conn.SetReadDeadline(time.Now().Add(testenv.Patience))
	var err error
	if n, err = conn.Read(answer); err != nil {
		t.Errorf("what was dropped before the last is lost: %v", err)
	}
	var ip string
	if _, err := fmt.Sscan(string(answer[:n]), &ip); err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddr(ip)
}

// Where a firewall inside drops what comes in a client's name without a word, the service
// has it by the fast path soon; other clients keep their address.
func TestDatagramsThatAFirewallInsideDropsTakeTheFastPath(t *testing.T) {
	s := newSite(t)
	second := s.Host.Outside(t)
	for name, c := range map[string]struct{ hook, flag, child, sees, sees6 string }{
		"what is delivered":              {"input priority 0", "--detach-netns", "", "127.0.0.1", "::1"},
		"what comes in":                  {"prerouting priority raw", "--pidns", "", "127.0.0.1", "::1"},
		"what comes in by the interface": {"input priority 0", "--mtu=1280", "10.0.2.100:", "10.0.2.100", ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, s.Host, "--net=slirp", c.flag, "-p", "8080:"+c.child+"80/udp", "sleep", "60")
			g.witness(t, "udp,0.0.0.0,80", "udp,::,80")
			g.shell(t,
				"nft add table inet wall",
				"nft add chain inet wall in { type filter hook "+c.hook+" ; }",
				"nft add rule inet wall in ip saddr "+s.outside.Addr4.String()+" drop",
				"nft add rule inet wall in ip6 saddr "+s.outside.Addr6.String()+" drop")
			for host, want := range map[netip.Addr]string{s.outside.HostAddr4: c.sees, s.outside.HostAddr6: c.sees6} {
				if want == "" {
					continue
				}
				if got := insist(t, s.outside, at(host, 8080)); got.String() != want {
					t.Errorf("by %v the service sees %v, want %s", host, got, want)
				}
				// The next flow is not held up.
				if saw, _ := seen(t, "udp", s.outside, at(host, 8080)); saw.Addr().String() != want {
					t.Errorf("by %v the service then sees %v, want %s", host, saw, want)
				}
			}
			expectOwn(t, "udp", second, at(second.HostAddr4, 8080))
			g.expectListed(t, "partly")
			for _, f := range parseConnections(t, g.ctlOutput(t, "connections", "--json")) {
				want := "off"
				if f.RemoteIP == second.Addr4 {
					want = "preserve"
				}
				if f.SourceIP != want {
					t.Errorf("the flow of %v is told with %q, want %q", f.RemoteIP, f.SourceIP, want)
				}
			}
		})
	}
}

// dropOnTheWay drops what a container is sent in a client's name, and passes on what is sent
// on the loopback, as Docker does without its proxy.
const dropOnTheWay = `
echo 1 > /proc/sys/net/ipv4/conf/docker0/route_localnet
nft -f - <<END
table ip wall {
	chain FORWARD {
		type filter hook forward priority 0
		ip saddr $1 drop
	}
	chain OUTPUT {
		type nat hook output priority -100
		ip daddr 127.0.0.1 udp dport 8090 dnat to 172.17.0.2:80
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat
		ip saddr 127.0.0.0/8 oifname docker0 masquerade
	}
}
END
`

// A container that says nothing keeps its clients, whatever rules lead to it; where rules
// drop them on the way there, they take the fast path.
func TestDatagramsThatAreDroppedOnTheWayToAContainer(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8090:127.0.0.1:8090/udp4", "sleep", "60")
	container := g.host.Start(t, g.in("unshare", "-n", "sh", "-c", "echo made; exec sleep 60"))
	awaitLine(t, container, "(made)")
	inContainer := func(command ...string) *exec.Cmd {
		return g.in(slices.Concat([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", container.PID())}, command)...)
	}
	g.run(t, "sh", "-ec", dockerRules, "rules", fmt.Sprint(container.PID()))
	g.succeed(t, inContainer("sh", "-ec", containerNetwork))
	silent := g.host.Start(t, inContainer("probe", "listener", "80"))
	awaitLine(t, silent, "(serving)")
	g.expectHeard(t, silent, s.outside, at(s.outside.HostAddr4, 8090), s.outside.Addr4)
	g.expectListed(t, "preserve")
	silent.Kill()
	silent.Wait(t)
	g.witnessBy(t, inContainer, "udp,0.0.0.0,80")
	expectOwn(t, "udp", s.outside, at(s.outside.HostAddr4, 8090))
	g.run(t, "sh", "-ec", dropOnTheWay, "rules", s.outside.Addr4.String())
	if got := insist(t, s.outside, at(s.outside.HostAddr4, 8090)); got != netip.MustParseAddr("172.17.0.1") {
		t.Errorf("the container sees %v, want its bridge", got)
	}
	g.expectListed(t, "partly")
}

// expectHeard expects a silent service to hear all datagrams of several flows as the client's
// own. Each is sent after the last was heard, and so late after it that it is looked at.
func (g *gate) expectHeard(t *testing.T, silent *testenv.Process, from machine, addr string, client netip.Addr) {
	t.Helper()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for flow := range 4 {
		conn := dialUDP(t, from, addr)
		defer conn.Close()
		for i := range 6 {
			<-tick.C
			text := padded(fmt.Sprintf("datagram %d of flow %d of %v", i, flow, client))
			if _, err := conn.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if saw := awaitLine(t, silent, text+" of (.*)"); saw != client.String() {
				t.Errorf("datagram %d of flow %d is heard as %s, want %v", i, flow, saw, client)
			}
		}
	}
}

// A service that is merely silent keeps its clients, also while a firewall inside drops what
// others send, datagrams of the very length.
func TestSilentServicesKeepTheirClients(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/udp", "sleep", "60")
	silent := g.host.Start(t, g.in("probe", "listener", "80"))
	awaitLine(t, silent, "(serving)")
	g.shell(t,
		"nft add table inet wall",
		"nft add chain inet wall in { type filter hook input priority 0 ; }",
		"nft add rule inet wall in udp dport 81 counter drop")
	g.host.Start(t, g.in("probe", "chatter", "127.0.0.1:81", "[::1]:81"))
	testenv.Until(t, "something to be dropped", func() bool {
		return !strings.Contains(g.run(t, "nft", "list", "ruleset"), "packets 0 ")
	})
	for host, client := range map[netip.Addr]netip.Addr{s.outside.HostAddr4: s.outside.Addr4, s.outside.HostAddr6: s.outside.Addr6} {
		g.expectHeard(t, silent, s.outside, at(host, 8080), client)
	}
	g.expectListed(t, "preserve")
}

// queueing is a program in Python that is handed packets by a firewall (NFQUEUE, in the
// words of nfnetlink_queue.h), and lets each one go after a moment.
const queueing = `
import socket, struct, time
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.bind((0, 0))
def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
def tell(kind, body):
    s.send(struct.pack("=IHHIIBBH", 20 + len(body), 3 << 8 | kind, 1, 0, 0, 0, 0, 0) + body)
tell(2, attribute(1, struct.pack("=BBH", 1, 0, 0)))     # bind to queue 0
tell(2, attribute(2, struct.pack(">IB", 0, 1)))         # packets without their contents
print("serving", flush=True)
while True:
    packets = s.recv(65536)
    time.sleep(0.002)
    while packets:
        length, kind = struct.unpack("=IH", packets[:6])
        if kind == 3 << 8:                              # its header comes first, and begins with its id
            tell(1, attribute(2, struct.pack(">I", 1) + packets[24:28]))
        packets = packets[length + 3 & ~3:]
`

// What a firewall hands to a program, and the program lets go, is not dropped.
func TestSilentServicesBehindAQueueKeepTheirClients(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/udp", "sleep", "60")
	silent := g.host.Start(t, g.in("probe", "listener", "80"))
	awaitLine(t, silent, "(serving)")
	queue := g.host.Start(t, g.in("/usr/bin/python3", "-c", queueing))
	awaitLine(t, queue, "(serving)")
	g.shell(t, "iptables -A INPUT -p udp --dport 80 -j NFQUEUE")
	g.expectHeard(t, silent, s.outside, at(s.outside.HostAddr4, 8080), s.outside.Addr4)
	g.expectListed(t, "preserve")
}
