package test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// The image docker:dind-rootless has no dockerd-rootless.sh: its entry point starts
// dockerd on rootlesskit itself, and publishes dockerd's API.
func TestDockerdByTheEntryPointOfDindRootless(t *testing.T) {
	withDocker(t, func(t *testing.T, d *docker) {
		d.Process = d.Start(t, d.command("sh", "-ec", "exec rootlesskit"+
			" --net=${DOCKERD_ROOTLESS_ROOTLESSKIT_NET:-slirp4netns} --mtu=${DOCKERD_ROOTLESS_ROOTLESSKIT_MTU:-1500}"+
			" --disable-host-loopback --port-driver=builtin --copy-up=/etc --copy-up=/run -p 0.0.0.0:2376:2376/tcp"+
			" dockerd --host=unix://$XDG_RUNTIME_DIR/docker.sock --host=tcp://0.0.0.0:2376 --tls=false"))
		awaitLine(t, d.Process, "(API listen on)")
		d.importImage(t)
		d.witness(t, "web", published...)
		defer d.remove(t, "web")
		expectOwn(t, "tcp", d.outside, at(d.outside.HostAddr4, 8080))
		// The Docker of another machine, over the network.
		docker := filepath.Join(testenv.Binaries(t), "docker", d.release.name, "usr/bin/docker")
		far := d.outside.Command(docker, "-H", "tcp://"+at(d.outside.HostAddr4, 2376), "ps", "--format={{.Names}}")
		if r := d.outside.Run(t, far); r.Code != 0 || strings.TrimSpace(r.Stdout) != "web" {
			t.Errorf("from outside, docker ps: %v", r)
		}
	})
}
