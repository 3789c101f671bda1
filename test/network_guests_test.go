package test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// Guests of guests: machines of the namespace that are bridged to its interface.
// Real clients have them configured, and then they have the network that the
// child has.

// nest makes the bridge that docs/network.md tells of.
const nest = `
ip link add br0 type bridge
ip link set tap0 master br0
ip address flush dev tap0
ip link set br0 up
`

// leaseScript configures an interface as a DHCP client tells it to, and prints what
// that was. udhcpc has the event as an argument and its own names; the others are
// those of dhclient and dhcpcd.
const leaseScript = `#!/bin/sh -e
case "$1$reason" in
bound)
	new_ip_address=$ip new_subnet_mask=$mask new_routers=$router new_domain_name_servers=$dns
	new_interface_mtu=$mtu new_domain_search=$search new_domain_name=$domain
	;;
BOUND|BOUND6) ;;
PREINIT|PREINIT6) exec ip link set "$interface" up ;;
*) exit 0 ;;
esac
if [ "$reason" = BOUND6 ]; then
	ip address add "$new_ip6_address/128" dev "$interface" nodad
	echo "leased: $new_ip6_address dns $new_dhcp6_name_servers search $new_dhcp6_domain_search"
	exit
fi
ip address add "$new_ip_address/$new_subnet_mask" dev "$interface"
ip link set "$interface" mtu "$new_interface_mtu"
ip route add default via "$new_routers"
echo "leased: $new_ip_address/$new_subnet_mask via $new_routers dns $new_domain_name_servers mtu $new_interface_mtu search $new_domain_search domain $new_domain_name"
`

// Where nested writes it, and the client.
const (
	leaseScriptPath = "/srv/lease"
	dhclientPath    = "/srv/dhclient"
)

// nested starts a gate with a bridge in its namespace. Its host searches names in
// two domains.
func (s site) nested(t *testing.T, args ...string) *gate {
	t.Helper()
	s.WriteFile(t, leaseScriptPath, leaseScript, 0o755)
	// Of another name than that which an AppArmor profile of the machine's holds to
	// the machine's own script.
	program, err := exec.LookPath("dhclient")
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	s.WriteFile(t, dhclientPath, string(code), 0o755)
	s.resolvConf(t, "nameserver "+s.outside.Addr4.String(), "search corp.example example.test")
	g := startGate(t, s.Host, slices.Concat([]string{"--net=slirp", "--mtu=1400"}, args, []string{"sleep", "infinity"})...)
	g.run(t, "sh", "-ec", nest)
	return g
}

// guest makes a machine that is bridged, and returns how a command is run on it. Its
// only interface is eth0, and is up.
func (g *gate) guest(t *testing.T, name string) func(command ...string) *exec.Cmd {
	t.Helper()
	machine := g.host.Start(t, g.in("unshare", "-n", "sh", "-c", "echo made; exec sleep infinity"))
	awaitLine(t, machine, "(made)")
	in := func(command ...string) *exec.Cmd {
		return g.in(slices.Concat([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", machine.PID())}, command)...)
	}
	g.run(t, "sh", "-ec", fmt.Sprintf(`
		ip link add %[1]s type veth peer name eth0 netns %[2]d
		ip link set %[1]s master br0 up`, name, machine.PID()))
	g.succeed(t, in("sh", "-ec", "ip link set lo up; ip link set eth0 up"))
	return in
}

// udhcpc and dhclient are DHCP clients on an interface.
func udhcpc(ifname string, more ...string) []string {
	return append([]string{"busybox", "udhcpc", "-f", "-q", "-n", "-t", "5", "-T", "1", "-i", ifname, "-s", leaseScriptPath, "-O", "mtu", "-O", "search"}, more...)
}

func dhclient(ifname string, more ...string) []string {
	return slices.Concat([]string{dhclientPath, "-1", "-d"}, more, []string{"-sf", leaseScriptPath, "-lf", "/tmp/leases", "-pf", "/tmp/dhclient.pid", ifname})
}

// dhcpcd is another, with places to write of its own. It leaves the interface to the
// script.
func dhcpcd(ifname string) []string {
	return []string{"unshare", "-m", "sh", "-ec", `
		mount -t tmpfs run /run
		mount -t tmpfs lib /var/lib
		mkdir /var/lib/dhcpcd
		exec dhcpcd -4 -B -f /dev/null -o domain_name_servers,domain_name,domain_search,interface_mtu,routers --noconfigure -c "$0" "$1"`,
		leaseScriptPath, ifname}
}

// lease runs a client until it has an address, and returns what it was told.
func (g *gate) lease(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	client := g.host.Start(t, cmd)
	told := awaitLine(t, client, "leased: (.*)")
	client.Kill()
	<-client.Ended()
	return told
}

// reaches expects a machine in the gate to have what a machine on the host's network
// has: TCP, UDP, pings and names.
func (g *gate) reaches(t *testing.T, s site, in func(...string) *exec.Cmd, ipv6 bool) {
	t.Helper()
	outside, server := s.outside.Addr4, dns4
	if ipv6 {
		outside, server = s.outside.Addr6, dns6
	}
	tcp := serveTCP(t, s.outside, at(outside, 0), echoTCP)
	if got := g.succeed(t, in("probe", "exchange", tcp.String(), "3000000")); got != "ok\n" {
		t.Errorf("TCP: %q", got)
	}
	udp := serveUDP(t, s.outside, at(outside, 0), echoUDP)
	if got := g.succeed(t, in("probe", "echo", addrOf(udp).String())); got != "ok\n" {
		t.Errorf("UDP: %q", got)
	}
	g.succeed(t, in("ping", "-c", "2", "-i", "0.01", "-W", "10", outside.String()))
	if got := g.succeed(t, in("dig", "+short", "+tries=1", "+timeout=20", "@"+server, "guest.example.test")); got != "198.51.100.99\n" {
		t.Errorf("a name: %q", got)
	}
}

func TestAGuestOfTheNamespaceHasItsNetworkByDHCP(t *testing.T) {
	s := newSite(t)
	s.allowPings(t)
	s.names(t, "--address=/guest.example.test/198.51.100.99")
	g := s.nested(t)
	for i, client := range []struct {
		name    string
		command []string
	}{
		{"udhcpc", udhcpc("eth0")},
		{"udhcpc, by broadcast", udhcpc("eth0", "-B")},
		{"dhclient", dhclient("eth0", "-4")},
		{"dhcpcd", dhcpcd("eth0")},
	} {
		t.Run(client.name, func(t *testing.T) {
			guest := g.guest(t, fmt.Sprint("guest", i))
			told := g.lease(t, guest(client.command...))
			for _, want := range []string{fmt.Sprintf("10.0.2.%d/", 101+i), " via 10.0.2.2 ", " dns 10.0.2.3 ", " mtu 1400 ", " corp.example", " example.test"} {
				if !strings.Contains(told, want) {
					t.Errorf("the client is told %q, want %q", told, want)
				}
			}
			g.reaches(t, s, guest, false)
		})
	}
	g.stop(t)
}

func TestAGuestOfTheNamespaceHasItsNetworkOverIPv6(t *testing.T) {
	s := newSite(t)
	s.allowPings(t)
	s.names(t, "--address=/guest.example.test/198.51.100.99")
	g := s.nested(t)

	// By the kernel alone.
	guest := g.guest(t, "guest0")
	testenv.Until(t, "an address of the network that the kernel has made", func() bool {
		out := g.succeed(t, guest("ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "global", "-tentative"))
		return strings.Contains(out, "inet6 fd67:6174:656b:0:")
	})
	if got := g.succeed(t, guest("cat", "/proc/sys/net/ipv6/conf/eth0/mtu")); got != "1400\n" {
		t.Errorf("the MTU for IPv6 is %q", got)
	}
	if got := g.succeed(t, guest("ip", "-6", "route", "show", "default")); !strings.Contains(got, "via fe80::2 dev eth0 proto ra") || strings.Count(got, "default") != 1 {
		t.Errorf("the default route is %q", got)
	}
	g.reaches(t, s, guest, true)

	// By a client, which takes the address from the server and the rest from the
	// router.
	guest = g.guest(t, "guest1")
	g.succeed(t, guest("sysctl", "-q", "-w", "net.ipv6.conf.eth0.autoconf=0"))
	testenv.Until(t, "a link-local address", func() bool {
		return strings.Contains(g.succeed(t, guest("ip", "-6", "-o", "address", "show", "dev", "eth0", "-tentative")), "inet6 fe80:")
	})
	told := g.lease(t, guest(dhclient("eth0", "-6")...))
	for _, want := range []string{"fd67:6174:656b::101 ", "dns " + dns6, " corp.example", " example.test"} {
		if !strings.Contains(told, want) {
			t.Errorf("the client is told %q, want %q", told, want)
		}
	}
	testenv.Until(t, "a default route", func() bool {
		return strings.Contains(g.succeed(t, guest("ip", "-6", "route", "show", "default")), "via fe80::2")
	})
	if got := g.succeed(t, guest("ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "global")); strings.Count(got, "inet6") != 1 {
		t.Errorf("the addresses are %q", got)
	}
	g.reaches(t, s, guest, true)
	g.stop(t)
}

// A bridge that the interface was put into has the child's Ethernet address, and so
// the child's own addresses: what is published reaches it as before.
func TestABridgeTakesThePlaceOfTheInterface(t *testing.T) {
	s := newSite(t)
	s.allowPings(t)
	s.names(t, "--address=/guest.example.test/198.51.100.99")
	g := s.nested(t, "-p", "8090:10.0.2.100:80/tcp", "-p", "8091:10.0.2.101:80/tcp", "-p", "8091:10.0.2.101:80/udp",
		"-p", "8092:80/tcp")
	guest := g.guest(t, "guest0")
	if told := g.lease(t, g.in(udhcpc("br0")...)); !strings.HasPrefix(told, "10.0.2.100/") {
		t.Errorf("the bridge is told %q", told)
	}
	g.reaches(t, s, g.in, false)
	if told := g.lease(t, guest(udhcpc("eth0")...)); !strings.HasPrefix(told, "10.0.2.101/") {
		t.Errorf("the guest is told %q", told)
	}
	testenv.Until(t, "the kernel's own IPv6 address", func() bool {
		return strings.Contains(g.run(t, "ip", "-6", "-o", "address", "show", "dev", "br0", "scope", "global", "-tentative"), "inet6")
	})
	if told := g.lease(t, g.in(dhclient("br0", "-6")...)); !strings.HasPrefix(told, "fd67:6174:656b::100 ") {
		t.Errorf("the bridge is told %q", told)
	}
	g.reaches(t, s, g.in, true)

	// Forwards to both, in their clients' names.
	g.run(t, "sysctl", "-q", "-w", "net.ipv4.conf.br0.route_localnet=1")
	g.witnessBy(t, g.in, "tcp,0.0.0.0,80")
	for _, port := range []int{8090, 8092} {
		expectOwn(t, "tcp", s.outside, at(s.outside.HostAddr4, port))
	}
	g.witnessBy(t, guest, "tcp,0.0.0.0,80", "udp,0.0.0.0,80")
	for _, network := range []string{"tcp", "udp"} {
		expectOwn(t, network, s.outside, at(s.outside.HostAddr4, 8091))
	}
	g.stop(t)
}

// The child's interface asks for nothing, and has what it was given, also while
// others on its link are told of the router.
func TestTheInterfaceItselfTakesNoAdvertisement(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	addresses := func() string { return g.run(t, "ip", "-6", "-o", "address", "show", "dev", "tap0") }
	routes := func() string { return g.run(t, "ip", "-6", "route") }
	testenv.Until(t, "the link-local address", func() bool { return !strings.Contains(addresses(), "tentative") })
	beforeA, beforeR := addresses(), routes()
	g.run(t, "sh", "-ec", `
		ip link add link tap0 name guest type macvlan mode bridge
		ip link set guest up`)
	testenv.Until(t, "the guest's address", func() bool {
		return strings.Contains(g.run(t, "ip", "-6", "-o", "address", "show", "dev", "guest", "scope", "global", "-tentative"), "inet6")
	})
	g.run(t, "ip", "link", "delete", "guest")
	if after := addresses(); after != beforeA {
		t.Errorf("the addresses become\n%s\nand were\n%s", after, beforeA)
	}
	if after := routes(); after != beforeR {
		t.Errorf("the routes become\n%s\nand were\n%s", after, beforeR)
	}
	g.stop(t)
}
