package test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
)

// asRootlesskit installs our programs under RootlessKit's names, and returns the
// Host's directory with them.
func asRootlesskit(t *testing.T, h *testenv.Host) string {
	t.Helper()
	makeTarget(t, "install-rootlesskit-names", h.Path("/srv"))
	return "/srv/usr/bin"
}

// makeTarget runs a target of the Makefile with the programs of the tests, and
// with more variables.
func makeTarget(t *testing.T, target, destdir string, more ...string) {
	t.Helper()
	args := []string{"-C", "..", target, "PREFIX=/usr", "DESTDIR=" + destdir, "BIN=" + testenv.Binaries(t)}
	cmd := exec.Command("make", append(args, more...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v\n%s", target, err, out)
	}
}

func TestInstallingAndRemovingTheNames(t *testing.T) {
	root := t.TempDir()
	bin := filepath.Join(root, "usr/bin")
	list := func() (names []string) {
		entries, err := os.ReadDir(bin)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	for range 2 { // over an older one, too
		makeTarget(t, "install-rootlesskit-names", root)
	}
	if got, want := list(), []string{"docker-rootlesskit", "gatectl", "gatekit", "rootlessctl", "rootlesskit"}; !slices.Equal(got, want) {
		t.Errorf("installed are %q, want %q", got, want)
	}
	makeTarget(t, "install-units", root)
	if got, want := len(files(t, root+"/usr/lib/systemd/user")), 3; got != want {
		t.Errorf("%d units are installed, want %d", got, want)
	}
	makeTarget(t, "uninstall", root)
	if got := files(t, root); len(got) > 0 {
		t.Errorf("uninstall leaves %q", got)
	}
	other := filepath.Join(bin, "rootlessctl")
	if err := os.WriteFile(other, []byte("somebody else's"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("make", "-C", "..", "install-rootlesskit-names", "PREFIX=/usr", "DESTDIR="+root, "BIN="+testenv.Binaries(t)).Run(); err == nil {
		t.Error("somebody else's rootlessctl is no error")
	}
	makeTarget(t, "uninstall", root)
	if text, err := os.ReadFile(other); string(text) != "somebody else's" {
		t.Errorf("somebody else's rootlessctl is now %q, %v", text, err)
	}
}

// The same program under another name has other defaults.
func TestTheNameChoosesTheDefaults(t *testing.T) {
	s := newSite(t)
	bin := asRootlesskit(t, s.Host)
	const loopback = "from the host's loopback"
	service := serveTCP(t, s.Host, "127.0.0.1:0", func(c *net.TCPConn) { _, _ = c.Write([]byte(loopback)) })
	reach := fmt.Sprintf("socat -u TCP:10.0.2.2:%d -", service.Port())
	type outcome struct {
		code        int
		has, hasNot string // of stdout and stderr together
	}
	for name, tc := range map[string]struct {
		args                 []string
		gatekit, rootlesskit outcome
	}{
		"exit code for a signal": {
			[]string{"sh", "-c", "echo out; kill -KILL $$"},
			outcome{137, "out", "gate"}, outcome{255, "out", "gate"},
		},
		"MTU": {
			[]string{"--net=slirp4netns", "cat", "/sys/class/net/tap0/mtu"},
			outcome{0, "1500\n", ""}, outcome{0, "65520\n", ""},
		},
		"IPv6": {
			[]string{"--net=slirp4netns", "sh", "-c", "ip -6 route show default; echo end"},
			outcome{0, "default via", ""}, outcome{0, "end\n", "default via"},
		},
		"commas": {
			[]string{"--copy-up=/etc,/opt", "sh", "-c", "echo > /opt/x && echo both"},
			outcome{2, "/etc,/opt", "both\n"}, outcome{0, "both\n", ""},
		},
		"port driver": {
			[]string{"--net=slirp4netns", "-p", "0:80/tcp", "echo", "published"},
			outcome{0, "published\n", ""}, outcome{2, "--publish needs a port driver", "published\n"},
		},
		"the host's loopback": {
			[]string{"--net=slirp4netns", "sh", "-c", reach + "; echo end"},
			outcome{0, "end\n", loopback}, outcome{0, loopback, ""},
		},
		"the host's loopback, shut": {
			[]string{"--net=slirp4netns", "--disable-host-loopback", "sh", "-c", reach + "; echo end"},
			outcome{0, "end\n", loopback}, outcome{0, "end\n", loopback},
		},
		"its name in messages": {
			[]string{"--net=what", "true"},
			outcome{2, "gatekit: --net=what", ""}, outcome{2, "rootlesskit: --net=what", "gatekit"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for program, want := range map[string]outcome{"gatekit": tc.gatekit, bin + "/rootlesskit": tc.rootlesskit} {
				r := s.Run(t, s.Command(program, tc.args...))
				out := r.Stdout + r.Stderr
				if r.Code != want.code || !strings.Contains(out, want.has) || want.hasNot != "" && strings.Contains(out, want.hasNot) {
					t.Errorf("%s: %v\nwant exit code %d, %q, and not %q", program, r, want.code, want.has, want.hasNot)
				}
			}
		})
	}
}

// Flags that choose a helper are accepted by either name; one line says what
// they mean.
func TestFlagsForHelpersMeanWhatIsBuiltIn(t *testing.T) {
	s := newSite(t)
	bin := asRootlesskit(t, s.Host)
	for _, program := range []string{"gatekit", bin + "/docker-rootlesskit"} {
		for _, flags := range []string{
			"--net=slirp4netns --slirp4netns-binary=nowhere --slirp4netns-sandbox=auto --slirp4netns-seccomp=auto --port-driver=slirp4netns",
			"--net=pasta --pasta-binary=nowhere --port-driver=implicit",
			"--net=pasta --pesto-binary=nowhere --port-driver=pesto",
			"--net=vpnkit --vpnkit-binary=nowhere --port-driver=builtin",
			"--net=gvisor-tap-vsock --port-driver=gvisor-tap-vsock",
			"--net=gvisor-tap-vsock --port-driver=gvisortapvsock",
		} {
			args := append(append([]string{"--debug"}, strings.Fields(flags)...), "-p", "127.0.0.1:0:80/tcp", "gatectl", "info")
			r := s.Run(t, s.Command(program, args...))
			if missing := lacks(r.Stdout, "slirp", "builtin"); r.Code != 0 || missing != nil {
				t.Errorf("%s %s: %v\nlacks %q", program, flags, r, missing)
			}
			if n := strings.Count(r.Stderr, "no helper is run"); n != 1 {
				t.Errorf("%s %s says %d times that it runs no helper: %s", program, flags, n, r.Stderr)
			}
		}
	}
}

// RootlessKit's name of --source-ip.
func TestSourceIPByItsOtherName(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "--source-ip-transparent=false", "-p", "8080:80/tcp", "sleep", "infinity")
	g.witness(t, "tcp,127.0.0.1,80")
	expectLoopback(t, "tcp", s.outside, at(s.outside.HostAddr4, 8080))
	r := runGate(t, s.Host, "--net=slirp", "--source-ip-transparent=false", "--source-ip=preserve", "true")
	if r.Code != 2 || len(lacks(r.Stderr, "--source-ip-transparent", "contradict")) > 0 {
		t.Errorf("two opinions: %v", r)
	}
}

// Under its name, our control program prints what the package's rootlessctl
// prints of the same gate.
func TestPrintsWhatRootlessctlPrints(t *testing.T) {
	s := newSite(t)
	bin := asRootlesskit(t, s.Host)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/tcp", "-p", "[::1]:5353:127.0.0.1:53/udp", "sleep", "infinity")
	socket := "--socket=" + g.stateDir + "/api.sock"
	for _, args := range [][]string{{"list-ports"}, {"info"}, {"--debug", "list-ports"}} {
		var prints [2]string
		for i, program := range []string{"/usr/bin/rootlessctl", bin + "/rootlessctl"} {
			prints[i] = g.succeed(t, s.Command(program, append([]string{socket}, args...)...))
		}
		if prints[0] != prints[1] || prints[0] == "" {
			t.Errorf("%s: rootlessctl prints\n%sand ours\n%s", strings.Join(args, " "), prints[0], prints[1])
		}
	}
	var lines [2]string // the order of properties says nothing
	for i, program := range []string{"/usr/bin/rootlessctl", bin + "/rootlessctl"} {
		for line := range strings.Lines(g.succeed(t, s.Command(program, socket, "list-ports", "--json"))) {
			var status api.PortStatus
			if err := json.Unmarshal([]byte(line), &status); err != nil {
				t.Fatalf("%s: %q: %v", program, line, err)
			}
			lines[i] += fmt.Sprintf("%+v\n", status)
		}
	}
	if lines[0] != lines[1] || lines[0] == "" {
		t.Errorf("list-ports --json: rootlessctl prints\n%sand ours\n%s", lines[0], lines[1])
	}
	added := g.succeed(t, s.Command(bin+"/rootlessctl", socket, "add-ports", "--json", "127.0.0.1:8081:81/tcp"))
	if want := `{"id":3,"spec":{"proto":"tcp","parentIP":"127.0.0.1","parentPort":8081,"childPort":81}}` + "\n"; added != want {
		t.Errorf("add-ports --json prints %q, want %q", added, want)
	}
	if text := g.succeed(t, s.Command(bin+"/rootlessctl", socket, "info", "--json")); !strings.HasPrefix(text, "{\n    \"apiVersion\"") {
		t.Errorf("info --json prints %q", text)
	}
	if removed := g.succeed(t, s.Command(bin+"/rootlessctl", socket, "remove-ports", "3")); removed != "3\n" {
		t.Errorf("remove-ports prints %q", removed)
	}
}
