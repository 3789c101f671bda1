package test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/image"
	"github.com/gatekit/gatekit/internal/testenv"
)

// machineInit is the first process of a virtual machine. It is told where the servers
// are by the kernel's command line, and says on the console what came of each try.
const machineInit = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net; do
	insmod "/modules/$module" || echo "failed: $module"
done
ip link set lo up
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
until ip -6 address show dev eth0 scope global | grep -v tentative | grep inet6; do sleep 1; done
try "TCP over IPv6" probe exchange "$tcp6" 3000000
try "UDP over IPv6" probe echo "$udp6"
try "ping over IPv6" ping -6 -c 2 "$host6"
probe witness tcp,0.0.0.0,80 udp,0.0.0.0,80
`

// machineModules are the drivers of its network card, in machineInit's order.
var machineModules = []string{
	"drivers/virtio/virtio", "drivers/virtio/virtio_ring", "drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci_modern_dev",
	"drivers/virtio/virtio_pci", "net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net",
}

// machinePatience is how long a virtual machine may take for all that it does: its
// processor is emulated.
const machinePatience = 4 * time.Minute

// bootable makes a virtual machine's root directory, a cpio archive, and returns where
// the Host has that and a kernel.
func (s site) bootable(t *testing.T) (kernel, root string) {
	t.Helper()
	dir := carry(t, "guest", "scripts/unpack bookworm bin/guest depends:linux-image-cloud-amd64")
	kernels, err := filepath.Glob("../bin/guest/boot/vmlinuz-*")
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels: %q, %v", kernels, err)
	}
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	s.WriteFile(t, "/srv/init", machineInit, 0o755)
	files := image.Root{
		Programs: map[string]string{
			"init": s.Path("/srv/init"), "lease": s.Path(leaseScriptPath),
			"bin/busybox": busybox, "bin/probe": filepath.Join(testenv.Binaries(t), "probe"),
		},
		Links: map[string]string{"bin/sh": "busybox"},
	}
	for _, module := range machineModules {
		files.Programs["modules/"+filepath.Base(module)] = fmt.Sprintf("../bin/guest/lib/modules/%s/kernel/%s.ko", release, module)
	}
	var archive bytes.Buffer
	if err := files.Write(&archive); err != nil {
		t.Fatal(err)
	}
	pack := exec.Command("sh", "-ec", "tar -x; find . | busybox cpio -o -H newc 2>/dev/null")
	pack.Dir = t.TempDir()
	pack.Stdin = &archive
	cpio, err := pack.Output()
	if err != nil {
		t.Fatal(err)
	}
	s.WriteFile(t, "/srv/root.cpio", string(cpio), 0o644)
	return fmt.Sprintf("%s/boot/%s", dir, filepath.Base(kernels[0])), "/srv/root.cpio"
}

// A virtual machine on a TAP of the bridge: another kernel, which leaves checksums and
// segmentation to its virtual card, and so to us.
func TestAVirtualMachineHasTheNetwork(t *testing.T) {
	s := newSite(t)
	s.allowPings(t)
	s.names(t, "--address=/guest.example.test/198.51.100.99")
	g := s.nested(t, "-p", "8080:10.0.2.101:80/tcp", "-p", "8080:10.0.2.101:80/udp")
	kernel, root := s.bootable(t)
	options := []string{"console=ttyS0", "quiet", "panic=-1"}
	for name, outside := range map[string]netip.Addr{"4": s.outside.Addr4, "6": s.outside.Addr6} {
		options = append(options, fmt.Sprintf("host%s=%s", name, outside),
			fmt.Sprintf("tcp%s=%s", name, serveTCP(t, s.outside, at(outside, 0), echoTCP)),
			fmt.Sprintf("udp%s=%s", name, addrOf(serveUDP(t, s.outside, at(outside, 0), echoUDP))))
	}
	machine := s.Start(t, g.in("sh", "-ec", `
		ip tuntap add vm0 mode tap vnet_hdr
		ip link set vm0 master br0 up
		exec qemu-system-x86_64 -accel tcg -m 256 -nodefaults -display none -serial stdio -no-reboot -kernel "$0" -initrd "$1" -append "$2" \
			-netdev tap,id=net,ifname=vm0,script=no,downscript=no -device virtio-net-pci,netdev=net,romfile=`,
		kernel, root, strings.Join(options, " ")))
	if !testenv.Eventually(machinePatience, func() bool {
		return !machine.Running() || strings.Contains(machine.Stdout(), "serving")
	}) || !machine.Running() {
		t.Fatalf("the machine says\n%s\n%s", machine.Stdout(), machine.Stderr())
	}
	var results, leases []string
	for line := range strings.Lines(machine.Stdout()) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "leased: "):
			leases = append(leases, line)
		case strings.HasPrefix(line, "done: "), strings.HasPrefix(line, "failed: "):
			results = append(results, line)
		}
	}
	wantLease := []string{"leased: 10.0.2.101/24 via 10.0.2.2 dns 10.0.2.3 mtu 1400 search corp.example example.test domain corp.example"}
	if !slices.Equal(leases, wantLease) {
		t.Errorf("the machine is told %q, want %q", leases, wantLease)
	}
	want := []string{
		"done: TCP over IPv4", "done: UDP over IPv4", "done: ping over IPv4", "done: a name",
		"done: TCP over IPv6", "done: UDP over IPv6", "done: ping over IPv6",
	}
	if !slices.Equal(results, want) {
		t.Errorf("the machine says %q, want %q\n%s", results, want, machine.Stdout())
	}
	for _, network := range []string{"tcp", "udp"} {
		expectOwn(t, network, s.outside, at(s.outside.HostAddr4, 8080))
	}
	machine.Kill()
	<-machine.Ended()
	g.stop(t)
}
