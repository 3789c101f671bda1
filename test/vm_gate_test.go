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

// Gates in a virtual machine, whose kernel has what the tests' own may lack.

// AppArmor gives user namespaces to programs that a profile allows them, where it keeps
// users from them, as Ubuntu's does. That is a patch of Ubuntu's: here a profile that
// the user is held to does it.
func TestTheProfileOfAppArmorLetsGatekitThrough(t *testing.T) {
	const profile = `
abi <abi/4.0>,
profile held {
  /** rwlkm,
  /** pix,
  capability, network, mount, umount, pivot_root, signal, ptrace, unix,
}
`
	if _, err := os.Stat("../bin/apparmor"); err != nil {
		testenv.Skip(t, err.Error())
	}
	h := testenv.NewHost(t)
	h.WriteFile(t, "/srv/held", profile, 0o644)
	command := vmGate(t, vm{
		programs: map[string]string{"held": h.Path("/srv/held"), "profile": "../packaging/apparmor/gatekit"},
		folders:  map[string]string{"apparmor": "../bin/apparmor"},
		script: `
mount -t securityfs securityfs /sys/kernel/security
mkdir -p /etc/apparmor
: > /etc/apparmor/parser.conf
ln -s /apparmor/etc/apparmor.d /etc/apparmor.d
load() {
	LD_LIBRARY_PATH=/apparmor/usr/lib/x86_64-linux-gnu /apparmor/usr/lib64/ld-linux-x86-64.so.2 /apparmor/usr/sbin/apparmor_parser -r "$1" || echo "failed: $1"
}
held() { (echo "exec held" > /proc/self/attr/exec; exec $as_user "$@" 2>&1) }
cp /usr/bin/gatekit /home/user
load /held
echo "without: $(held gatekit --net=slirp id -u)"
load /profile
echo "elsewhere: $(held /home/user/gatekit --net=slirp id -u)"
echo "with: $(held gatekit --net=slirp sh -c 'echo $(id -u) $(cat /proc/self/attr/current)')"
`}).boot(t, h, nil)
	got := awaitVM(t, h.Start(t, h.Command(command[0], command[1:]...)), "")
	const refused = "gatekit: make namespaces: permission denied: user namespaces are forbidden here, by a security module or a container"
	want := []string{"without: " + refused, "elsewhere: " + refused, "with: 0 gatekit (unconfined)"}
	if !slices.Equal(got, want) {
		t.Errorf("the machine says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A cgroup that is delegated with the controllers that engines limit containers by, and
// one that runc limits in it.
func TestContainersAreLimitedInADelegatedCgroup(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		testenv.Skip(t, err.Error())
	}
	const config = `{
	"ociVersion": "1.0.2",
	"process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "/do"], "env": ["PATH=/bin"], "cwd": "/", "capabilities": {}},
	"root": {"path": "rootfs"},
	"mounts": [
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
		{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
	],
	"linux": {
		"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "cgroup"}],
		"cgroupsPath": "/limited",
		"resources": {"memory": {"limit": 50331648}, "pids": {"limit": 20}, "cpu": {"quota": 25000, "period": 100000}}
	}
}`
	h := testenv.NewHost(t)
	h.WriteFile(t, "/srv/config.json", config, 0o644)
	command := vmGate(t, vm{
		programs: map[string]string{"bin/runc": runc, "home/user/config.json": h.Path("/srv/config.json")},
		script: fmt.Sprintf(`
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/user.slice/session
echo "+cpu +memory +pids" > /sys/fs/cgroup/cgroup.subtree_control
echo "+cpu +memory +pids" > /sys/fs/cgroup/user.slice/cgroup.subtree_control
cd /sys/fs/cgroup/user.slice/session
chown user:user . cgroup.procs cgroup.subtree_control cgroup.threads
cd /home/user
mkdir -p rootfs/bin rootfs/proc rootfs/dev rootfs/sys/fs/cgroup
cp -a /bin/busybox rootfs/bin
cp -a /lib* rootfs
for name in sh cat sleep tail head; do ln -s busybox rootfs/bin/$name; done
echo '
	cd /sys/fs/cgroup
	echo limits $(cat memory.max pids.max cpu.max)
	head -c 100m /dev/zero | tail > /dev/null
	echo memory $?
	for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do sleep 600 & done
' > rootfs/do
chown -R user:user .
sh -c 'echo $$ > /sys/fs/cgroup/user.slice/session/cgroup.procs; exec "$@"' sh $as_user gatekit --net=slirp --pidns --cgroupns --evacuate-cgroup2=gate --copy-up=/run sh -c '%s' 2>&1
`, `
	mount -t tmpfs tmpfs /sys/fs
	mkdir /sys/fs/cgroup
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	echo evacuated $(cat /proc/self/cgroup)
	echo delegated $(cat /sys/fs/cgroup/cgroup.subtree_control)
	runc run one
	echo ended $?`)}).boot(t, h, nil)
	got := awaitVM(t, h.Start(t, h.Command(command[0], command[1:]...)), "")
	got = slices.DeleteFunc(got, func(line string) bool { return line == "Killed" }) // who says so is told of in the next line
	want := []string{
		"evacuated 0::/gate", "delegated cpu memory pids",
		"limits 50331648 20 25000 100000",
		"memory 137",
		"/do: line 0: can't fork: Resource temporarily unavailable",
		"ended 2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the machine says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
