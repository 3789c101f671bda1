package test

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/image"
	"github.com/gatekit/gatekit/internal/testenv"
)

// vm is a virtual machine: Debian's kernel on an emulated processor, and busybox. It
// shows what needs a kernel of its own, or one that has what this machine's has not.
type vm struct {
	modules  []string          // of the kernel, by their paths below its kernel directory, in the order of loading
	programs map[string]string // files of this machine by their paths there; libraries come along
	folders  map[string]string // folders of this machine by their names there
	script   string            // what it does, as root; it ends when that ends
}

// vmInit is its first process. The root that the kernel has unpacked is one that no
// process can leave (pivot_root(2)), so another takes its place.
const vmInit = `#!/bin/busybox sh
/bin/busybox --install -s /bin
if [ ! -e /started ]; then
	mkdir -p /root
	mount -t tmpfs -o size=80%% root /root
	cp -a /[!r]* /root
	: > /root/started
	exec switch_root /root /init
fi
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /run /usr/bin
for module in %s; do
	unxz "/modules/$module.ko.xz"
	insmod "/modules/$module.ko" || echo "failed: module $module"
done
ip link set lo up
%s
poweroff -f
`

// vmPatience is how long a virtual machine may take for all that it does.
const vmPatience = 4 * time.Minute

// boot makes the machine's root directory on a Host, and returns the command that runs
// it there: its console is the command's output. options are variables of its script.
func (v vm) boot(t *testing.T, h *testenv.Host, options map[string]string) (command []string) {
	t.Helper()
	dir := carry(t, "guest", "scripts/unpack trixie bin/guest depends:linux-image-cloud-amd64")
	kernels, err := filepath.Glob("../bin/guest/boot/vmlinuz-*")
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels: %q, %v", kernels, err)
	}
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	root := image.Root{
		Programs: map[string]string{"init": h.Path("/srv/init"), "bin/busybox": busybox},
		Links:    map[string]string{"bin/sh": "busybox"},
	}
	var modules []string
	for _, module := range v.modules {
		modules = append(modules, filepath.Base(module))
		root.Programs["modules/"+filepath.Base(module)+".ko.xz"] = fmt.Sprintf("../bin/guest/usr/lib/modules/%s/kernel/%s.ko.xz", release, module)
	}
	for name, path := range v.programs {
		root.Programs[name] = path
	}
	h.WriteFile(t, "/srv/init", fmt.Sprintf(vmInit, strings.Join(modules, " "), v.script), 0o755)
	var archive bytes.Buffer
	if err := root.Write(&archive); err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	unpack := exec.Command("tar", "-x", "-C", tree)
	unpack.Stdin = &archive
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	for name, path := range v.folders {
		if out, err := exec.Command("cp", "-a", path+"/.", filepath.Join(tree, name)).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v\n%s", err, out)
		}
	}
	pack := exec.Command("sh", "-ec", "find . | busybox cpio -o -H newc")
	pack.Dir = tree
	cpio, err := pack.Output()
	if err != nil {
		t.Fatal(err)
	}
	h.WriteFile(t, "/srv/root.cpio", string(cpio), 0o644)
	line := "console=ttyS0 quiet panic=-1"
	for name, value := range options {
		line += fmt.Sprintf(" %s=%s", name, value)
	}
	// QEMU 7.2's compare-and-exchange of 16 bytes goes wrong now and then, and then the
	// kernel's allocator does.
	return []string{"qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64,-cx16", "-m", "768", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", dir + "/boot/" + filepath.Base(kernels[0]), "-initrd", "/srv/root.cpio", "-append", line}
}

// awaitVM waits until a machine has ended or, if sign is not empty, has printed that,
// and returns the lines that it has printed, without the kernel's.
func awaitVM(t *testing.T, p *testenv.Process, sign string) []string {
	t.Helper()
	done := func() bool { return sign != "" && strings.Contains(p.Stdout(), sign) }
	if !testenv.Eventually(vmPatience, func() bool { return !p.Running() || done() }) || sign != "" && !done() {
		t.Fatalf("the machine says\n%s\n%s", p.Stdout(), p.Stderr())
	}
	var lines []string
	for line := range strings.Lines(p.Stdout()) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '[' {
			lines = append(lines, line)
		}
	}
	return lines
}

// vmGate has a machine run gates: its script comes behind what makes a user, and
// $as_user is how a command is run as that.
func vmGate(t *testing.T, v vm) vm {
	t.Helper()
	programs := map[string]string{}
	for _, name := range []string{"newuidmap", "newgidmap", "setpriv"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		programs["bin/"+name] = path
	}
	for _, name := range []string{"gatekit", "gatectl"} {
		programs["usr/bin/"+name] = filepath.Join(testenv.Binaries(t), name)
	}
	for name, path := range v.programs {
		programs[name] = path
	}
	v.programs = programs
	v.modules = append([]string{"drivers/net/tun"}, v.modules...)
	v.script = `
chmod u+s /bin/newuidmap /bin/newgidmap
chmod 666 /dev/net/tun
mkdir -p /etc /home/user /run/user/1000 /tmp
chmod 1777 /tmp
echo "root:x:0:0::/:/bin/sh
user:x:1000:1000::/home/user:/bin/sh" > /etc/passwd
echo "root:x:0:
user:x:1000:" > /etc/group
echo user:100000:65536 | tee /etc/subuid > /etc/subgid
echo nameserver 198.51.100.1 > /etc/resolv.conf
echo 127.0.0.1 localhost > /etc/hosts
echo "0 2147483647" > /proc/sys/net/ipv4/ping_group_range
chown user:user /home/user /run/user/1000
as_user="setpriv --reuid user --regid user --clear-groups env HOME=/home/user XDG_RUNTIME_DIR=/run/user/1000 PATH=/bin:/usr/bin"
` + v.script
	return v
}
