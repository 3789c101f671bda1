package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/image"
	"github.com/gatekit/gatekit/internal/testenv"
)

// docker is rootless Docker on a Host: dockerd as dockerd-rootless.sh starts it,
// on our rootlesskit.
type docker struct {
	site
	*testenv.Process        // rootlesskit, which the script becomes; nil under a service manager
	root             string // the Host's directory with the release
	release          dockerRelease

	// environ is what commands have in their environment besides the user's.
	environ []string
}

// dockerRelease is a Docker that scripts/docker-releases has made.
type dockerRelease struct {
	name string // of its folder

	// old is Docker 20.10, which publishes ports by docker-proxy alone, and calls
	// IPv6 an experiment.
	old bool

	// detached is Docker 29, which has its network in the gate's state dir.
	detached bool
}

var dockerReleases = []dockerRelease{{name: "bookworm", old: true}, {name: "sid"}, {name: "moby", detached: true}}

// withDocker runs a test with each release, on a Host where our rootlesskit is
// found first, and no helper of RootlessKit anywhere.
func withDocker(t *testing.T, test func(t *testing.T, d *docker)) {
	t.Helper()
	releases := carry(t, "docker", "scripts/docker-releases bin/docker")
	for _, release := range dockerReleases {
		t.Run("of "+release.name, func(t *testing.T) {
			if _, err := os.Stat("../bin/docker/" + release.name); err != nil {
				testenv.Skip(t, fmt.Sprintf("scripts/docker-releases bin/docker has not made this Docker: %v", err))
			}
			root := releases + "/" + release.name
			d := &docker{site: newSite(t), root: root, release: release}
			path := []string{asRootlesskit(t, d.Host), root + "/usr/bin", root + "/usr/sbin", root + "/usr/share/docker.io/contrib", hostPath}
			d.environ = []string{
				"PATH=" + strings.Join(path, ":"),
				"LD_LIBRARY_PATH=" + root + "/usr/lib",
				"DOCKER_HOST=unix://" + d.User.RuntimeDir + "/docker.sock",
				"DOCKER_BUILDKIT=0",
			}
			if release.old { // its script looks for slirp4netns, else gives up
				d.environ = append(d.environ, "DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns")
			}
			if release.detached { // it asks for time namespaces, which Debian 12's runc does not know
				d.configure(t, `{"features": {"time-namespaces": false}}`)
			}
			for _, helper := range []string{"slirp4netns", "pasta", "vpnkit"} {
				if path, err := exec.LookPath(helper); err == nil {
					d.Hide(t, path)
				}
			}
			test(t, d)
		})
	}
}

// hostPath is PATH without Docker.
const hostPath = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

// configure writes dockerd's configuration.
func (d *docker) configure(t *testing.T, config string) {
	t.Helper()
	cmd := d.Command("sh", "-ec", "mkdir -p .config/docker; cat >.config/docker/daemon.json")
	cmd.Stdin = strings.NewReader(config)
	succeeds(t, d.Run(t, cmd))
}

// command is a command of the user with Docker in its PATH.
func (d *docker) command(name string, args ...string) *exec.Cmd {
	return d.Command("env", slices.Concat(d.environ, []string{name}, args)...)
}

// start starts dockerd and waits until it answers.
func (d *docker) start(t *testing.T, kitFlags string, flags ...string) {
	t.Helper()
	cmd := d.command("dockerd-rootless.sh", flags...)
	cmd.Env = append(cmd.Env, "DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS="+kitFlags)
	d.Process = d.Start(t, cmd)
	awaitLine(t, d.Process, "(API listen on)")
}

// docker runs the client, expects it to succeed, and returns what it prints.
func (d *docker) docker(t *testing.T, args ...string) string {
	t.Helper()
	r := d.Run(t, d.client(args...))
	if r.Code != 0 {
		t.Fatalf("docker %s: %v\ndockerd: %s", strings.Join(args, " "), r, d.said())
	}
	return strings.TrimSpace(r.Stdout)
}

// said is what dockerd has written.
func (d *docker) said() string {
	if d.Process == nil {
		return ""
	}
	return d.Stderr()
}

func (d *docker) client(args ...string) *exec.Cmd { return d.command("docker", args...) }

// importImage makes the image "base" of busybox and the tests' own program.
func (d *docker) importImage(t *testing.T) {
	t.Helper()
	cmd := d.client("import", "-", "base")
	cmd.Stdin = bytes.NewReader(imageRoot(t))
	if r := d.Run(t, cmd); r.Code != 0 {
		t.Fatalf("docker import: %v\ndockerd: %s", r, d.said())
	}
}

// imageRoot is an archive of a root directory: /bin/busybox under the names of
// its programs, and /bin/probe.
func imageRoot(t *testing.T) []byte {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	root := image.Root{
		Programs: map[string]string{"bin/busybox": busybox, "bin/probe": filepath.Join(testenv.Binaries(t), "probe")},
		Links:    map[string]string{},
	}
	for _, name := range []string{"sh", "cat", "echo", "httpd", "ip", "nslookup", "ping", "sleep", "wget"} {
		root.Links["bin/"+name] = "busybox"
	}
	var archive bytes.Buffer
	if err := root.Write(&archive); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// What a user does with Docker, on one dockerd with all of its defaults.
func TestDockerRunsOnOurRootlesskit(t *testing.T) {
	withDocker(t, func(t *testing.T, d *docker) {
		page := d.greet(t)
		d.start(t, "")
		if apart := network(t, d.dockerd(t)) == network(t, d.PID()); apart != d.release.detached {
			t.Errorf("dockerd is in the host's network: %v", apart)
		}
		for range 20 {
			d.docker(t, "version")
		}
		d.importImage(t)
		t.Run("a container sees its clients", d.seesItsClients)
		t.Run("much data", d.carriesAll)
		t.Run("conflicts", d.tellsOfConflicts)
		t.Run("names and pages", func(t *testing.T) { d.reachesOut(t, page) })
		t.Run("build", func(t *testing.T) { d.builds(t, page) })
		t.Run("a network of two", func(t *testing.T) { d.joinsContainers(t, page) })
		if !testenv.Eventually(idlePatience, func() bool { return d.connections(t) < 2 }) {
			t.Errorf("%d connections to the API stay", d.connections(t))
		}
	})
}

// network names the network namespace of a process.
func network(t *testing.T, pid int) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// idlePatience is how long a connection of the API may live without a request,
// and more.
const idlePatience = 20 * time.Second
