package test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
)

// specsOf are the forwards of a gate, in the order of their ids.
func specsOf(t *testing.T, g *gate) []api.PortSpec {
	t.Helper()
	c := g.client(t)
	defer c.CloseIdleConnections() // some ask many times
	list, err := c.ListPorts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	specs := []api.PortSpec{}
	for _, p := range list {
		specs = append(specs, p.Spec)
	}
	return specs
}

func TestForwardsAreBackAfterAKill(t *testing.T) {
	s := newSite(t)
	start := func() *gate {
		return startGate(t, s.Host, "--net=slirp", "--restore-ports", "-p", "127.0.0.1:0:80/tcp", "sleep", "infinity")
	}
	g := start()
	g.add(t, "[::1]:8080:80/tcp", "8081:127.0.0.1:80/tcp4", "127.0.0.1:8082-8084:80-82/udp", "127.0.0.1:0:80/tcp")
	removed := g.add(t, "127.0.0.1:8085:80/tcp")
	if err := g.client(t).RemovePort(t.Context(), removed[0].ID); err != nil {
		t.Fatal(err)
	}
	want := specsOf(t, g)
	for _, victim := range victims {
		t.Run(victim.name+" is killed", func(t *testing.T) {
			kill(t, victim.find(g))
			g.Wait(t)
			g = start()
			if diff := cmp.Diff(want, specsOf(t, g)); diff != "" {
				t.Errorf("forwards (-before +after):\n%s", diff)
			}
			g.serve(t, "tcp", "127.0.0.1:80")
			for _, port := range []int{want[0].ParentPort, 8081} {
				if err := tryTCP(t, s.Host, fmt.Sprintf("127.0.0.1:%d", port), 1000); err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Run("an orderly end", func(t *testing.T) {
		g.stop(t)
		g = start()
		if diff := cmp.Diff(want, specsOf(t, g)); diff != "" {
			t.Errorf("forwards (-before +after):\n%s", diff)
		}
	})
	g.stop(t)
	t.Run("not without the flag", func(t *testing.T) {
		g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
		if specs := specsOf(t, g); len(specs) != 0 {
			t.Errorf("there are %v", specs)
		}
		g.stop(t)
		if _, err := os.Stat(s.Path(g.stateDir + "/ports.json")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("ports.json is still there: %v", err)
		}
	})
}

// What was answered before the kill is so after it, whatever was under way: several add
// forwards, and remove every other.
func TestNoAnsweredChangeIsLostInAKill(t *testing.T) {
	s := newSite(t)
	var mu sync.Mutex // guards what is below
	next := 10000
	known := map[int]bool{} // ports, and whether there is a forward, as far as was answered
	for round := range 5 {
		g := startGate(t, s.Host, "--net=slirp", "--restore-ports", "sleep", "infinity")
		there := map[int]bool{}
		for _, spec := range specsOf(t, g) {
			there[spec.ParentPort] = true
		}
		for port, want := range known {
			if there[port] != want {
				t.Errorf("round %d: that there is a forward of port %d was answered with %v", round, port, want)
			}
		}
		answers := make(chan struct{}, 10000)
		answer := func(port int, there bool) {
			mu.Lock()
			known[port] = there
			mu.Unlock()
			answers <- struct{}{}
		}
		c := g.client(t)
		var changes sync.WaitGroup
		for range 8 {
			changes.Go(func() {
				for {
					mu.Lock()
					port := next
					next++
					mu.Unlock()
					added, err := c.AddPort(t.Context(), api.PortSpec{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: port, ChildPort: 80})
					if err != nil {
						return
					}
					answer(port, true)
					if port%2 == 0 {
						continue
					}
					mu.Lock()
					delete(known, port)
					mu.Unlock()
					if err := c.RemovePort(t.Context(), added.ID); err != nil {
						return
					}
					answer(port, false)
				}
			})
		}
		for range 20 + 15*round {
			receive(t, answers, "an answer")
		}
		kill(t, g.PID())
		g.Wait(t)
		changes.Wait()
	}
}

func TestAForwardThatCannotComeBackIsAWarning(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "--restore-ports", "sleep", "infinity")
	g.add(t, "127.0.0.1:8080:80/tcp", "127.0.0.1:8081:80/tcp")
	kill(t, g.PID())
	g.Wait(t)
	serveTCP(t, s.Host, "127.0.0.1:8080", echoTCP)
	g = startGate(t, s.Host, "--net=slirp", "--restore-ports", "sleep", "infinity")
	want := []api.PortSpec{{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 8081, ChildPort: 80}}
	if diff := cmp.Diff(want, specsOf(t, g)); diff != "" {
		t.Errorf("forwards (-want +got):\n%s", diff)
	}
	testenv.Until(t, "a warning", func() bool {
		return len(lacks(g.Stderr(), "127.0.0.1:8080:80/tcp", "bind: address already in use", "uid 0")) == 0
	})
}

// Automatic forwards come back by themselves, once they are wanted again: those of
// the gate before are those of what listened then.
func TestAutomaticForwardsAreWantedAgainAfterAKill(t *testing.T) {
	s := newSite(t)
	start := func(args ...string) *gate {
		g := startGate(t, s.Host, slices.Concat([]string{"--net=slirp"}, args, []string{"sleep", "infinity"})...)
		g.serve(t, "tcp", "127.0.0.1:8080")
		return g
	}
	g := start("--restore-ports")
	g.ctlOutput(t, "add-ports", "auto")
	for range 2 {
		kill(t, g.PID())
		g.Wait(t)
		g = start("--restore-ports")
		testenv.Until(t, "a forward", func() bool { return g.forwardTo(t, "tcp", 8080) == 8080 })
		if specs := specsOf(t, g); len(specs) != 1 {
			t.Errorf("there are %v", specs)
		}
	}
	g.ctlOutput(t, "remove-ports", "auto")
	g.stop(t)
	g = start("--restore-ports")
	g.add(t, "127.0.0.1:8081:80/tcp")
	g.stop(t)
	// An entry more would be a warning; and nothing is wanted.
	g = start("--restore-ports")
	if specs := specsOf(t, g); len(specs) != 1 || specs[0].ParentPort != 8081 {
		t.Errorf("after they were turned off there are %v", specs)
	}
	g.stop(t)
	if g.Stderr() != "" {
		t.Errorf("the gate says %s", g.Stderr())
	}
}
