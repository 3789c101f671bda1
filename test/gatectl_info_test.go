package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
)

func TestInfoDescribesTheGate(t *testing.T) {
	s := newSite(t)
	for name, c := range map[string]struct {
		flags           []string
		network, ports  string
		childIP, server string
		protos          []string
	}{
		"slirp": {
			[]string{"--net=slirp"}, "slirp", "builtin", "10.0.2.100", "10.0.2.3",
			[]string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6"},
		},
		"none": {[]string{"--net=none"}, "none", "none", "", "", []string{}},
		"host": {nil, "host", "none", "", "", []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, s.Host, append(c.flags, "--name=mine", "sleep", "infinity")...)
			text := g.ctlOutput(t, "info", "--json")
			var info api.Info
			if err := json.Unmarshal([]byte(text), &info); err != nil {
				t.Fatal(err)
			}
			if info.Name != "mine" || info.PID != g.PID() || info.ChildPID != g.childPID || info.StateDir != g.stateDir || info.APIVersion != api.Version || info.Version == "" {
				t.Errorf("info --json prints %s", text)
			}
			n, p := info.NetworkDriver, info.PortDriver
			childIP, server := "", ""
			if n.ChildIP != nil {
				childIP = n.ChildIP.String()
			}
			if len(n.DNS) > 0 {
				server = n.DNS[0].String()
			}
			if n.Driver != c.network || childIP != c.childIP || server != c.server || p.Driver != c.ports || !slices.Equal(p.Protos, c.protos) || p.DisallowLoopbackChildIP {
				t.Errorf("info --json prints %s", text)
			}
			// What is not there is not null: clients index it.
			if strings.Contains(text, "null") {
				t.Errorf("there is a null in %s", text)
			}
			want := []string{"apiVersion", "childPID", "name", "networkDriver", "pid", "portDriver", "stateDir", "version"}
			if got := keys(t, text); !slices.Equal(got, want) {
				t.Errorf("info --json has %q, want %q", got, want)
			}
			people := g.ctlOutput(t, "info")
			if missing := lacks(people, "mine", strconv.Itoa(g.PID()), strconv.Itoa(g.childPID), g.stateDir, c.network, c.ports, c.childIP, c.server); missing != nil {
				t.Errorf("info prints\n%slacks %q", people, missing)
			}
			g.stop(t)
		})
	}
}

// startNamed starts a gate with a state dir that it makes itself, and returns
// that, too.
func startNamed(t *testing.T, h *testenv.Host, name string, flags ...string) (*testenv.Process, string) {
	t.Helper()
	args := append([]string{"--name=" + name}, flags...)
	p := h.Start(t, h.Command("gatekit", append(args, "sh", "-c", "echo in $GATEKIT_STATE_DIR.; exec sleep infinity")...))
	return p, awaitLine(t, p, `in (.*)\.\n`)
}

// outsideGates runs gatectl without a word on which gate, in an environment
// with further variables.
func outsideGates(t *testing.T, h *testenv.Host, env []string, args ...string) testenv.Result {
	t.Helper()
	cmd := h.Command("gatectl", args...)
	cmd.Env = append(cmd.Env, env...)
	return h.Run(t, cmd)
}

func TestGatectlFindsTheGate(t *testing.T) {
	h := testenv.NewHost(t)
	if r := outsideGates(t, h, nil, "info"); r.Code != 1 || len(lacks(r.Stderr, "no gate")) > 0 {
		t.Errorf("without a gate: %v", r)
	}
	if r := outsideGates(t, h, nil, "list", "--json"); r.Code != 0 || r.Stdout != "[]\n" {
		t.Errorf("without a gate: %v", r)
	}
	first, firstDir := startNamed(t, h, "first", "--net=none")
	if r := outsideGates(t, h, nil, "info", "--json"); r.Code != 0 || !strings.Contains(r.Stdout, firstDir) {
		t.Errorf("the one gate is not found: %v", r)
	}
	second := startGate(t, h, "--name=second", "sleep", "infinity") // with a state dir elsewhere

	for name, c := range map[string]struct {
		env, flags []string
		stateDir   string
	}{
		"by --gate":                   {nil, []string{"--gate", "second"}, second.stateDir},
		"by --gate, the other":        {nil, []string{"--gate=first"}, firstDir},
		"by --socket":                 {nil, []string{"--socket", second.socket()}, second.stateDir},
		"by $GATEKIT_STATE_DIR":       {[]string{"GATEKIT_STATE_DIR=" + firstDir}, nil, firstDir},
		"by $ROOTLESSKIT_STATE_DIR":   {[]string{"ROOTLESSKIT_STATE_DIR=" + firstDir}, nil, firstDir},
		"by the first of both":        {[]string{"ROOTLESSKIT_STATE_DIR=" + firstDir, "GATEKIT_STATE_DIR=" + second.stateDir}, nil, second.stateDir},
		"by --gate, before all these": {[]string{"GATEKIT_STATE_DIR=" + firstDir}, []string{"--gate=second"}, second.stateDir},
		"by --socket, before them":    {[]string{"GATEKIT_STATE_DIR=" + firstDir}, []string{"--socket=" + second.socket()}, second.stateDir},
	} {
		t.Run(name, func(t *testing.T) {
			r := outsideGates(t, h, c.env, append(c.flags, "info", "--json")...)
			var info api.Info
			if err := json.Unmarshal([]byte(r.Stdout), &info); err != nil || info.StateDir != c.stateDir {
				t.Errorf("%v\nwant the gate in %s", r, c.stateDir)
			}
		})
	}
	for name, c := range map[string]struct {
		flags []string
		code  int
		line  []string
	}{
		"several":                {nil, 1, []string{"first", firstDir, "second", second.stateDir, "--gate"}},
		"none of that name":      {[]string{"--gate=third"}, 1, []string{"third", "first", "second"}},
		"no socket there":        {[]string{"--socket=/tmp/none.sock"}, 1, []string{"/tmp/none.sock", "no such file"}},
		"two ways at once":       {[]string{"--socket=/tmp/none.sock", "--gate=first"}, 2, []string{"--socket", "--gate"}},
		"a flag that is unknown": {[]string{"--unknown"}, 2, []string{"unknown"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := outsideGates(t, h, nil, append(c.flags, "info")...)
			if missing := lacks(r.Stderr, c.line...); r.Code != c.code || missing != nil || strings.Count(r.Stderr, "\n") != 1 {
				t.Errorf("%v\nwant exit code %d and one line; it lacks %q", r, c.code, missing)
			}
		})
	}
	checkList(t, h, first.PID(), firstDir, second)
	first.Kill() // leaves its directory behind
	first.Wait(t)
	if r := outsideGates(t, h, nil, "info", "--json"); !strings.Contains(r.Stdout, second.stateDir) {
		t.Errorf("the one gate that is left is not found: %v", r)
	}
}

// checkList expects two gates in gatectl list.
func checkList(t *testing.T, h *testenv.Host, pid int, dir string, second *gate) {
	t.Helper()
	r := outsideGates(t, h, nil, "list")
	got := table(r.Stdout)
	for _, want := range [][]string{
		{"NAME", "PID", "NETWORK", "STATE-DIR"},
		{"first", strconv.Itoa(pid), "none", dir},
		{"second", strconv.Itoa(second.PID()), "host", second.stateDir},
	} {
		if !slices.ContainsFunc(got, func(row []string) bool { return slices.Equal(row, want) }) {
			t.Errorf("gatectl list prints\n%swithout %q", r.Stdout, want)
		}
	}
	r = outsideGates(t, h, nil, "list", "--json")
	if want := fmt.Sprintf(`{"name":"first","pid":%d,"network":"none","stateDir":%q}`, pid, dir); !strings.Contains(r.Stdout, want) {
		t.Errorf("gatectl list --json prints %s\nwithout %s", r.Stdout, want)
	}
}

// A program inside needs no flag: its environment names the gate.
func TestGatectlWorksInside(t *testing.T) {
	h := testenv.NewHost(t)
	_, otherDir := startNamed(t, h, "other")
	for name, flags := range map[string][]string{
		"plain":            {"--net=slirp"},
		"copied up":        {"--net=slirp", "--copy-up=/etc", "--copy-up=/run"},
		"pid namespace":    {"--net=slirp", "--pidns"},
		"detached network": {"--net=slirp", "--detach-netns"},
	} {
		t.Run(name, func(t *testing.T) {
			out := output(t, h, append(flags, "sh", "-ec",
				"gatectl add-ports 127.0.0.1:0:80/tcp; gatectl list-ports; gatectl remove-ports 1; gatectl info --json; gatectl list --json")...)
			rows := table(out)
			if len(rows) != 6 || rows[0][0] != "1" || rows[2][1] != "tcp" || rows[3][0] != "1" {
				t.Fatalf("gatectl inside prints\n%s", out)
			}
			if dir := rows[4][0]; strings.Contains(dir, otherDir) || !strings.Contains(dir, "slirp") {
				t.Errorf("info inside prints %s", dir)
			}
		})
	}
}

func TestAGateObeysItsOwnerAlone(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	const stranger = 65534
	as := func(cmd *exec.Cmd, uid uint32) *exec.Cmd {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
		cmd.Dir = "/"
		return cmd
	}
	mode := func() os.FileMode {
		info, err := os.Stat(s.Path(g.socket()))
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	if got := mode(); got != 0o600 {
		t.Errorf("api.sock has mode %o, want 600", got)
	}
	r := s.Run(t, as(s.Command("gatectl", "--socket", g.socket(), "info"), stranger))
	if r.Code != 1 || r.Stdout != "" || len(lacks(r.Stderr, "permission denied")) > 0 {
		t.Errorf("another user: %v", r)
	}

	// The gate looks at who calls, and not at the file's mode alone.
	for _, path := range []string{s.User.RuntimeDir, g.stateDir, g.socket()} {
		if err := os.Chmod(s.Path(path), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	r = s.Run(t, as(s.Command("gatectl", "--socket", g.socket(), "info"), stranger))
	if r.Code != 1 || r.Stdout != "" || len(lacks(r.Stderr, "another user")) > 0 {
		t.Errorf("another user: %v", r)
	}
	for name, c := range map[string]struct {
		cmd    *exec.Cmd
		status string
	}{
		"another user":                    {as(g.curlCommand(s.Command, "GET", "/v1/info", ""), stranger), "403"},
		"another user, who changes ports": {as(g.curlCommand(s.Command, "DELETE", "/v1/ports/1", ""), stranger), "403"},
		"another user inside":             {g.curlCommand(g.inAs("1"), "GET", "/v1/info", ""), "403"},
		"root inside":                     {g.curlCommand(g.inAs("0"), "GET", "/v1/info", ""), "200"},
		"the owner":                       {g.curlCommand(s.Command, "GET", "/v1/info", ""), "200"},
		"real root":                       {g.curlCommand(s.RootCommand, "GET", "/v1/info", ""), "200"},
	} {
		t.Run(name, func(t *testing.T) {
			if r := s.Run(t, c.cmd); !strings.HasSuffix(r.Stdout, " "+c.status) {
				t.Errorf("%v, want status %s", r, c.status)
			}
		})
	}
}

// inAs makes commands in the gate, as one of its users.
func (g *gate) inAs(uid string) func(string, ...string) *exec.Cmd {
	return func(name string, args ...string) *exec.Cmd {
		return g.in(append([]string{"setpriv", "--reuid=" + uid, "--regid=" + uid, "--clear-groups", name}, args...)...)
	}
}
