package test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// forwardedSignals are all that a process can be sent and catch, but for the
// three that the gate keeps and SIGPROF, which Go's runtime takes for its
// profiler, with the first, a middle and the last of the real-time signals (32
// to 34 are the C libraries' own, and Go's runtime leaves them to those).
func forwardedSignals() []syscall.Signal {
	var out []syscall.Signal
	for s := syscall.Signal(1); s < 32; s++ {
		switch s {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG, unix.SIGPROF:
		default:
			out = append(out, s)
		}
	}
	return append(out, 35, 42, 64)
}

// reportSignals is a command that writes "got N" for each signal N it gets. It
// reads a pipe that nobody writes, so it has no children and gets no SIGCHLD of
// its own.
const reportSignals = `
	n=1; while [ $n -le 64 ]; do case $n in 9|19|32|33) ;; *) trap "echo got $n" $n ;; esac; n=$((n+1)); done
	echo ready; while :; do read line; done`

// startSignalReporter starts a gate whose command is reportSignals, in a process
// group of its own.
func startSignalReporter(t *testing.T, h *testenv.Host, flags ...string) *gate {
	t.Helper()
	cmd := h.Command("gatekit", append(flags, "sh", "-c", reportSignals)...)
	idle, silent, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idle.Close(); silent.Close() })
	cmd.Stdin = idle
	cmd.SysProcAttr.Setpgid = true
	g := &gate{host: h, Process: h.Start(t, cmd)}
	g.awaitOutput(t, "ready\n")
	return g
}

var processFlags = map[string][]string{
	"plain":         {},
	"pid namespace": {"--pidns"},
	"reaper":        {"--reaper=true"},
	"network":       {"--net=slirp"},
}

func TestSignalsReachTheCommandOnce(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range processFlags {
		t.Run(name, func(t *testing.T) {
			g := startSignalReporter(t, h, flags...)
			want := "ready\n"
			for _, sig := range forwardedSignals() {
				g.Signal(sig)
				want += fmt.Sprintf("got %d\n", sig)
				g.awaitOutput(t, fmt.Sprintf("got %d\n", sig))
			}
			if got := g.Stdout(); got != want {
				t.Errorf("the command got\n%s\nwant each signal once, in order", strings.ReplaceAll(got, "\n", " "))
			}
		})
	}
}

// What a service manager sends to a cgroup goes to each of its processes.
func TestASignalToAllOfTheGateReachesTheCommandOnce(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range processFlags {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := startSignalReporter(t, h, flags...)
			// Once this has come, whatever the child gets the command has got, too.
			g.Signal(syscall.SIGALRM)
			want := "ready\ngot 14\n"
			g.awaitOutput(t, want)
			child := childOf(g)
			processes := append([]int{g.PID(), child}, testenv.Children(child)...)
			for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGUSR1, unix.SIGHUP, unix.SIGINT, unix.SIGCONT, 35, 64} {
				if err := unix.Kill(-g.PID(), sig); err != nil {
					t.Fatal(err)
				}
				want += fmt.Sprintf("got %d\n", sig)
				g.awaitOutput(t, want)
			}
			for _, sig := range []syscall.Signal{unix.SIGUSR2, unix.SIGQUIT, 42} {
				for _, pid := range processes {
					if err := unix.Kill(pid, sig); err != nil {
						t.Fatal(err)
					}
				}
				want += fmt.Sprintf("got %d\n", sig)
				g.awaitOutput(t, want)
			}
			// The child's alone: it waits as long as a copy of those before can.
			if err := unix.Kill(child, unix.SIGWINCH); err != nil {
				t.Fatal(err)
			}
			g.awaitOutput(t, fmt.Sprintf("got %d\n", unix.SIGWINCH))
			if want += fmt.Sprintf("got %d\n", unix.SIGWINCH); g.Stdout() != want {
				t.Errorf("the command got\n%s\nwant\n%s", strings.ReplaceAll(g.Stdout(), "\n", " "), strings.ReplaceAll(want, "\n", " "))
			}
		})
	}
}

func TestThreeSignalsStayWithTheGate(t *testing.T) {
	h := testenv.NewHost(t)
	g := startSignalReporter(t, h)
	for _, sig := range []syscall.Signal{unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG} {
		g.Signal(sig)
	}
	g.Signal(unix.SIGUSR1) // comes after what was sent before
	g.awaitOutput(t, fmt.Sprintf("got %d\n", unix.SIGUSR1))
	if got, want := g.Stdout(), fmt.Sprintf("ready\ngot %d\n", unix.SIGUSR1); got != want {
		t.Errorf("the command got %q, want %q", got, want)
	}
}

func TestABurstOfSignalsArrives(t *testing.T) {
	h := testenv.NewHost(t)
	g := startSignalReporter(t, h)
	sigs := []syscall.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGALRM}
	for _, sig := range sigs {
		g.Signal(sig)
	}
	for _, sig := range sigs {
		g.awaitOutput(t, fmt.Sprintf("got %d\n", sig))
	}
}

func TestASignalDuringTheStartEndsTheGate(t *testing.T) {
	h := testenv.NewHost(t)
	before := trace(t, h)
	for range 10 {
		g := h.Start(t, h.Command("gatekit", "--net=slirp", "sleep", "infinity"))
		// The child is there; the command may be or not.
		testenv.Until(t, "the child", func() bool { return len(testenv.Children(g.PID())) > 0 || !g.Running() })
		g.Signal(unix.SIGTERM)
		if r := g.Wait(t); r.Code == 0 {
			t.Errorf("ended by SIGTERM: %v", r)
		}
		h.NoTrace(t, before)
	}
}

func TestTheExitCodeIsTheCommands(t *testing.T) {
	h := testenv.NewHost(t)
	for code := range 256 {
		if r := runGate(t, h, "--single-id", "sh", "-c", "exit "+strconv.Itoa(code)); r.Code != code {
			t.Errorf("exit %d: %v", code, r)
		}
	}
	for name, flags := range processFlags {
		for _, code := range []int{0, 1, 2, 125, 126, 127, 128, 137, 255} {
			r := runGate(t, h, append(flags, "sh", "-c", "exit "+strconv.Itoa(code))...)
			if r.Code != code || r.Stderr != "" {
				t.Errorf("%s: exit %d: %v", name, code, r)
			}
		}
	}
}

func TestASignalThatEndsTheCommandShowsInTheExitCode(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range processFlags {
		for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGKILL, unix.SIGSEGV, unix.SIGPIPE, unix.SIGTERM, 64} {
			script := fmt.Sprintf("ulimit -c 0; kill -%d $$", sig)
			if r := runGate(t, h, append(flags, "sh", "-c", script)...); r.Code != 128+int(sig) {
				t.Errorf("%s: ended by %v: %v, want exit code %d", name, sig, r, 128+int(sig))
			}
		}
	}
}
