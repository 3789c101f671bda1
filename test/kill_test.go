package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// kill sends SIGKILL to a process of the test. One that is gone needs none.
func kill(t *testing.T, pid int) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("kill(%d) would reach more than one process", pid)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
		t.Fatal(err)
	}
}

const (
	killRounds = 200

	// longestLife is more than a gate needs from its start to its command.
	longestLife = 120 * time.Millisecond
)

// TestKillsAtRandomMomentsLeaveNothingThatStopsTheNextStart kills parent, child
// and command in turn, each at a moment between the start of the gate and some
// time after it is ready. All rounds use one state dir, so that each start finds
// what the kill before it left. GATEKIT_TEST_SEED repeats a run.
func TestKillsAtRandomMomentsLeaveNothingThatStopsTheNextStart(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("GATEKIT_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("GATEKIT_TEST_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	h := testenv.NewHost(t)
	before := trace(t, h)
	for round := range killRounds {
		victim := victims[round%len(victims)]
		moment := time.Duration(random.Int64N(int64(longestLife)))
		if !t.Run(fmt.Sprintf("round %d, %s after %v", round, victim.name, moment), func(t *testing.T) {
			killOnce(t, h, victim, moment)
		}) {
			t.FailNow()
		}
	}
	g := startGate(t, h, "--net=slirp", "sleep", "infinity")
	g.Signal(os.Interrupt)
	g.Wait(t)
	h.NoTrace(t, ignoreStateDir(g, before, h.Trace(t)))
}

// killOnce starts a gate, kills the victim at the moment, and expects the gate
// to end, and no process of it to be left.
func killOnce(t *testing.T, h *testenv.Host, v victim, moment time.Duration) {
	g := launch(t, h, "--net=slirp", "--copy-up=/etc", "--publish=127.0.0.1:0:80/tcp", "sleep", "infinity")
	select {
	case <-time.After(moment):
	case <-g.Ended():
	}
	pid := 0
	testenv.Until(t, "the "+v.name, func() bool {
		if !g.Running() {
			t.Fatalf("the gate did not start: %v", g.Wait(t))
		}
		pid = v.find(g)
		return pid != 0
	})
	kill(t, pid)
	if r := g.Wait(t); r.Code != v.code || strings.Count(r.Stderr, "\n") != v.lines {
		t.Errorf("%v\nwant exit code %d and %d lines on stderr", r, v.code, v.lines)
	}
	h.NoProcesses(t)
}

// victim is a process of a gate.
type victim struct {
	name string

	// find returns its process id, or 0 while it is not there.
	find func(g *gate) int

	// code is how the gate ends when the victim is killed (-1 is by a signal),
	// and lines is how many lines it says about it.
	code, lines int
}

var victims = []victim{
	{"parent", func(g *gate) int { return g.PID() }, -1, 0},
	{"child", childOf, 1, 1},
	{"command", func(g *gate) int {
		if child := childOf(g); child != 0 {
			return firstChild(child, func(dir string) bool {
				comm, err := os.ReadFile(dir + "/comm")
				return err == nil && string(comm) == "sleep\n"
			})
		}
		return 0
	}, 128 + int(unix.SIGKILL), 0},
}

// childOf is the gate's child: of the parent's children, among which are the
// helpers that map ids, the one in another user namespace.
func childOf(g *gate) int {
	parent, err := os.Readlink("/proc/" + strconv.Itoa(g.PID()) + "/ns/user")
	if err != nil {
		return 0
	}
	return firstChild(g.PID(), func(dir string) bool {
		users, err := os.Readlink(dir + "/ns/user")
		return err == nil && users != parent
	})
}

// firstChild is the first child of a process whose directory in /proc is
// accepted, or 0.
func firstChild(parent int, accept func(dir string) bool) int {
	for _, pid := range testenv.Children(parent) {
		if accept("/proc/" + strconv.Itoa(pid)) {
			return pid
		}
	}
	return 0
}
