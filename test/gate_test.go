package test

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// runGate runs gatekit as the Host's user and waits for its end.
func runGate(t *testing.T, h *testenv.Host, args ...string) testenv.Result {
	t.Helper()
	return h.Run(t, h.Command("gatekit", args...))
}

// output runs gatekit as the Host's user, expects it to succeed, and returns
// what the command wrote.
func output(t *testing.T, h *testenv.Host, args ...string) string {
	t.Helper()
	r := runGate(t, h, args...)
	if r.Code != 0 {
		t.Fatalf("gatekit %s: %v", strings.Join(args, " "), r)
	}
	return r.Stdout
}

// gate is a gate that runs.
type gate struct {
	*testenv.Process
	host *testenv.Host

	// stateDir is a path of the Host.
	stateDir string

	// detached says that the network namespace is apart from the child.
	detached bool

	// childPID is the child's process id as the machine sees it.
	childPID int
}

// startGate starts gatekit as the Host's user, with a state dir of its own, and
// waits until the gate is ready.
func startGate(t *testing.T, h *testenv.Host, args ...string) *gate {
	t.Helper()
	g := launch(t, h, args...)
	g.awaitReady(t)
	return g
}

// launch starts gatekit as startGate does, and does not wait.
func launch(t *testing.T, h *testenv.Host, args ...string) *gate {
	t.Helper()
	g := &gate{host: h, stateDir: h.User.RuntimeDir + "/gate", detached: slices.Contains(args, "--detach-netns")}
	g.Process = h.Start(t, h.Command("gatekit", append([]string{"--state-dir=" + g.stateDir}, args...)...))
	return g
}

// awaitReady waits until child_pid is there.
func (g *gate) awaitReady(t *testing.T) {
	t.Helper()
	testenv.Until(t, g.stateDir+"/child_pid", func() bool {
		if !g.Running() {
			t.Fatalf("the gate ended: %v", g.Wait(t))
		}
		text, err := os.ReadFile(g.host.Path(g.stateDir + "/child_pid"))
		if err != nil {
			return false
		}
		g.childPID, err = strconv.Atoi(string(text))
		if err != nil {
			t.Fatalf("child_pid holds %q, want a decimal number and nothing else", text)
		}
		// A killed gate leaves its child_pid until the next one starts.
		return slices.Contains(testenv.Children(g.PID()), g.childPID)
	})
}

// awaitOutput waits until the command has written the text.
func (g *gate) awaitOutput(t *testing.T, text string) {
	t.Helper()
	testenv.Until(t, strconv.Quote(text)+" from the command", func() bool {
		if strings.Contains(g.Stdout(), text) {
			return true
		}
		if !g.Running() {
			t.Fatalf("the gate ended: %v", g.Wait(t))
		}
		return false
	})
}

// inside runs a command in the mount and user namespaces of the gate's child,
// the way container engines' own tools enter.
func (g *gate) inside(t *testing.T, command ...string) string {
	t.Helper()
	args := []string{"-U", "--preserve-credentials", "-m", "-F", "-t", strconv.Itoa(g.childPID)}
	r := g.host.Run(t, g.host.Command("nsenter", append(args, command...)...))
	if r.Code != 0 {
		t.Fatalf("%s in the gate: %v", strings.Join(command, " "), r)
	}
	return r.Stdout
}

// field returns the value of a line "NAME: VALUE" as in /proc/PID/status.
func field(t *testing.T, status, name string) string {
	t.Helper()
	for line := range strings.Lines(status) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == name {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("there is no field %s in:\n%s", name, status)
	return ""
}

// lacks reports the fragments that text lacks, whatever their case.
func lacks(text string, fragments ...string) []string {
	var out []string
	for _, f := range fragments {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(f)) {
			out = append(out, f)
		}
	}
	return out
}

// trace lists what is on the Host when at least one gate has run there: the
// directory under which gates find each other stays.
func trace(t *testing.T, h *testenv.Host) testenv.Trace {
	t.Helper()
	if _, err := os.Stat(h.Path(h.User.RuntimeDir + "/gatekit")); err != nil {
		output(t, h, "--single-id", "true")
	}
	return h.Trace(t)
}
