package test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// namespaces returns the namespaces of the process that runs showNamespaces, by
// kind.
func namespaces(out string) map[string]string {
	m := map[string]string{}
	for _, id := range strings.Fields(out) {
		kind, _, _ := strings.Cut(id, ":")
		m[kind] = id
	}
	return m
}

var showNamespaces = []string{"sh", "-c", "for n in user mnt net pid cgroup uts ipc; do readlink /proc/self/ns/$n; done"}

func TestNamespacesAreThoseThatWereAskedFor(t *testing.T) {
	h := testenv.NewHost(t)
	host := namespaces(h.Run(t, h.Command(showNamespaces[0], showNamespaces[1:]...)).Stdout)
	for name, c := range map[string]struct {
		flags []string
		own   string
	}{
		"user and mount always":               {nil, "user mnt"},
		"none of the host's network":          {[]string{"--net=none"}, "user mnt net"},
		"a network of its own":                {[]string{"--net=slirp"}, "user mnt net"},
		"the host's network when detached":    {[]string{"--net=slirp", "--detach-netns"}, "user mnt"},
		"process ids":                         {[]string{"--pidns"}, "user mnt pid"},
		"cgroups":                             {[]string{"--cgroupns"}, "user mnt cgroup"},
		"host name":                           {[]string{"--utsns"}, "user mnt uts"},
		"System V and POSIX queues":           {[]string{"--ipcns"}, "user mnt ipc"},
		"all of them":                         {[]string{"--net=slirp", "--pidns", "--cgroupns", "--utsns", "--ipcns"}, "user mnt net pid cgroup uts ipc"},
		"all of them, with the network apart": {[]string{"--net=none", "--detach-netns", "--pidns", "--cgroupns", "--utsns", "--ipcns"}, "user mnt pid cgroup uts ipc"},
	} {
		t.Run(name, func(t *testing.T) {
			inside := namespaces(output(t, h, append(c.flags, showNamespaces...)...))
			for kind, id := range host {
				if own := inside[kind] != id; own != slices.Contains(strings.Fields(c.own), kind) {
					t.Errorf("%s namespace of its own: %v (host %s, inside %s)", kind, own, id, inside[kind])
				}
			}
		})
	}
}

func TestAHostNameNamespaceTakesAHostName(t *testing.T) {
	h := testenv.NewHost(t)
	if got := output(t, h, "--utsns", "sh", "-c", "hostname inside && hostname"); got != "inside\n" {
		t.Errorf("the host name inside is %q", got)
	}
}

func TestAPIDNamespaceHasItsOwnProc(t *testing.T) {
	h := testenv.NewHost(t)
	out := output(t, h, "--pidns", "sh", "-c", `
		test "$(readlink /proc/self/ns/pid)" = "$(readlink /proc/1/ns/pid)" || echo pid 1 is of another namespace
		test "$(sh -c 'echo $$; readlink /proc/self' | head -n 1)" -lt 100 || echo pids do not start anew
		test "$(tr '\0' ' ' < /proc/$$/cmdline | head -c 5)" = "sh -c" || echo /proc does not show what we started
		for p in /proc/[0-9]*; do basename $p; done`)
	pids := strings.Fields(out)
	for _, pid := range pids {
		if n, err := strconv.Atoi(pid); err != nil || n > 100 {
			t.Errorf("/proc of the pid namespace: %s", out)
			break
		}
	}
	if !slices.Contains(pids, "1") {
		t.Errorf("/proc of the pid namespace has no pid 1: %s", out)
	}
}

func TestADetachedNetworkNamespaceIsKeptInTheStateDir(t *testing.T) {
	h := testenv.NewHost(t)
	// A veth pair shows in the host's network only.
	h.Outside(t)
	before := trace(t, h)
	const interfaces = "tail -n +3 /proc/self/net/dev | cut -d: -f1 | tr -d ' ' | sort"
	g := startGate(t, h, "--net=slirp", "--detach-netns", "sh", "-c", fmt.Sprintf(`
		%s; echo --; nsenter --net=$GATEKIT_STATE_DIR/netns sh -c '%s'; echo --; cat /etc/resolv.conf; echo ready; exec sleep infinity`,
		interfaces, strings.ReplaceAll(interfaces, "'", `'\''`)))
	g.awaitOutput(t, "ready\n")
	parts := strings.Split(g.Stdout(), "--\n")
	if parts[0] != "eth0\nlo\n" {
		t.Errorf("the command sees the interfaces %q, want the host's", parts[0])
	}
	if parts[1] != "lo\ntap0\n" {
		t.Errorf("%s/netns has the interfaces %q, want lo and tap0", g.stateDir, parts[1])
	}
	if want := h.ReadFile(t, "/etc/resolv.conf") + "ready\n"; parts[2] != want {
		t.Errorf("the command's resolv.conf is %q, want the host's", parts[2])
	}
	for _, name := range []string{"resolv.conf", "hosts"} {
		if _, err := os.Stat(h.Path(g.stateDir + "/" + name)); err != nil {
			t.Errorf("the detached network's %s: %v", name, err)
		}
	}
	if got := g.inside(t, "nsenter", "--net="+g.stateDir+"/netns", "sh", "-c", interfaces); got != "lo\ntap0\n" {
		t.Errorf("a tool that enters by the child's pid finds the interfaces %q", got)
	}
	g.Signal(os.Interrupt)
	g.Wait(t)
	h.NoTrace(t, ignoreStateDir(g, before, trace(t, h)))
}

// ignoreStateDir adds the files of the gate's state dir, which stays when
// --state-dir named it, to a trace.
func ignoreStateDir(g *gate, before, after testenv.Trace) testenv.Trace {
	for _, f := range after.Files {
		if f == g.host.Path(g.stateDir) || f == g.host.Path(g.stateDir+"/lock") {
			before.Files = append(before.Files, f)
		}
	}
	return before
}

func TestPropagationIsAsAskedFor(t *testing.T) {
	h := testenv.NewHost(t)
	// All mounts of a Host are shared. The root says what the value means for
	// one mount, /run what it means for those below. Mounts that a user namespace
	// inherits receive from the host, until the value says otherwise.
	for value, want := range map[string]struct{ root, run string }{
		"private":  {"", "receives"},
		"rprivate": {"", ""},
		"slave":    {"receives", "receives"},
		"rslave":   {"receives", "receives"},
		"shared":   {"shares receives", "receives"},
		"rshared":  {"shares receives", "shares receives"},
		"":         {"", ""},
	} {
		t.Run("value "+value, func(t *testing.T) {
			var flags []string
			if value != "" {
				flags = []string{"--propagation=" + value}
			}
			info := output(t, h, append(flags, "cat", "/proc/self/mountinfo")...)
			if got := propagation(t, info, "/"); got != want.root {
				t.Errorf("the root mount %q, want %q", got, want.root)
			}
			if got := propagation(t, info, "/run"); got != want.run {
				t.Errorf("/run %q, want %q", got, want.run)
			}
		})
	}
}

// propagation says whether the topmost mount on the target passes mounts on
// ("shares") and gets mounts from the host ("receives").
func propagation(t *testing.T, mountinfo, target string) string {
	t.Helper()
	found, out := false, []string{}
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if fields[4] != target {
			continue
		}
		found, out = true, nil
		for _, f := range fields[6:slices.Index(fields, "-")] {
			switch tag, _, _ := strings.Cut(f, ":"); tag {
			case "shared":
				out = append(out, "shares")
			case "master":
				out = append(out, "receives")
			}
		}
	}
	if !found {
		t.Fatalf("no mount on %s in\n%s", target, mountinfo)
	}
	return strings.Join(out, " ")
}

func TestMountsOfTheHostArriveWithRslave(t *testing.T) {
	h := testenv.NewHost(t)
	for _, dir := range []string{"/srv/empty", "/srv/full"} {
		if err := os.Mkdir(h.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.WriteFile(t, "/srv/full/file", "", 0o644)
	for value, want := range map[string]string{"rslave": "file\n", "rprivate": ""} {
		t.Run(value, func(t *testing.T) {
			g := startGate(t, h, "--propagation="+value, "sleep", "infinity")
			h.Bind(t, "/srv/full", "/srv/empty")
			if got := g.inside(t, "ls", "/srv/empty"); got != want {
				t.Errorf("after a mount on the host the gate sees %q, want %q", got, want)
			}
			g.Signal(os.Interrupt)
			g.Wait(t)
		})
	}
}

func TestSysShowsTheNewNetworkAndKeepsCgroups(t *testing.T) {
	h := testenv.NewHost(t)
	h.Outside(t)
	listCgroups := []string{"sh", "-c", "ls -d /sys/fs/cgroup/* " + cgroup2Mount(t) + "/cgroup.*"}
	cgroups := h.Run(t, h.Command(listCgroups[0], listCgroups[1:]...)).Stdout
	for name, c := range map[string]struct {
		flags      []string
		interfaces string
	}{
		"slirp":               {[]string{"--net=slirp"}, "lo\ntap0\n"},
		"none":                {[]string{"--net=none"}, "lo\n"},
		"with pid and cgroup": {[]string{"--net=slirp", "--ifname=gate0", "--pidns", "--cgroupns"}, "gate0\nlo\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got := output(t, h, append(c.flags, "ls", "/sys/class/net")...)
			if got != c.interfaces {
				t.Errorf("/sys/class/net has %q, want %q", got, c.interfaces)
			}
			if got := output(t, h, append(c.flags, listCgroups...)...); got != cgroups {
				t.Errorf("/sys/fs/cgroup inside:\n%s\nwant the host's:\n%s", got, cgroups)
			}
		})
	}
}
