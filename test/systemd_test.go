package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// The units of packaging/systemd under the service manager that they are written
// for: systemd as a user's manager, which needs of the systemd at process 1 no more
// than the sign that it is there, and a cgroup that is delegated.

// manager is a user's service manager on a Host.
type manager struct {
	site
	*testenv.Process
	cgroup cgroup
}

// startManager starts it, with the units of the machine's packages.
func startManager(t *testing.T, s site) *manager {
	t.Helper()
	m := &manager{site: s, cgroup: userCgroup(t, s.Host)}
	if err := os.MkdirAll(s.Path("/run/systemd/system"), 0o755); err != nil { // sd_booted(3)
		t.Fatal(err)
	}
	// Cgroups of version 2 alone, as systemd has them.
	s.Do(t, func() error {
		if err := unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH); err != nil {
			return err
		}
		return unix.Mount("none", "/sys/fs/cgroup", "cgroup2", 0, "")
	})
	cmd := s.Command("/usr/lib/systemd/systemd", "--user", "--unit=basic.target")
	m.cgroup.enter(t, cmd)
	m.Process = s.Start(t, cmd)
	t.Cleanup(func() {
		m.Signal(signalTerm) // ends all units, then itself
		m.Wait(t)
	})
	testenv.Until(t, "the service manager", func() bool {
		if !m.Running() {
			t.Fatalf("systemd ended: %v", m.Wait(t))
		}
		return s.Run(t, m.systemctl("is-active", "basic.target")).Code == 0
	})
	return m
}

// install puts the units where a user has those of its own, with a drop-in for one
// of them. What this one writes goes to the file that is returned, as there is no
// journal.
func (m *manager) install(t *testing.T, unit string, settings ...string) (output string) {
	t.Helper()
	config, output := m.User.Home+"/.config/systemd/user", "/srv/"+unit+".log"
	drops := config + "/" + unit + ".d"
	succeeds(t, m.site.Run(t, m.site.Command("mkdir", "-p", drops)))
	makeTarget(t, "install-units", m.Path("/"), "UNITDIR="+config)
	m.WriteFile(t, output, "", 0o666)
	settings = append([]string{"[Service]", "StandardOutput=append:" + output, "StandardError=inherit"}, settings...)
	m.WriteFile(t, drops+"/test.conf", strings.Join(settings, "\n")+"\n", 0o644)
	m.do(t, "daemon-reload")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s: %s", unit, m.ReadFile(t, output))
		}
	})
	return output
}

func (m *manager) systemctl(args ...string) *exec.Cmd {
	return m.site.Command("systemctl", append([]string{"--user"}, args...)...)
}

// do runs systemctl, expects it to succeed, and returns what it prints.
func (m *manager) do(t *testing.T, args ...string) string {
	t.Helper()
	r := m.site.Run(t, m.systemctl(args...))
	if r.Code != 0 {
		status := m.site.Run(t, m.systemctl("status", "--full", "--no-pager", args[len(args)-1]))
		t.Fatalf("systemctl %s: %v\n%v", strings.Join(args, " "), r, status)
	}
	return strings.TrimSpace(r.Stdout)
}

// expectKind expects what the units have in common.
func (m *manager) expectKind(t *testing.T, unit string) {
	t.Helper()
	for name, want := range map[string]string{"Type": "notify", "NotifyAccess": "all", "Delegate": "yes", "KillMode": "mixed"} {
		if got := m.property(t, unit, name); got != want {
			t.Errorf("%s of %s is %q, want %q", name, unit, got, want)
		}
	}
}

// property is what systemd says of a unit.
func (m *manager) property(t *testing.T, unit, name string) string {
	t.Helper()
	return m.do(t, "show", "--property="+name, "--value", unit)
}

func TestDockerAsAServiceOfItsUser(t *testing.T) {
	withDocker(t, func(t *testing.T, d *docker) {
		const unit = "gatekit-docker.service"
		m := startManager(t, d.site)
		settings := []string{"RestartSec=10ms"}
		for _, variable := range d.environ {
			settings = append(settings, "Environment="+variable)
		}
		output := m.install(t, unit, settings...)
		m.expectKind(t, unit)

		// The first client starts it, and is answered once it is ready.
		m.do(t, "start", "gatekit-docker.socket")
		if state := m.property(t, unit, "ActiveState"); state != "inactive" {
			t.Errorf("before a client comes, %s is %s", unit, state)
		}
		if info, err := os.Stat(d.Path(d.User.RuntimeDir + "/docker.sock")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("docker.sock: %v, %v, want mode 0600", info.Mode(), err)
		}
		d.docker(t, "version")
		if state := m.property(t, unit, "SubState"); state != "running" {
			t.Errorf("once it has answered, %s is %s", unit, state)
		}
		if pid := m.property(t, unit, "MainPID"); pid != fmt.Sprint(d.info(t).PID) {
			t.Errorf("the main process is %s, want the gate", pid)
		}

		// Containers get cgroups from this manager, below its own.
		d.importImage(t)
		if driver := d.docker(t, "info", "--format={{.CgroupDriver}} {{.CgroupVersion}}"); driver != "systemd 2" {
			t.Errorf("Docker's cgroups are by %s, want systemd 2", driver)
		}
		d.witness(t, "web", append([]string{"--restart=always"}, published...)...)
		pid, err := strconv.Atoi(d.docker(t, "inspect", "--format={{.State.Pid}}", "web"))
		if err != nil {
			t.Fatal(err)
		}
		scope := d.docker(t, "inspect", "--format={{.Id}}", "web") + ".scope"
		if got := cgroupOf(t, pid); !strings.HasPrefix(got, m.cgroup.path+"/user.slice/") || !strings.HasSuffix(got, scope) {
			t.Errorf("the container is in the cgroup %s, want %s below %s", got, scope, m.cgroup.path)
		}
		expectOwn(t, "tcp", d.outside, at(d.outside.HostAddr4, 8080))

		// SIGHUP reaches dockerd, and a crash does not last.
		m.do(t, "reload", unit)
		testenv.Until(t, "dockerd to read its configuration again", func() bool {
			return strings.Contains(d.ReadFile(t, output), "reload configuration")
		})
		if err := unix.Kill(d.info(t).ChildPID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		testenv.Until(t, "systemd to notice", func() bool { return m.property(t, unit, "NRestarts") != "0" })
		d.serving(t, "web", 2)
		expectOwn(t, "udp", d.outside, at(d.outside.HostAddr4, 8080))

		d.remove(t, "web")
		m.do(t, "stop", "gatekit-docker.socket", unit)
		if result := m.property(t, unit, "Result"); result != "success" {
			t.Errorf("%s ends with %s", unit, result)
		}
	})
}

// standIn is what k3s does where it finds itself in a gate, without Kubernetes: mounts,
// a port by RootlessKit's client, its containerd, and a pod on the node's network, in
// a cgroup of its own.
const standIn = `#!/bin/sh
set -e
[ "$*" = "server --rootless --data-dir=$HOME/.rancher/k3s" ]
[ "$_K3S_ROOTLESS_SOCK" = "$ROOTLESSKIT_STATE_DIR/api.sock" ]
rm -rf /var/run/netns /run/containerd /run/xtables.lock
for dir in /var/log /var/lib/cni /var/lib/kubelet /etc/rancher /run/k3s/containerd; do
	mkdir -p $dir $HOME/.rancher/k3s/standin$dir
	mount -t tmpfs none $dir
	mount --bind $HOME/.rancher/k3s/standin$dir $dir
done
echo 1 >/proc/sys/net/ipv4/ip_forward
/usr/bin/rootlessctl --socket=$_K3S_ROOTLESS_SOCK add-ports 0.0.0.0:6443:6443/tcp
state=/run/k3s/containerd
agent=$HOME/.rancher/k3s/agent
env -u NOTIFY_SOCKET containerd --address=$state/containerd.sock --state=$state --root=$agent/containerd >$HOME/containerd.log 2>&1 &
until ctr --address=$state/containerd.sock version >/dev/null 2>&1; do sleep 0.02; done
ctr --address=$state/containerd.sock images import $HOME/image.tar >/dev/null
exec probe daemon ctr --address=$state/containerd.sock run --net-host --cgroup=/kubepods/hello --cpu-shares=0 localhost/base:latest hello probe witness tcp,0.0.0.0,6443
`

func TestK3sAsAServiceOfItsUser(t *testing.T) {
	s := newSite(t)
	m := startManager(t, s)
	s.WriteFile(t, "/srv/k3s", standIn, 0o755)
	s.WriteFile(t, s.User.Home+"/image.tar", string(imageArchive(t)), 0o644)
	const unit = "gatekit-k3s.service"
	output := m.install(t, unit, "Environment=PATH=/srv:"+hostPath)
	m.expectKind(t, unit)
	m.do(t, "start", unit)
	lines := strings.SplitN(s.ReadFile(t, output), "\n", 3)
	if len(lines) < 3 || lines[0] != "1" {
		t.Fatalf("k3s writes %q", lines)
	}
	var g given
	if err := json.Unmarshal([]byte(lines[1]), &g); err != nil {
		t.Fatalf("k3s tells %q: %v", lines[1], err)
	}
	host := namespaces(s.Run(t, s.Command(showNamespaces[0], showNamespaces[1:]...)).Stdout)
	for kind, id := range g.Namespaces {
		if id == host[kind] {
			t.Errorf("k3s is in the host's %s namespace", kind)
		}
	}
	if want := []string{"/etc", "/run", "/var/lib"}; !slices.Equal(g.Writable, want) {
		t.Errorf("k3s can write in %q, want %q", g.Writable, want)
	}
	if g.Env["ROOTLESSKIT_STATE_DIR"] != s.User.RuntimeDir+"/gatekit-k3s" || !strings.Contains(g.ResolvConf, "nameserver 10.41.0.3\n") {
		t.Errorf("k3s has the state dir %s, and the names of\n%s", g.Env["ROOTLESSKIT_STATE_DIR"], g.ResolvConf)
	}
	pid := m.property(t, unit, "MainPID")
	main, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := cgroupOf(t, main), m.property(t, unit, "ControlGroup")+"/k3s_evac"; got != want {
		t.Errorf("the gate is in the cgroup %s, want %s", got, want)
	}
	testenv.Until(t, "the pod to listen", func() bool { return strings.Contains(s.ReadFile(t, output), "serving") })
	pod := strings.Replace(m.property(t, unit, "ControlGroup"), m.cgroup.path, m.cgroup.dir, 1) + "/kubepods/hello/cgroup.procs"
	if procs, err := os.ReadFile(pod); err != nil || len(procs) == 0 {
		t.Errorf("the pod's cgroup has the processes %q (%v)", procs, err)
	}
	expectOwn(t, "tcp", s.outside, at(s.outside.HostAddr4, 6443))
	m.do(t, "stop", unit)
}

// Each unit is read by systemd without a complaint.
func TestTheUnitsAreVerified(t *testing.T) {
	h := testenv.NewHost(t)
	dir := "/srv/units"
	makeTarget(t, "install-units", h.Path("/"), "UNITDIR="+dir)
	units, err := filepath.Glob(h.Path(dir + "/*"))
	if err != nil || len(units) == 0 {
		t.Fatalf("units: %q, %v", units, err)
	}
	for _, unit := range units {
		r := h.Run(t, h.Command("systemd-analyze", "--user", "verify", "--man=no", "--recursive-errors=yes", dir+"/"+filepath.Base(unit)))
		if r.Code != 0 || r.Stderr != "" {
			t.Errorf("%s: %v", filepath.Base(unit), r)
		}
	}
}
