package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatekit/gatekit/internal/statedir"
	"github.com/gatekit/gatekit/pkg/api"
)

func TestWrongUsageIsOneLineAndExitCode2(t *testing.T) {
	home(t)
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no command":                 {nil, "a command is missing"},
		"an unknown command":         {[]string{"lst"}, "no such command: lst"},
		"an unknown flag":            {[]string{"--colour", "list"}, "-colour"},
		"an unknown command's flag":  {[]string{"list", "--colour"}, "gatectl list --help"},
		"a flag without its value":   {[]string{"--gate"}, "gate"},
		"two ways to name a gate":    {[]string{"--gate", "a", "--socket", "b", "info"}, "exclude each other"},
		"list with an argument":      {[]string{"list", "x"}, `"x"`},
		"info with an argument":      {[]string{"info", "x"}, `"x"`},
		"connections of something":   {[]string{"connections", "x"}, `"x"`},
		"add-ports without a spec":   {[]string{"add-ports"}, "a port spec is missing"},
		"add-ports with a bad spec":  {[]string{"add-ports", "80:80/tcp", "80"}, `"80"`},
		"add-ports auto and a spec":  {[]string{"add-ports", "auto", "80:80/tcp"}, "auto stands alone"},
		"remove-ports without ids":   {[]string{"remove-ports"}, "an id is missing"},
		"remove-ports with a name":   {[]string{"remove-ports", "1", "web"}, `"web"`},
		"add-ports, then a flag":     {[]string{"add-ports", "80:80/tcp", "--reverse"}, `options stand before a port spec: "--reverse"`},
		"remove-ports, then a flag":  {[]string{"remove-ports", "1", "--drain=0s"}, `options stand before an id: "--drain=0s"`},
		"remove-ports into the past": {[]string{"remove-ports", "--drain=-1s", "1"}, "--drain=-1s"},
		"policy without a command":   {[]string{"policy"}, "show, set, allow or deny"},
		"policy without such":        {[]string{"policy", "mend"}, "no such command: mend"},
		"policy show of something":   {[]string{"policy", "show", "x"}, `"x"`},
		"policy set of nothing":      {[]string{"policy", "set"}, "--default is missing"},
		"policy allow of nothing":    {[]string{"policy", "allow"}, "a rule is missing"},
		"exec without a command":     {[]string{"exec"}, "a command is missing"},
		"exec with a flag":           {[]string{"exec", "-it", "sh"}, "gatectl exec --help"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := gatectl(tc.args...)
			if code != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "gatectl: ") || strings.Contains(stderr, errUsage.Error()) || !strings.Contains(stderr, tc.want) {
				t.Errorf("code %d\nstdout %q\nstderr %q\nwant code 2 and one line with %q", code, stdout, stderr, tc.want)
			}
		})
	}
}

func TestAFailureIsOneLineAndExitCode1(t *testing.T) {
	home(t)
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no gate at all":       {[]string{"info"}, "no gate of this user is running"},
		"a name without gates": {[]string{"--gate", "web", "info"}, "no gate is called web"},
		"a missing socket":     {[]string{"--socket", "/nonexistent/api.sock", "info"}, "no gate is running there: connect to /nonexistent/api.sock"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := gatectl(tc.args...)
			if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tc.want) {
				t.Errorf("code %d\nstdout %q\nstderr %q\nwant %q", code, stdout, stderr, tc.want)
			}
		})
	}
}

func TestTheGateIsFound(t *testing.T) {
	home(t)
	one := startGate(t, "one", 1)
	stateDir := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := gatectl(append(args, "info", "--json")...)
		if code != 0 {
			return stderr
		}
		var info api.Info
		if err := json.Unmarshal([]byte(stdout), &info); err != nil {
			t.Fatal(err)
		}
		return info.StateDir
	}
	if got := stateDir(); got != one {
		t.Errorf("the only gate: %s", got)
	}
	two := startGate(t, "two", 1)
	if got := stateDir(); !strings.Contains(got, "2 gates are running") || !strings.Contains(got, fmt.Sprintf("one (pid %d, %s)", os.Getpid(), one)) || !strings.Contains(got, two) {
		t.Errorf("of two: %s", got)
	}
	if got := stateDir("--gate", "two"); got != two {
		t.Errorf("by name: %s", got)
	}
	if got := stateDir("--gate", "three"); !strings.Contains(got, "one") || !strings.Contains(got, "two") {
		t.Errorf("by an unknown name: %s", got)
	}
	t.Setenv("ROOTLESSKIT_STATE_DIR", one)
	if got := stateDir(); got != one {
		t.Errorf("by ROOTLESSKIT_STATE_DIR: %s", got)
	}
	t.Setenv("GATEKIT_STATE_DIR", two)
	if got := stateDir(); got != two {
		t.Errorf("by GATEKIT_STATE_DIR: %s", got)
	}
	if got := stateDir("--gate", "one"); got != one {
		t.Errorf("by name, before the environment: %s", got)
	}
	if got := stateDir("--socket", filepath.Join(one, "api.sock")); got != one {
		t.Errorf("by socket, before the environment: %s", got)
	}
	startGate(t, "two", 1)
	if got := stateDir("--gate", "two"); !strings.Contains(got, "2 gates are called two") {
		t.Errorf("by a name that two have: %s", got)
	}
}

func TestList(t *testing.T) {
	home(t)
	stdout, _, code := gatectl("list", "--json")
	if code != 0 || stdout != "[]\n" {
		t.Errorf("no gate: code %d, %q", code, stdout)
	}
	dir := startGate(t, "web", 1)
	stdout, _, _ = gatectl("list")
	want := fmt.Sprintf("NAME  PID  NETWORK  STATE-DIR web %d slirp %s", os.Getpid(), dir)
	if got := strings.Join(strings.Fields(stdout), " "); got != strings.Join(strings.Fields(want), " ") {
		t.Errorf("table:\n%s", stdout)
	}
	stdout, _, _ = gatectl("list", "--json")
	if want := fmt.Sprintf(`[{"name":"web","pid":%d,"network":"slirp","stateDir":"%s"}]`+"\n", os.Getpid(), dir); stdout != want {
		t.Errorf("JSON is %s, want %s", stdout, want)
	}
}

func TestInfoIsATable(t *testing.T) {
	home(t)
	dir := startGate(t, "web", 4711)
	stdout, _, code := gatectl("info")
	want := fmt.Sprintf(`Name:            web
Version:         1.2.3
API version:     1.1.1
State dir:       %s
PID:             %d
Child PID:       4711
Network driver:  slirp
Child IP:        10.0.2.100
DNS:             10.0.2.3
Port driver:     builtin
Protocols:       tcp, udp
`, dir, os.Getpid())
	if diff := cmp.Diff(want, stdout); code != 0 || diff != "" {
		t.Errorf("code %d (-want +got):\n%s", code, diff)
	}
}

func TestPorts(t *testing.T) {
	home(t)
	startGate(t, "web", 1)
	for _, step := range []struct {
		args           string
		stdout, stderr string
		code           int
	}{
		{"list-ports --json", "[]\n", "", 0},
		{"add-ports 127.0.0.1:8080:80/tcp 9000-9001:9000-9001/udp", "1\n2\n3\n", "", 0},
		{"add-ports 127.0.0.1:82:82/tcp 127.0.0.1:81:81/tcp", "", "gatectl: port conflict: listen tcp 127.0.0.1:81: bind: address already in use\n", 1},
		{"remove-ports 2 7 3", "2\n3\n", "gatectl: forward 7: no such forward\n", 1},
		{"list-ports", "ID  PROTO  PARENTIP   PARENTPORT  CHILDIP  CHILDPORT  SOURCEIP  DIRECTION\n1   tcp    127.0.0.1  8080        -        80         -         in\n", "", 0},
		{"list-ports --json", `[{"id":1,"spec":{"proto":"tcp","parentIP":"127.0.0.1","parentPort":8080,"childPort":80}}]` + "\n", "", 0},
		{"remove-ports --drain 1h 1", "1\n", "", 0},
		{"add-ports auto", "auto\n", "", 0},
		{"list-ports --json", `[{"id":9,"spec":{"proto":"tcp","parentIP":"127.0.0.1","parentPort":80,"childPort":80}}]` + "\n", "", 0},
		{"remove-ports auto 9", "auto\n9\n", "", 0}, // by hand first
		{"list-ports", "ID  PROTO  PARENTIP  PARENTPORT  CHILDIP  CHILDPORT  SOURCEIP  DIRECTION\n", "", 0},
	} {
		stdout, stderr, code := gatectl(strings.Fields(step.args)...)
		if stdout != step.stdout || stderr != step.stderr || code != step.code {
			t.Errorf("%s:\ncode %d, stdout %q, stderr %q\nwant %d, %q, %q", step.args, code, stdout, stderr, step.code, step.stdout, step.stderr)
		}
	}
}

// crowdedGate answers a removal when as many are asked for as want says.
type crowdedGate struct {
	fakeGate
	want sync.WaitGroup
}

func (g *crowdedGate) RemovePort(ctx context.Context, id int, drain time.Duration) error {
	g.want.Done()
	all := make(chan struct{})
	go func() {
		g.want.Wait()
		close(all)
	}()
	select {
	case <-all:
		return g.fakeGate.RemovePort(ctx, id, drain)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Many forwards are removed at once, and printed in the order in which they are named.
func TestManyPortsAreRemovedAtOnce(t *testing.T) {
	home(t)
	gate := &crowdedGate{}
	want := ""
	args := []string{"remove-ports"}
	for id := removalsAtOnce; id > 0; id-- {
		gate.ports = append(gate.ports, api.PortStatus{ID: id})
		args = append(args, strconv.Itoa(id))
		want += strconv.Itoa(id) + "\n"
	}
	gate.want.Add(len(gate.ports))
	serve(t, newStateDir(t, statedir.Options{}), gate)
	if stdout, stderr, code := gatectl(args...); stdout != want || code != 0 {
		t.Errorf("code %d, stderr %q, stdout %q", code, stderr, stdout)
	}
}
