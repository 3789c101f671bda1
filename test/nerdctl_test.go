package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// nerdctl as it is, on our rootlesskit: its containerd-rootless.sh and its set-up tool,
// its OCI hook, which publishes ports, and buildkitd for `nerdctl build`.

// nerdctl is rootless containerd of a user, with what nerdctl needs.
type nerdctl struct {
	site
	environ []string // besides the user's
}

// newNerdctl makes a Host with nerdctl and our rootlesskit, and no helper of
// RootlessKit's. Debian has CNI's plugins where nerdctl has to be told.
func newNerdctl(t *testing.T) *nerdctl {
	t.Helper()
	programs := carry(t, "modules", "scripts/module-programs bin/modules")
	n := &nerdctl{site: newSite(t)}
	path := strings.Join([]string{asRootlesskit(t, n.Host), programs, hostPath}, ":")
	n.environ = []string{"PATH=" + path, "CONTAINERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns"}
	if helper, err := exec.LookPath("slirp4netns"); err == nil {
		n.Hide(t, helper)
	}
	for _, dir := range []string{"/etc/cni/net.d", "/run/containerd", "/srv/context"} { // the machine's own, which may be
		if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for file, text := range map[string]string{
		"nerdctl/nerdctl.toml":    `cni_path = "/usr/lib/cni"`,
		"buildkit/buildkitd.toml": "[worker.oci]\ncniBinaryPath = \"/usr/lib/cni\"",
	} {
		n.sh(t, fmt.Sprintf("mkdir -p .config/%s && echo '%s' >.config/%s", file[:strings.Index(file, "/")], text, file))
	}
	return n
}

// command is a command of the user with nerdctl in its PATH.
func (n *nerdctl) command(name string, args ...string) *exec.Cmd {
	return n.Command("env", slices.Concat(n.environ, []string{name}, args)...)
}

// sh runs a line of a shell, expects it to succeed, and returns what it prints.
func (n *nerdctl) sh(t *testing.T, line string) string {
	t.Helper()
	r := n.Run(t, n.command("sh", "-ec", line))
	if r.Code != 0 {
		t.Fatalf("%s: %v", line, r)
	}
	return strings.TrimSpace(r.Stdout)
}

// start starts containerd by nerdctl's script, and ends it with the test.
func (n *nerdctl) start(t *testing.T, environ ...string) {
	t.Helper()
	p := n.Start(t, n.command("env", append(environ, "containerd-rootless.sh")...))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd: %s", p.Stderr())
		}
		p.Signal(signalTerm)
		if r := p.Wait(t); r.Code != 0 {
			t.Errorf("the gate ends with code %d", r.Code)
		}
	})
	awaitLine(t, p, "(containerd successfully booted)")
}

// load gives containerd the image localhost/base:latest.
func (n *nerdctl) load(t *testing.T) {
	t.Helper()
	cmd := n.command("nerdctl", "load")
	cmd.Stdin = bytes.NewReader(imageArchive(t))
	if r := n.Run(t, cmd); r.Code != 0 {
		t.Fatalf("nerdctl load: %v", r)
	}
}

// witness starts a container that tells clients their addresses.
func (n *nerdctl) witness(t *testing.T, name, flags string) {
	t.Helper()
	n.sh(t, "nerdctl run -d --name "+name+" "+flags+" localhost/base probe witness tcp,0.0.0.0,80 udp,0.0.0.0,80")
	testenv.Until(t, "the container to listen", func() bool { return n.sh(t, "nerdctl logs "+name) == "serving" })
}

func TestNerdctlRunsOnOurRootlesskit(t *testing.T) {
	for name, detach := range map[string]string{"with its network apart": "auto", "in the gate's network": "false"} {
		t.Run(name, func(t *testing.T) {
			n := newNerdctl(t)
			page := n.greet(t)
			n.start(t, "CONTAINERD_ROOTLESS_ROOTLESSKIT_DETACH_NETNS="+detach)
			n.load(t)
			n.witness(t, "web", "-p 8080:80 -p 8080:80/udp")
			for _, network := range []string{"tcp", "udp"} {
				expectOwn(t, network, n.outside, at(n.outside.HostAddr4, 8080))
			}
			if r := n.Run(t, n.command("nerdctl", "run", "-p", "8080:80", "localhost/base", "true")); r.Code == 0 || !strings.Contains(r.Stderr, "bind: address already in use") {
				t.Errorf("a port that is taken: %v", r)
			}
			n.sh(t, "nerdctl rm -f web")
			if list := n.sh(t, "gatectl list-ports --json"); list != "[]" {
				t.Errorf("without the container, there are %s", list)
			}
			n.sh(t, "nerdctl network create ours")
			n.witness(t, "one", "--network=ours")
			if got := n.sh(t, "nerdctl run --rm --network=ours localhost/base sh -c 'probe connect one:80; wget -q -O- "+page+"'"); got != "one:80 ok\nhello" {
				t.Errorf("from one container to the other, and out: %q", got)
			}
			n.sh(t, "nerdctl rm -f one")
		})
	}
}

// buildContext makes a context of `docker build` and its like: busybox, without a
// registry, and what a RUN fetches.
func (s site) buildContext(t *testing.T, page string) {
	t.Helper()
	if err := os.WriteFile(s.Path("/srv/context/root.tar"), imageRoot(t), 0o644); err != nil {
		t.Fatal(err)
	}
	s.WriteFile(t, "/srv/context/Dockerfile", "FROM scratch\nADD root.tar /\nENV PATH=/bin\nRUN wget -O /page "+page+"\n", 0o644)
}

func TestNerdctlBuildsImages(t *testing.T) {
	n := newNerdctl(t)
	n.buildContext(t, n.greet(t))
	n.start(t)
	// As the unit does that the set-up tool's install-buildkit makes.
	buildkitd := n.Start(t, n.command("containerd-rootless-setuptool.sh", "nsenter", "--", "buildkitd",
		"--oci-worker=true", "--oci-worker-rootless=true", "--containerd-worker=false", "--oci-worker-net=bridge"))
	defer func() {
		buildkitd.Signal(signalTerm)
		buildkitd.Wait(t)
	}()
	awaitLine(t, buildkitd, "(running server on)")
	n.sh(t, "nerdctl build -t built /srv/context")
	if got := n.sh(t, "nerdctl run --rm built cat /page"); got != "hello" {
		t.Errorf("what the build fetched is %q", got)
	}
}

// BuildKit alone, by the command lines that it has for rootlesskit: in containers, and
// elsewhere. Its builds have the network that it has.
func TestBuildKitBuildsOnOurRootlesskit(t *testing.T) {
	n := newNerdctl(t)
	n.buildContext(t, n.greet(t))
	for name, flags := range map[string]string{
		"in the host's network": "",
		"behind slirp":          "--net=slirp4netns --copy-up=/etc --disable-host-loopback",
		// CNI's plugins note there what addresses they gave.
		"with its network apart": "--net=slirp4netns --copy-up=/etc --copy-up=/var/lib --disable-host-loopback --detach-netns",
	} {
		t.Run(name, func(t *testing.T) {
			worker := ""
			if strings.Contains(flags, "--detach-netns") {
				worker = "--oci-worker-net=bridge"
			}
			address := "unix://" + n.User.RuntimeDir + "/builder.sock"
			p := n.Start(t, n.command("sh", "-ec", "exec rootlesskit "+flags+" buildkitd --addr="+address+" "+worker))
			awaitLine(t, p, "(running server on)")
			got := n.sh(t, "buildctl --addr="+address+" build --no-cache --frontend=dockerfile.v0 --local=context=/srv/context"+
				" --local=dockerfile=/srv/context --output=type=local,dest=out >&2; cat out/page; rm -rf out")
			if got != "hello" {
				t.Errorf("what the build fetched is %q", got)
			}
			p.Signal(signalTerm)
			if r := p.Wait(t); r.Code != 1 { // buildkitd's own
				t.Errorf("the gate ends with code %d", r.Code)
			}
		})
	}
}

// nerdctl's own units of its user's service manager, which its set-up tool checks the
// host for, writes, starts and removes.
func TestNerdctlsSetUpTool(t *testing.T) {
	n := newNerdctl(t)
	n.buildContext(t, n.greet(t))
	m := startManager(t, n.site)
	// The unit has none of the tool's environment but PATH.
	const dropIn = ".config/systemd/user/containerd.service.d"
	n.sh(t, "mkdir -p "+dropIn+"; printf '[Service]\\nEnvironment=CONTAINERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns\\n' >"+dropIn+"/gatekit.conf")
	n.sh(t, "containerd-rootless-setuptool.sh install")
	if state := m.property(t, "containerd.service", "ActiveState"); state != "active" {
		t.Errorf("containerd.service is %s", state)
	}
	n.load(t)
	n.witness(t, "web", "-p 8080:80")
	expectOwn(t, "tcp", n.outside, at(n.outside.HostAddr4, 8080))
	if driver := n.sh(t, "nerdctl info --format='{{.CgroupDriver}} {{.CgroupVersion}}'"); driver != "systemd 2" {
		t.Errorf("nerdctl's cgroups are by %s, want systemd 2", driver)
	}
	n.sh(t, "nerdctl rm -f web")
	n.sh(t, "containerd-rootless-setuptool.sh install-buildkit")
	n.sh(t, "nerdctl build -t built /srv/context")
	if got := n.sh(t, "nerdctl run --rm built cat /page"); got != "hello" {
		t.Errorf("what the build fetched is %q", got)
	}
	n.sh(t, "containerd-rootless-setuptool.sh uninstall-buildkit")
	n.sh(t, "containerd-rootless-setuptool.sh uninstall")
	n.sh(t, "rootlesskit rm -rf .local/share/containerd .local/share/buildkit .local/share/nerdctl")
}

func TestTheSessionOfTheNerdctlDocument(t *testing.T) {
	n := newNerdctl(t)
	t.Run("an image that people get from a registry", func(t *testing.T) {
		n.start(t)
		n.load(t)
		n.sh(t, "nerdctl tag localhost/base busybox; rm -r .config/nerdctl")
	})
	shell := n.Command("env", n.environ[0], "bash", "-s")
	runExamples(t, n.Host, "../docs/nerdctl.md", 9, shell)
}
