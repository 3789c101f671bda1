package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// What containers reach, by names that only the host's resolver knows.

// greet serves a page on the machine outside to all clients, and returns its
// address, by name.
func (s site) greet(t *testing.T) string {
	t.Helper()
	s.names(t, "--local=/test/", "--host-record=web.example.test,"+s.outside.Addr4.String())
	s.resolvConf(t, "nameserver "+s.outside.Addr4.String())
	server := serveTCP(t, s.outside, "0.0.0.0:0", func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 4096))
		fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
	})
	return fmt.Sprintf("http://web.example.test:%d/", server.Port())
}

func (d *docker) reachesOut(t *testing.T, page string) {
	if got := d.docker(t, "run", "--rm", "base", "wget", "-q", "-O-", page); got != "hello" {
		t.Errorf("wget %s prints %q", page, got)
	}
}

// builds builds an image with Docker's own builder, and with BuildKit, which brings
// networks of its own.
func (d *docker) builds(t *testing.T, page string) {
	if err := os.Mkdir(d.Path("/srv/context"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Root's, as 20.10 has BuildKit keep the owner, and the user's id is beyond those
	// of the gate here.
	d.WriteFile(t, "/srv/context/Dockerfile", "FROM base\nRUN wget -O /page "+page+"\n", 0o644)
	if !d.release.old { // which has no need of the plugin
		const plugin = "docker/cli-plugins/docker-buildx"
		succeeds(t, d.Run(t, d.Command("mkdir", "-p", filepath.Dir("."+plugin))))
		succeeds(t, d.Run(t, d.Command("ln", "-s", d.root+"/usr/libexec/"+plugin, "."+plugin)))
	}
	for name, variable := range map[string]string{"docker": "DOCKER_BUILDKIT=0", "buildkit": "DOCKER_BUILDKIT=1"} {
		if r := d.Run(t, d.command("env", variable, "docker", "build", "--no-cache", "-t", name, "/srv/context")); r.Code != 0 {
			t.Errorf("docker build with %s: %v", variable, r)
			continue
		}
		if got := d.docker(t, "run", "--rm", name, "cat", "/page"); got != "hello" {
			t.Errorf("what the build with %s fetched is %q", variable, got)
		}
	}
}

// Containers on a network of the user's know each other's names, and the host's.
func (d *docker) joinsContainers(t *testing.T, page string) {
	d.docker(t, "network", "create", "ours")
	defer d.docker(t, "network", "rm", "ours")
	d.witness(t, "one", "--network=ours")
	defer d.remove(t, "one")
	if got := d.docker(t, "run", "--rm", "--network=ours", "base", "sh", "-c", "probe connect one:80; wget -q -O- "+page); got != "one:80 ok\nhello" {
		t.Errorf("from one container to the other, and out: %q", got)
	}
}
