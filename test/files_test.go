package test

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestResolvConfNamesTheGatewaysDNS(t *testing.T) {
	for name, c := range map[string]struct {
		link  string // what /etc/resolv.conf on the host points at; empty: a plain file
		flags []string
	}{
		"over a plain file":                        {"", nil},
		"over a relative link":                     {"../run/resolve/stub.conf", nil},
		"over an absolute link":                    {"/run/resolve/stub.conf", nil},
		"with a plain file copied up":              {"", []string{"--copy-up=/etc"}},
		"with a link copied up":                    {"../run/resolve/stub.conf", []string{"--copy-up=/etc"}},
		"with a link and its target copied up":     {"../run/resolve/stub.conf", []string{"--copy-up=/etc", "--copy-up=/run"}},
		"with a link to nowhere copied up":         {"../run/resolve/none.conf", []string{"--copy-up=/etc"}},
		"with a link in an overlay":                {"../run/resolve/stub.conf", []string{"--copy-up=/etc", "--copy-up-mode=overlay"}},
		"with a link and its target in an overlay": {"../run/resolve/stub.conf", []string{"--copy-up=/etc", "--copy-up=/run", "--copy-up-mode=overlay"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := testenv.NewHost(t)
			if err := os.Mkdir(h.Path("/run/resolve"), 0o755); err != nil {
				t.Fatal(err)
			}
			h.WriteFile(t, "/run/resolve/stub.conf", "nameserver 127.0.0.53\n", 0o644)
			if c.link != "" {
				if err := os.Remove(h.Path("/etc/resolv.conf")); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(c.link, h.Path("/etc/resolv.conf")); err != nil {
					t.Fatal(err)
				}
			}
			out := output(t, h, append([]string{"--net=slirp"}, append(c.flags, "sh", "-ec",
				`cat /etc/resolv.conf; cmp /etc/resolv.conf $GATEKIT_STATE_DIR/resolv.conf; test -L /etc/resolv.conf && echo "# link" || echo "# file"`)...)...)
			servers := nameservers(out)
			if len(servers) == 0 || servers[0] != "10.0.2.3" {
				t.Errorf("resolv.conf inside names %q, want 10.0.2.3 first:\n%s", servers, out)
			}
			for _, s := range servers {
				if strings.HasPrefix(s, "127.") || strings.HasPrefix(s, "192.") {
					t.Errorf("resolv.conf inside names the host's server %s", s)
				}
			}
			if copied := len(c.flags) > 0; copied && strings.Contains(out, "# link") {
				t.Errorf("the link was not replaced: %s", out)
			}
		})
	}
}

func nameservers(resolvConf string) []string {
	var out []string
	for line := range strings.Lines(resolvConf) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "nameserver" {
			out = append(out, fields[1])
		}
	}
	return out
}

// The child's log names flags of the program that was called, as errors do. The API,
// which programs of others call as well, names neither flags nor options.
func TestWhatMendsSomethingIsNamedAsAFlag(t *testing.T) {
	h := testenv.NewHost(t)
	if err := os.Remove(h.Path("/etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	if r := runGate(t, h, "--net=slirp", "true"); r.Code != 0 || len(lacks(r.Stderr, "level=WARN", "add --copy-up=/etc")) > 0 {
		t.Errorf("without /etc/resolv.conf: %v", r)
	}
}

func TestHostsIsTheHostsWithItsNameOnLoopback(t *testing.T) {
	h := testenv.NewHost(t)
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	// The name is one that the host resolves to something else.
	h.WriteFile(t, "/etc/hosts", "127.0.0.1 localhost\n198.51.100.80 www.example.test # kept\n", 0o644)
	for name, flags := range map[string][]string{
		"slirp":              {"--net=slirp"},
		"none":               {"--net=none"},
		"slirp with copy-up": {"--net=slirp", "--copy-up=/etc"},
	} {
		t.Run(name, func(t *testing.T) {
			out := output(t, h, append(flags, "sh", "-ec", "cat /etc/hosts; cmp /etc/hosts $GATEKIT_STATE_DIR/hosts")...)
			for _, want := range []string{"127.0.0.1 " + hostname, "::1 " + hostname, "198.51.100.80 www.example.test", "127.0.0.1 localhost"} {
				if !hasHostsEntry(out, want) {
					t.Errorf("hosts has no %q:\n%s", want, out)
				}
			}
		})
	}
	t.Run("the host's network keeps the host's files", func(t *testing.T) {
		out := output(t, h, "sh", "-c", "cat /etc/hosts /etc/resolv.conf")
		if want := h.ReadFile(t, "/etc/hosts") + h.ReadFile(t, "/etc/resolv.conf"); out != want {
			t.Errorf("hosts and resolv.conf are %q, want the host's %q", out, want)
		}
	})
}

// What the host puts in the place of its own hosts file does not show inside.
func TestHostsStaysWhenTheHostReplacesItsOwn(t *testing.T) {
	h := testenv.NewHost(t)
	h.WriteFile(t, "/etc/hosts", "127.0.0.1 localhost\n", 0o644)
	for name, flags := range map[string][]string{"slirp": {"--net=slirp"}, "none": {"--net=none"}} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, h, append(flags, "--add-host=db.example:198.51.100.7", "sleep", "infinity")...)
			for i := range 3 {
				h.WriteFile(t, "/etc/hosts.new", fmt.Sprintf("127.0.0.1 localhost other%d\n", i), 0o644)
				if err := os.Rename(h.Path("/etc/hosts.new"), h.Path("/etc/hosts")); err != nil {
					t.Fatal(err)
				}
				testenv.Until(t, "the gate's hosts file", func() bool {
					return hasHostsEntry(g.run(t, "cat", "/etc/hosts"), "198.51.100.7 db.example")
				})
			}
			g.stop(t)
		})
	}
}

// hasHostsEntry looks for "ADDRESS NAME" in the text of a hosts(5) file.
func hasHostsEntry(hosts, entry string) bool {
	addr, name, _ := strings.Cut(entry, " ")
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		for i, f := range fields {
			if i > 0 && fields[0] == addr && f == name {
				return true
			}
		}
	}
	return false
}

func TestTheStateDirHoldsTheFilesOfTheGate(t *testing.T) {
	h := testenv.NewHost(t)
	g := startGate(t, h, "--net=slirp", "--port-driver=builtin", "sleep", "infinity")
	for name, want := range map[string]os.FileMode{
		"":            os.ModeDir | 0o700,
		"lock":        0o600,
		"child_pid":   0o444,
		"api.sock":    os.ModeSocket | 0o600,
		"resolv.conf": 0o644,
		"hosts":       0o644,
	} {
		info, err := os.Lstat(h.Path(g.stateDir + "/" + name))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode() != want {
			t.Errorf("%s/%s has the mode %v, want %v", g.stateDir, name, info.Mode(), want)
		}
	}
	children := testenv.Children(g.PID())
	if len(children) != 1 || children[0] != g.childPID {
		t.Errorf("child_pid is %d, but the parent's children are %v", g.childPID, children)
	}
}

func TestTheDefaultStateDirIsUnderTheRuntimeDirectory(t *testing.T) {
	h := testenv.NewHost(t)
	for name, c := range map[string]struct{ runtimeDir, under string }{
		"XDG_RUNTIME_DIR":                            {h.User.RuntimeDir, h.User.RuntimeDir + "/gatekit/"},
		"the temp directory where none is set":       {"", "/tmp/"},
		"the temp directory where it does not exist": {"/run/user/nobody", "/tmp/"},
		"the temp directory where it is of another":  {"/run/user/0", "/tmp/"},
	} {
		t.Run(name, func(t *testing.T) {
			gatekit := func(args ...string) testenv.Result {
				cmd := h.Command("gatekit", args...)
				cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+c.runtimeDir)
				return h.Run(t, cmd)
			}
			gatekit("true") // makes what stays
			before := trace(t, h)
			r := gatekit("sh", "-c", "stat -c '%a %n' $GATEKIT_STATE_DIR")
			if !strings.HasPrefix(r.Stdout, "700 "+c.under) {
				t.Errorf("%v, want a directory under %s of mode 700", r, c.under)
			}
			h.NoTrace(t, before)
		})
	}
}

func TestChildPIDAppearsInOneStep(t *testing.T) {
	h := testenv.NewHost(t)
	dir := h.User.RuntimeDir + "/gate"
	if err := os.Mkdir(h.Path(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(h.Path(dir), int(h.User.UID), int(h.User.GID)); err != nil {
		t.Fatal(err)
	}
	w := watch(t, h.Path(dir))
	g := startGate(t, h, "sleep", "infinity")
	g.Signal(os.Interrupt)
	g.Wait(t)
	events := w.eventsOf(t, "child_pid")
	if len(events) == 0 || events[0] != "appears" {
		t.Errorf("child_pid comes by %q", events)
	}
	for _, e := range events {
		if e == "is written" {
			t.Errorf("child_pid is written while it can be read: %q", events)
		}
	}
}

var _ = testenv.Probe("dial", func(args []string) int {
	conn, err := net.Dial("unix", args[0])
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	conn.Close()
	return 0
})

func TestTheAPIListensBeforeTheCommandStarts(t *testing.T) {
	h := testenv.NewHost(t)
	for range 5 {
		output(t, h, "--net=slirp", "sh", "-c", "exec probe dial $GATEKIT_STATE_DIR/api.sock")
	}
	output(t, h, "--net=none", "sh", "-c", "exec probe dial $GATEKIT_STATE_DIR/api.sock")
}

func TestAStateDirInUseIsRefused(t *testing.T) {
	h := testenv.NewHost(t)
	g := startGate(t, h, "sleep", "infinity")
	before := trace(t, h)
	r := runGate(t, h, "--state-dir="+g.stateDir, "true")
	if missing := lacks(r.Stderr, strconv.Itoa(g.PID()), g.stateDir); r.Code != 1 || missing != nil || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("got %v\nwant exit code 1 and one line; it lacks %q", r, missing)
	}
	after := trace(t, h)
	if len(after.Files) != len(before.Files) {
		t.Errorf("the refused gate changed the state dir: %q", after.Files)
	}
	if !g.Running() {
		t.Error("the first gate ended")
	}
	if got := h.ReadFile(t, g.stateDir+"/child_pid"); got != strconv.Itoa(g.childPID) {
		t.Errorf("child_pid of the first gate is now %q", got)
	}
}

func TestAStateDirOfAKilledGateIsReused(t *testing.T) {
	h := testenv.NewHost(t)
	for _, flags := range [][]string{{"--net=host"}, {"--net=slirp"}, {"--net=slirp", "--detach-netns"}} {
		g := startGate(t, h, append(flags, "sleep", "infinity")...)
		g.Kill()
		g.Wait(t)
		h.NoProcesses(t)
		stale := g.childPID
		again := startGate(t, h, append(flags, "sleep", "infinity")...)
		if again.childPID == stale {
			t.Errorf("%v: child_pid is still that of the killed gate", flags)
		}
		again.Signal(os.Interrupt)
		again.Wait(t)
		left, err := filepath.Glob(h.Path(g.stateDir + "/child_pid"))
		if err != nil || left != nil {
			t.Errorf("%v: child_pid is left behind by a gate that ended", flags)
		}
	}
}

func TestTheEnvironmentIsTheCallersAndOurs(t *testing.T) {
	h := testenv.NewHost(t)
	caller := []string{"EMPTY=", "EQUALS=a=b", "LINES=one\ntwo", "LISTEN_NOTHING=1", "GATEKIT_OTHER=kept", "_=/bin/odd"}
	for name, flags := range map[string][]string{"plain": {}, "pid namespace": {"--pidns"}, "network": {"--net=slirp"}} {
		t.Run(name, func(t *testing.T) {
			env := func(args ...string) map[string]string {
				cmd := h.Command(args[0], args[1:]...)
				cmd.Env = append(cmd.Env, caller...)
				r := h.Run(t, cmd)
				if r.Code != 0 {
					t.Fatal(r)
				}
				return environment(r.Stdout)
			}
			dir := h.User.RuntimeDir + "/gate"
			want := env("env", "-0")
			maps.Copy(want, ourEnvironment(h, dir))
			got := env(append(append([]string{"gatekit", "--state-dir=" + dir}, flags...), "env", "-0")...)
			if !maps.Equal(got, want) {
				t.Errorf("the command's environment is %q\nwant %q", got, want)
			}
		})
	}
}

func TestTheChildsEnvironmentIsThereToRead(t *testing.T) {
	h := testenv.NewHost(t)
	for _, flags := range [][]string{{}, {"--pidns"}, {"--net=slirp", "--detach-netns"}} {
		g := startGate(t, h, append(flags, "sleep", "infinity")...)
		// As the user, with no other right than the user has.
		r := h.Run(t, h.Command("cat", "/proc/"+strconv.Itoa(g.childPID)+"/environ"))
		got := environment(r.Stdout)
		for name, want := range ourEnvironment(h, g.stateDir) {
			if got[name] != want {
				t.Errorf("%v: %s in /proc/<child_pid>/environ is %q, want %q (%s)", flags, name, got[name], want, r.Stderr)
			}
		}
		g.Signal(os.Interrupt)
		g.Wait(t)
	}
}

// environment reads what env -0 and /proc/PID/environ write.
func environment(text string) map[string]string {
	out := map[string]string{}
	for entry := range strings.SplitSeq(strings.TrimSuffix(text, "\x00"), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		out[name] = value
	}
	return out
}

// ourEnvironment is what the gate adds to the command's environment.
func ourEnvironment(h *testenv.Host, stateDir string) map[string]string {
	out := map[string]string{}
	for _, prefix := range []string{"GATEKIT_", "ROOTLESSKIT_"} {
		out[prefix+"STATE_DIR"] = stateDir
		out[prefix+"PARENT_EUID"] = strconv.Itoa(int(h.User.UID))
		out[prefix+"PARENT_EGID"] = strconv.Itoa(int(h.User.GID))
	}
	return out
}
