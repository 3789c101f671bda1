package test

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// guestScript is what a guest of the namespace tries: it says what came of each.
const guestScript = `
ip link set eth0 up
udhcpc -f -q -n -t 20 -T 1 -i eth0 -s /lease -O mtu -O search
try() {
	name=$1
	shift
	if out=$("$@" 2>&1); then echo "done: $name"; else echo "failed: $name: $out"; fi
}
try "TCP over IPv4" probe exchange "$tcp4" 3000000
try "UDP over IPv4" probe echo "$udp4"
try "ping over IPv4" ping -c 2 "$host4"
try "a name" nslookup -type=a guest.example.test 10.0.2.3
# The kernel makes the address out of what the router says.
until ip -6 address show dev eth0 scope global | grep -v tentative | grep -q inet6; do sleep 1; done
try "TCP over IPv6" probe exchange "$tcp6" 3000000
try "UDP over IPv6" probe echo "$udp6"
try "ping over IPv6" ping -6 -c 2 "$host6"
probe witness tcp,0.0.0.0,80 udp,0.0.0.0,80
`

// A virtual machine on a TAP of the bridge: another kernel, which leaves checksums and
// segmentation to its virtual card, and so to us.
func TestAVirtualMachineHasTheNetwork(t *testing.T) {
	s := newSite(t)
	s.allowPings(t)
	s.names(t, "--address=/guest.example.test/198.51.100.99")
	g := s.nested(t, "-p", "8080:10.0.2.101:80/tcp", "-p", "8080:10.0.2.101:80/udp")
	options := map[string]string{}
	for family, outside := range map[string]netip.Addr{"4": s.outside.Addr4, "6": s.outside.Addr6} {
		options["host"+family] = outside.String()
		options["tcp"+family] = serveTCP(t, s.outside, at(outside, 0), echoTCP).String()
		options["udp"+family] = addrOf(serveUDP(t, s.outside, at(outside, 0), echoUDP)).String()
	}
	command := vm{
		modules:  []string{"net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net"},
		programs: map[string]string{"lease": s.Path(leaseScriptPath), "bin/probe": filepath.Join(testenv.Binaries(t), "probe")},
		script:   guestScript,
	}.boot(t, s.Host, options)
	guest := s.Start(t, g.in(slices.Concat([]string{"sh", "-ec", `
		ip tuntap add vm0 mode tap vnet_hdr
		ip link set vm0 master br0 up
		exec "$@" -netdev tap,id=net,ifname=vm0,script=no,downscript=no -device virtio-net-pci,netdev=net,romfile=`, "sh"}, command)...))
	var got []string
	for _, line := range awaitVM(t, guest, "serving") {
		for _, kind := range []string{"leased: ", "done: ", "failed: "} {
			if strings.HasPrefix(line, kind) {
				got = append(got, line)
			}
		}
	}
	want := []string{
		"leased: 10.0.2.101/24 via 10.0.2.2 dns 10.0.2.3 mtu 1400 search corp.example example.test domain corp.example",
		"done: TCP over IPv4", "done: UDP over IPv4", "done: ping over IPv4", "done: a name",
		"done: TCP over IPv6", "done: UDP over IPv6", "done: ping over IPv6",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the machine says %q, want %q\n%s", got, want, guest.Stdout())
	}
	for _, network := range []string{"tcp", "udp"} {
		expectOwn(t, network, s.outside, at(s.outside.HostAddr4, 8080))
	}
	guest.Kill()
	<-guest.Ended()
	g.stop(t)
}
