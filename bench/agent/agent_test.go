package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/bench/load"
	"github.com/gatekit/gatekit/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// newAgent starts an agent in this process.
func newAgent(t *testing.T) *Agent {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() { ended <- Run(path) }()
	a, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return a
}

func TestAnAgentServesAndMeasures(t *testing.T) {
	a := newAgent(t)
	ctx := t.Context()
	if a.PID != os.Getpid() {
		t.Errorf("the agent's process is %d, want %d", a.PID, os.Getpid())
	}
	localhost := netip.MustParseAddr("127.0.0.1")
	server, err := load.Listen(load.ServerOptions{Addr: localhost, TCP: []uint16{0}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	target := Target{To: server.TCP(), Network: "tcp", Count: 2, Duration: 10 * time.Millisecond}
	if trips, err := a.Trips(ctx, target); err != nil || trips.Count == 0 {
		t.Errorf("Trips: %+v, %v", trips, err)
	}
	if trips, err := a.TripsAtOnce(ctx, target); err != nil || trips.Count == 0 {
		t.Errorf("TripsAtOnce: %+v, %v", trips, err)
	}
	if conns, err := a.Connect(ctx, target); err != nil || conns.Count == 0 {
		t.Errorf("Connect: %+v, %v", conns, err)
	}
	target.Duration = time.Minute
	if held, err := a.Hold(ctx, target); err != nil || held.Open != 2 {
		t.Errorf("Hold: %+v, %v", held, err)
	}
	if err := a.Release(ctx); err != nil {
		t.Errorf("Release: %v", err)
	}
	target = Target{To: []netip.AddrPort{server.Sink()}, Size: 100, Burst: 2, Duration: 10 * time.Millisecond}
	if flooded, err := a.Flood(ctx, target); err != nil || flooded.Sent == 0 {
		t.Errorf("Flood: %+v, %v", flooded, err)
	}
}

func TestTheServerOfAnAgentTellsWhatItSaw(t *testing.T) {
	a := newAgent(t)
	if _, err := a.Seen(t.Context()); err == nil {
		t.Error("Seen without a server: no error")
	}
	if err := a.Forget(t.Context()); err == nil {
		t.Error("Forget without a server: no error")
	}
	o := load.ServerOptions{Addr: netip.MustParseAddr("127.0.0.1")}
	if err := a.Serve(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := a.Serve(t.Context(), o); err == nil {
		t.Error("a second server: no error")
	}
	if err := a.Forget(t.Context()); err != nil {
		t.Errorf("Forget: %v", err)
	}
	if seen, err := a.Seen(t.Context()); err != nil || seen.LastPeer.IsValid() || seen.Datagrams != 0 {
		t.Errorf("Seen: %+v, %v", seen, err)
	}
}

func TestProgramsAreRunAndEnded(t *testing.T) {
	a := newAgent(t)
	ctx := t.Context()
	out, err := a.Execute(ctx, Program{Args: []string{"echo", "hello"}, Limit: time.Minute})
	if err != nil || string(out) != "hello\n" {
		t.Errorf("Execute: %q, %v", out, err)
	}
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"one that fails", []string{"sh", "-c", "echo oh; exit 3"}, "exit status 3: oh"},
		{"one that is not there", []string{"there-is-no-such-program"}, "not found"},
		{"none", nil, "no program"},
	} {
		if _, err := a.Execute(ctx, Program{Args: c.args, Limit: time.Minute}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Execute of %s: %v, want %q in it", c.name, err, c.want)
		}
	}
	if _, err := a.Execute(ctx, Program{Args: []string{"sleep", "60"}, Limit: time.Millisecond}); err == nil {
		t.Error("Execute of one that takes too long: no error")
	}
	ready := Program{Args: []string{"sh", "-c", "echo ready; sleep 60"}, Until: "ready", Limit: time.Minute}
	for range 2 { // the second Start ends the first program, the agent's end the second
		if err := a.Start(ctx, ready); err != nil {
			t.Errorf("Start: %v", err)
		}
	}
	if err := a.Start(ctx, Program{Args: []string{"true"}, Until: "ready", Limit: time.Minute}); err == nil {
		t.Error("Start of a program that ends: no error")
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	a := newAgent(t)
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	if _, err := a.Execute(ctx, Program{Args: []string{"sleep", "0.1"}, Limit: time.Minute}); !errors.Is(err, reason) {
		t.Errorf("a call in a context that has ended: %v, want %v", err, reason)
	}
}

func TestWaitingForAnAgentEndsWithTheContext(t *testing.T) {
	l, err := Listen(filepath.Join(t.TempDir(), "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(time.Millisecond, func() { cancel(reason) })
	if _, err := l.Accept(ctx); !errors.Is(err, reason) {
		t.Errorf("Accept: %v, want %v", err, reason)
	}
}
