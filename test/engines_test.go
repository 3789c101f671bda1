package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
)

// Engines that no package brings here: their own command lines run a stand-in for
// the daemon, on our rootlesskit. It tells the test what it was given, and the
// service manager that it is ready.

// given is what a daemon finds.
type given struct {
	UID        int
	Env        map[string]string
	Namespaces map[string]string // by kind
	ChildPID   string            // what child_pid in the state dir holds
	NetNS      string            // the namespace that the state dir's netns is; empty where there is none
	Writable   []string          // those of engineDirs in which it can make a file
	Root       string            // the propagation of /, as in /proc/self/mountinfo
	ResolvConf string
	MTU        int // of tap0; 0 where there is none
}

// engineDirs are the directories that engines ask to be copied up.
var engineDirs = []string{"/etc", "/opt", "/run", "/var/lib"}

// daemon COMMAND... reports what it is given, sends READY=1, and becomes the
// command.
var _ = testenv.Probe("daemon", func(args []string) int {
	report, err := lookAround()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		return 1
	}
	// By this process, which stays: systemd looks for a sender's unit after the fact.
	if err := notify("READY=1"); err != nil {
		fmt.Println("READY=1:", err)
		return 1
	}
	path, err := exec.LookPath(args[0])
	if err == nil {
		err = syscall.Exec(path, args, os.Environ())
	}
	fmt.Println(err)
	return 1
})

func lookAround() (g given, err error) {
	g = given{UID: os.Getuid(), Env: map[string]string{}, Namespaces: map[string]string{}}
	for _, line := range os.Environ() {
		name, value, _ := strings.Cut(line, "=")
		g.Env[name] = value
	}
	for _, kind := range []string{"user", "mnt", "net", "pid", "cgroup", "uts", "ipc"} {
		if g.Namespaces[kind], err = os.Readlink("/proc/self/ns/" + kind); err != nil {
			return g, err
		}
	}
	stateDir := g.Env["ROOTLESSKIT_STATE_DIR"]
	text, err := os.ReadFile(stateDir + "/child_pid")
	if err != nil {
		return g, err
	}
	g.ChildPID = string(text)
	var netns unix.Stat_t
	if err := unix.Stat(stateDir+"/netns", &netns); err == nil {
		g.NetNS = fmt.Sprintf("net:[%d]", netns.Ino)
	}
	for _, dir := range engineDirs {
		if f, err := os.Create(dir + "/engine"); err == nil {
			f.Close()
			g.Writable = append(g.Writable, dir)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return g, err
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); fields[4] == "/" {
			optional, _, _ := strings.Cut(strings.Join(fields[6:], " "), "- ")
			g.Root = optional
		}
	}
	if text, err = os.ReadFile("/etc/resolv.conf"); err != nil {
		return g, err
	}
	g.ResolvConf = string(text)
	if tap, err := net.InterfaceByName("tap0"); err == nil {
		g.MTU = tap.MTU
	}
	return g, nil
}

// engine is a gate on which a stand-in runs.
type engine struct {
	*gate
	given
}

// startEngine runs our rootlesskit by a shell command, as systemd does, and waits
// for READY=1. more is added to the environment.
func startEngine(t *testing.T, s site, command string, more ...string) engine {
	t.Helper()
	path := s.User.RuntimeDir + "/notify"
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.Path(path), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(s.Path(path))
	defer manager.Close()
	if err := os.Chmod(s.Path(path), 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := s.Command("sh", "-ec", "exec "+command)
	cmd.Env = append(cmd.Env, "PATH="+asRootlesskit(t, s.Host)+":"+hostPath, "NOTIFY_SOCKET="+path)
	cmd.Env = append(cmd.Env, more...)
	e := engine{gate: &gate{Process: s.Start(t, cmd), host: s.Host}}
	buf := make([]byte, 100)
	testenv.Until(t, "READY=1 from the engine", func() bool {
		if !e.Running() {
			t.Fatalf("the gate ended: %v", e.Wait(t))
		}
		if err := manager.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := manager.Read(buf)
		return err == nil && string(buf[:n]) == "READY=1"
	})
	if err := json.Unmarshal([]byte(awaitLine(t, e.Process, "(?m)^({.*})$")), &e.given); err != nil {
		t.Fatalf("the engine tells %q: %v", e.Stdout(), err)
	}
	e.stateDir = e.Env["ROOTLESSKIT_STATE_DIR"]
	var info api.Info
	if err := json.Unmarshal([]byte(e.succeed(t, s.Command("gatectl", "info", "--json"))), &info); err != nil {
		t.Fatal(err)
	}
	e.childPID = info.ChildPID
	return e
}

// end ends the engine by SIGTERM; RootlessKit's code for that is 255.
func (e engine) end(t *testing.T) {
	t.Helper()
	e.Signal(signalTerm)
	if r := e.Wait(t); r.Code != 255 {
		t.Errorf("the gate ends with %v\nwant exit code 255", r)
	}
}

// expectEnvironment expects what RootlessKit tells its command, which tools read
// from /proc/PID/environ of the child as well.
func (e engine) expectEnvironment(t *testing.T) {
	t.Helper()
	u := e.host.User
	if e.UID != 0 || e.ChildPID != fmt.Sprint(e.childPID) {
		t.Errorf("the engine is user %d and child_pid holds %s, want 0 and %d", e.UID, e.ChildPID, e.childPID)
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", e.childPID))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"ROOTLESSKIT_STATE_DIR":   e.stateDir,
		"ROOTLESSKIT_PARENT_EUID": fmt.Sprint(u.UID),
		"ROOTLESSKIT_PARENT_EGID": fmt.Sprint(u.GID),
	} {
		if e.Env[name] != want || want == "" {
			t.Errorf("the engine has %s=%s, want %q", name, e.Env[name], want)
		}
		if !slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(line []byte) bool { return string(line) == name+"="+want }) {
			t.Errorf("the child's environ lacks %s=%s", name, want)
		}
	}
	if e.Env["XDG_RUNTIME_DIR"] != u.RuntimeDir || e.Env["HOME"] != u.Home {
		t.Errorf("the engine has XDG_RUNTIME_DIR=%s and HOME=%s, want the user's", e.Env["XDG_RUNTIME_DIR"], e.Env["HOME"])
	}
}

func TestEnginesGetWhatTheirCommandLinesAskFor(t *testing.T) {
	s := newSite(t)
	host := namespaces(s.Run(t, s.Command(showNamespaces[0], showNamespaces[1:]...)).Stdout)
	for name, c := range map[string]struct {
		flags    string
		own      string // namespaces
		detached bool
		writable string // directories
		mtu      int
		slave    bool // mounts of the host arrive
	}{
		"BuildKit in a container": {own: "user mnt"},
		"BuildKit": {
			flags: "--net=slirp4netns --copy-up=/etc --disable-host-loopback",
			own:   "user mnt net", writable: "/etc", mtu: 65520,
		},
		"BuildKit with a network apart": {
			flags: "--net=slirp4netns --copy-up=/etc --disable-host-loopback --detach-netns",
			own:   "user mnt", detached: true, writable: "/etc",
		},
		"dind-rootless": {
			flags: "--net=slirp4netns --mtu=1500 --disable-host-loopback --port-driver=builtin --copy-up=/etc --copy-up=/run -p 0.0.0.0:2376:2376/tcp",
			own:   "user mnt net", writable: "/etc /run", mtu: 1500,
		},
		"usernetes": {
			flags: "--state-dir $XDG_RUNTIME_DIR/usernetes/rootlesskit --net=slirp4netns --mtu=65520 --disable-host-loopback" +
				" --slirp4netns-sandbox=true --slirp4netns-seccomp=true --port-driver=builtin" +
				" --copy-up=/etc --copy-up=/run --copy-up=/var/lib --copy-up=/opt --propagation=rslave --pidns",
			own: "user mnt net pid", writable: "/etc /opt /run /var/lib", mtu: 65520, slave: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := startEngine(t, s, "rootlesskit "+c.flags+" probe daemon sleep infinity")
			defer e.end(t)
			e.expectEnvironment(t)
			for kind, id := range host {
				if own := e.Namespaces[kind] != id; own != slices.Contains(strings.Fields(c.own), kind) {
					t.Errorf("%s namespace of its own: %v", kind, own)
				}
			}
			if (e.NetNS != "") != c.detached || e.NetNS == host["net"] {
				t.Errorf("the state dir's netns is %q, and the host's network is %s", e.NetNS, host["net"])
			}
			if got := strings.Join(e.Writable, " "); got != c.writable {
				t.Errorf("the engine can write in %q, want %q", got, c.writable)
			}
			if e.MTU != c.mtu {
				t.Errorf("the MTU of tap0 is %d, want %d", e.MTU, c.mtu)
			}
			if slave := strings.Contains(e.Root, "master:"); slave != c.slave || strings.Contains(e.Root, "shared:") {
				t.Errorf("the root is %q, want it a slave: %v", e.Root, c.slave)
			}
			if own := strings.Contains(e.ResolvConf, "nameserver 10.0.2.3\n"); own != strings.Contains(c.own, "net") {
				t.Errorf("resolv.conf is %q", e.ResolvConf)
			}
		})
	}
}

// The daemon of dind-rootless serves its API on the port that was published.
func TestThePortOfDindRootless(t *testing.T) {
	s := newSite(t)
	e := startEngine(t, s, "rootlesskit --net=${DOCKERD_ROOTLESS_ROOTLESSKIT_NET:-slirp4netns} --mtu=${DOCKERD_ROOTLESS_ROOTLESSKIT_MTU:-1500}"+
		" --disable-host-loopback --port-driver=builtin --copy-up=/etc --copy-up=/run -p 0.0.0.0:2376:2376/tcp"+
		" probe daemon probe witness tcp,0.0.0.0,2376")
	testenv.Until(t, "the engine to listen", func() bool { return strings.Contains(e.Stdout(), "serving") })
	expectOwn(t, "tcp", s.outside, at(s.outside.HostAddr4, 2376))
	e.end(t)
}

// bootUsernetes is what usernetes does between its gate and its daemons: what the
// host has of other engines is put aside, directories whose names are fixed are
// laid over by the user's, and ports are published from inside.
const bootUsernetes = `
	rm -f /run/xtables.lock /run/flannel /run/containerd /etc/cni /etc/kubernetes
	mkdir -p /etc/cni/net.d /run/flannel
	cp -f /srv/cni/* /etc/cni/net.d
	mkdir -p /opt/cni/bin
	mount --bind /srv/cni /opt/cni/bin
	for f in /var/lib/kubelet /var/lib/cni /var/log; do
		src=$HOME/.local/share/usernetes/$(echo $f | sed -e s@/@_@g)
		mkdir -p $src $f
		mount --bind $src $f
	done
	state=$XDG_RUNTIME_DIR/usernetes/rootlesskit
	cat $state/child_pid >$state/_child_pid.u7s-ready
	rootlessctl --socket $state/api.sock add-ports 0.0.0.0:6443:6443/tcp 0.0.0.0:8472:8472/udp >&2
	exec probe daemon probe witness tcp,0.0.0.0,6443 udp,0.0.0.0,8472
`

func TestTheBootOfUsernetes(t *testing.T) {
	s := newSite(t)
	for _, dir := range []string{"/srv/cni", "/run/containerd", "/run/flannel", "/etc/cni"} {
		if err := os.Mkdir(s.Path(dir), 0o755); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	s.WriteFile(t, "/run/containerd/roots-own", "", 0o600)
	s.WriteFile(t, "/srv/cni/50-bridge.conf", "{}\n", 0o644)
	s.WriteFile(t, "/srv/boot", "#!/bin/sh\nset -e\n"+bootUsernetes, 0o755)
	e := startEngine(t, s, "rootlesskit --state-dir $XDG_RUNTIME_DIR/usernetes/rootlesskit"+
		" --net=slirp4netns --mtu=65520 --disable-host-loopback --slirp4netns-sandbox=true --slirp4netns-seccomp=true"+
		" --port-driver=builtin --copy-up=/etc --copy-up=/run --copy-up=/var/lib --copy-up=/opt --propagation=rslave --pidns"+
		" /srv/boot")
	defer e.end(t)
	e.expectEnvironment(t)
	testenv.Until(t, "the engine to listen", func() bool { return strings.Contains(e.Stdout(), "serving") })
	expectOwn(t, "tcp", s.outside, at(s.outside.HostAddr4, 6443))
	expectOwn(t, "udp", s.outside, at(s.outside.HostAddr4, 8472))
	// As usernetes' own hint enters.
	inside := e.succeed(t, s.Command("nsenter", "-U", "--preserve-credential", "-n", "-m", "-t", e.ChildPID,
		"sh", "-c", "ls /etc/cni/net.d /opt/cni/bin; ls -d /run/containerd || ls -A /run/flannel"))
	if want := "/etc/cni/net.d:\n50-bridge.conf\n\n/opt/cni/bin:\n50-bridge.conf\n"; inside != want {
		t.Errorf("inside there is %q, want %q", inside, want)
	}
	if _, err := os.Stat(s.Path("/run/containerd/roots-own")); err != nil {
		t.Errorf("the host's own: %v", err)
	}
	if _, err := os.Stat(s.Path(e.stateDir + "/_child_pid.u7s-ready")); err != nil {
		t.Errorf("the state dir is not the user's inside: %v", err)
	}
}
