package test

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// Rootless Podman beside a gate: neither is in the other's way, and either reaches
// what the other one publishes.

// podman is Podman on a Host, without systemd.
type podman struct {
	host *testenv.Host
}

// newPodman has Podman keep its locks in files: its memory for them in /dev/shm is
// the machine's, and would stay.
func newPodman(t *testing.T, h *testenv.Host) podman {
	t.Helper()
	h.WriteFile(t, "/srv/containers.conf", "[engine]\nlock_type = \"file\"\n", 0o644)
	return podman{host: h}
}

// command is a command of Podman.
func (p podman) command(args ...string) *exec.Cmd {
	// A user's crun refuses a machine that has cgroups of both versions.
	flags := []string{"--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc"}
	cmd := p.host.Command("podman", slices.Concat(flags, args)...)
	cmd.Env = append(cmd.Env, "CONTAINERS_CONF=/srv/containers.conf")
	return cmd
}

// run is a container on the network that Podman finds.
func (p podman) run(command ...string) *exec.Cmd {
	flags := []string{"run", "--rm", "--net=host", "localhost/base"}
	return p.command(slices.Concat(flags, command)...)
}

// succeed runs a command, expects it to succeed, and returns what it prints.
func (p podman) succeed(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	r := p.host.Run(t, cmd)
	if r.Code != 0 {
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), r)
	}
	return r.Stdout
}

// load gives Podman the image.
func (p podman) load(t *testing.T) {
	t.Helper()
	cmd := p.command("load")
	cmd.Stdin = bytes.NewReader(imageArchive(t))
	p.succeed(t, cmd)
}

func TestRootlessPodmanRunsBesideAGate(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "--host-loopback=all", "-p", "0.0.0.0:8080:80/tcp", "sleep", "600")
	g.witness(t, "tcp,0.0.0.0,80")
	p := newPodman(t, s.Host)
	// The process that keeps rootless Podman's namespaces ends with this.
	defer func() { p.succeed(t, p.command("system", "migrate")) }()
	p.load(t)
	// A container reaches the gate by its forward,
	if got, want := p.succeed(t, p.run("probe", "connect", "127.0.0.1:8080")), "127.0.0.1:8080 ok\n"; got != want {
		t.Errorf("a container beside the gate prints %q, want %q", got, want)
	}
	// and the gate a container.
	web := s.Start(t, p.run("probe", "witness", "tcp,127.0.0.1,8081"))
	awaitLine(t, web, "(serving)")
	if got, want := g.run(t, "probe", "connect", "10.0.2.2:8081"), "10.0.2.2:8081 ok\n"; got != want {
		t.Errorf("in the gate a container beside it gives %q, want %q", got, want)
	}
	p.succeed(t, p.command("stop", "-t", "0", "--latest"))
	web.Wait(t)
	g.stop(t)
}
