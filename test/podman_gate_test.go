package test

import (
	"bytes"
	"net"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Podman in a gate, where it is root. Its runtime, crun, takes either version of
// cgroups and no machine with both, so the Host has the second alone.
func TestPodmanRunsInAGate(t *testing.T) {
	s := newSite(t)
	s.Do(t, func() error { return unix.Mount("none", "/sys/fs/cgroup", "cgroup2", 0, "") })
	s.WriteFile(t, "/srv/containers.conf", "[engine]\nlock_type = \"file\"\n", 0o644)
	server := serveTCP(t, s.outside, "0.0.0.0:0", func(c *net.TCPConn) { _, _ = c.Write([]byte("hello\n")) })
	g := startGate(t, s.Host, "--net=slirp", "--copy-up=/etc", "--copy-up=/run", "--copy-up=/var/lib",
		"-p", "0.0.0.0:8080:80/tcp", "sleep", "600")
	podman := func(args ...string) *exec.Cmd {
		flags := []string{"podman", "--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=crun"}
		cmd := g.in(slices.Concat(flags, args)...)
		cmd.Env = append(cmd.Env, "CONTAINERS_CONF=/srv/containers.conf")
		return cmd
	}
	// As root, Podman takes it for granted that it may raise limits.
	run := func(command ...string) *exec.Cmd {
		return podman(slices.Concat([]string{"run", "--rm", "--net=host", "--cgroups=disabled",
			"--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "localhost/base"}, command)...)
	}
	load := podman("load")
	load.Stdin = bytes.NewReader(imageArchive(t))
	g.succeed(t, load)
	// Out by the gate's network,
	target := at(s.outside.Addr4, int(server.Port()))
	if got, want := g.succeed(t, run("sh", "-c", "ip link show tap0 >/dev/null && echo tap0; probe connect "+target)), "tap0\n"+target+" ok\n"; got != want {
		t.Errorf("a container prints %q, want %q", got, want)
	}
	// and in by a forward, with the client's address.
	web := s.Start(t, run("probe", "witness", "tcp,0.0.0.0,80"))
	awaitLine(t, web, "(serving)")
	expectOwn(t, "tcp", s.outside, at(s.outside.HostAddr4, 8080))
	g.succeed(t, podman("stop", "-t", "0", "--latest"))
	web.Wait(t)
	g.stop(t)
}
