package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// containerd on our rootlesskit, by nerdctl's way of starting and entering it
// (testdata/containerd-rootless.sh), step by step. ctr asks containerd for its
// containers, and CNI's own plugins, which nerdctl's networks are made of, connect
// them. nerdctl itself is tried by nerdctl_test.go.

// containerd is a containerd that runs in a gate.
type containerd struct {
	*gate
	site
	bin string // the directory of our rootlesskit

	// detached is true where the gate has its network in the state dir, as
	// nerdctl asks for.
	detached bool

	// environ is what the gate's child has in its environment.
	environ []string
}

// cniNetwork is a network as nerdctl writes them: a bridge, and iptables' rules
// for a published port.
const cniNetwork = `{
	"cniVersion": "0.4.0", "name": "bridge",
	"plugins": [
		{"type": "bridge", "bridge": "nerdctl0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		 "ipam": {"type": "host-local", "subnet": "10.4.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}},
		{"type": "portmap", "runtimeConfig": {"portMappings": [
			{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
			{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]}}
	]
}
`

// startContainerd starts containerd and waits until it serves.
func startContainerd(t *testing.T, detach string) *containerd {
	t.Helper()
	s := newSite(t)
	c := &containerd{site: s, bin: asRootlesskit(t, s.Host), detached: detach == "auto"}
	c.install(t, "testdata/containerd-rootless.sh", "/srv/containerd-rootless.sh")
	for _, dir := range []string{"/etc/cni/net.d", "/run/containerd"} { // the machine's own, which may be
		if err := os.MkdirAll(s.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.WriteFile(t, "/etc/cni/net.d/10-bridge.conflist", cniNetwork, 0o644)
	cmd := s.Command("/srv/containerd-rootless.sh")
	cmd.Env = append(cmd.Env, "PATH="+c.bin+":"+hostPath, "CONTAINERD_ROOTLESS_ROOTLESSKIT_FLAGS=--copy-up=/opt",
		"CONTAINERD_ROOTLESS_ROOTLESSKIT_DETACH_NETNS="+detach)
	c.gate = &gate{Process: s.Start(t, cmd), host: s.Host, stateDir: s.User.RuntimeDir + "/containerd-rootless"}
	c.awaitReady(t)
	awaitLine(t, c.Process, "(containerd successfully booted)")
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.childPID))
	if err != nil {
		t.Fatal(err)
	}
	c.environ = strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
	// Its plugins are where Debian has them; /opt was copied up.
	c.ctl(t, "sh", "-ec", "mkdir -p /opt/cni && ln -s /usr/lib/cni /opt/cni/bin")
	return c
}

// install copies a program of the tests to the Host.
func (s site) install(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	s.WriteFile(t, to, string(text), 0o755)
}

// command is a command in the gate, as nerdctl starts itself there: with the
// environment of the child.
func (c *containerd) command(args ...string) *exec.Cmd {
	enter := []string{"-w" + c.User.Home, "--preserve-credentials", "-m", "-U", "-t", strconv.Itoa(c.childPID), "-F"}
	if !c.detached {
		enter = append(enter, "-n")
	}
	cmd := c.site.Command("nsenter", append(enter, args...)...)
	cmd.Env = slices.Concat(cmd.Env, c.environ)
	return cmd
}

// ctl runs a command there and returns what it prints.
func (c *containerd) ctl(t *testing.T, args ...string) string {
	t.Helper()
	return c.result(t, c.command(args...))
}

func (c *containerd) result(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	r := c.site.Run(t, cmd)
	if r.Code != 0 {
		t.Fatalf("%s: %v\ncontainerd: %s", strings.Join(cmd.Args, " "), r, c.Stderr())
	}
	return r.Stdout
}

// inNetwork is a command in the gate's network besides, as nerdctl's OCI hook is.
func (c *containerd) inNetwork(args ...string) *exec.Cmd {
	if !c.detached {
		return c.command(args...)
	}
	return c.command(append([]string{"nsenter", "--net=" + c.stateDir + "/netns", "--"}, args...)...)
}

// load gives containerd the image.
func (c *containerd) load(t *testing.T) {
	t.Helper()
	cmd := c.command("ctr", "images", "import", "-")
	cmd.Stdin = bytes.NewReader(imageArchive(t))
	c.result(t, cmd)
}

func TestNerdctlsSetUpCommands(t *testing.T) {
	s := newSite(t)
	bin := asRootlesskit(t, s.Host)
	kit := func(args ...string) testenv.Result {
		return s.Run(t, s.Command(bin+"/rootlesskit", args...))
	}
	if r := kit("--net=slirp4netns", "--disable-host-loopback", "--copy-up=/etc", "--copy-up=/run", "--copy-up=/var/lib", "true"); r.Code != 0 {
		t.Errorf("true: %v", r)
	}
	succeeds(t, s.Run(t, s.Command("mkdir", "l", "u", "w", "m")))
	home := s.User.Home
	if r := kit("mount", "-t", "overlay", "-o", fmt.Sprintf("lowerdir=%s/l,upperdir=%s/u,workdir=%s/w", home, home, home), "overlay", home+"/m"); r.Code != 0 {
		t.Errorf("mount: %v", r)
	}
	// Files of other ids, which the user cannot remove by itself.
	data := filepath.Join(home, ".local/share/containerd")
	if r := kit("sh", "-ec", `mkdir -p "$0/a"; touch "$0/a/b"; chown -R 1000:1000 "$0/a"; chmod 700 "$0/a"`, data); r.Code != 0 {
		t.Fatal(r)
	}
	if r := s.Run(t, s.Command("rm", "-rf", data)); r.Code == 0 {
		t.Error("the user can remove files of other ids: the test shows nothing")
	}
	if r := kit("rm", "-rf", data); r.Code != 0 {
		t.Errorf("rm: %v", r)
	}
	if _, err := os.Stat(s.Path(data)); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", data, err)
	}
	if r := s.Run(t, s.Command("sh", "-c", bin+"/rootlesskit --help | grep -qw -- --detach-netns")); r.Code != 0 {
		t.Errorf("grep for --detach-netns: %v", r)
	}
}

func TestContainersOfContainerd(t *testing.T) {
	for name, detach := range map[string]string{"in the gate's network": "false", "with its network apart": "auto"} {
		t.Run(name, func(t *testing.T) {
			c := startContainerd(t, detach)
			for name, want := range map[string]string{
				"ROOTLESSKIT_STATE_DIR": c.stateDir, "ROOTLESSKIT_PARENT_EUID": fmt.Sprint(c.User.UID), "ROOTLESSKIT_PARENT_EGID": fmt.Sprint(c.User.GID),
			} {
				if !slices.Contains(c.environ, name+"="+want) {
					t.Errorf("the child's environ %q lacks %s=%s", c.environ, name, want)
				}
			}
			c.load(t)
			if got := c.ctl(t, "ctr", "run", "--rm", "--cgroup=", "--cpu-shares=0", "localhost/base:latest", "once", "echo", "hello"); got != "hello\n" {
				t.Errorf("the container prints %q", got)
			}
			web := c.Host.Start(t, c.inNetwork("ctr", "run", "--rm", "--cgroup=", "--cpu-shares=0", "--cni", "localhost/base:latest", "web",
				"probe", "witness", "tcp,0.0.0.0,80", "udp,0.0.0.0,80"))
			awaitLine(t, web, "(serving)")
			// As nerdctl asks: by name of the protocol, without an address inside.
			c.add(t, "0.0.0.0:8080:8080/tcp", "0.0.0.0:8080:8080/udp")
			for _, network := range []string{"tcp", "udp"} {
				expectOwn(t, network, c.outside, at(c.outside.HostAddr4, 8080))
			}
			c.ctl(t, "ctr", "tasks", "kill", "-s", "KILL", "web")
			web.Wait(t)
			c.Signal(signalTerm)
			if r := c.Wait(t); r.Code != 0 {
				t.Errorf("the gate ends with %v", r)
			}
		})
	}
}
