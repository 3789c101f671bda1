package test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// execFlags are the gates in which a program may be run.
var execFlags = map[string][]string{
	"plain":            {},
	"network":          {"--net=slirp", "--copy-up=/etc"},
	"pid namespace":    {"--net=slirp", "--pidns"},
	"all namespaces":   {"--net=slirp", "--pidns", "--cgroupns", "--utsns", "--ipcns"},
	"detached network": {"--net=slirp", "--detach-netns"},
	"single id":        {"--net=slirp", "--single-id"},
}

func TestExecRunsAProgramWhereTheCommandIs(t *testing.T) {
	// What a program can tell of where it is.
	const where = `
		for ns in user mnt net pid uts ipc cgroup; do readlink /proc/self/ns/$ns; done
		id -u; id -g; grep -i '^cap[ep]' /proc/self/status; cat /proc/self/uid_map
		env | grep -e ^GATEKIT_[SP] -e ^ROOTLESSKIT_ | sort
		mount | grep -c .; ls /proc | grep -c '^[0-9]' > /dev/null; echo end`
	h := testenv.NewHost(t)
	for name, flags := range execFlags {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, h, append(flags, "sh", "-c", where+"; exec sleep infinity")...)
			g.awaitOutput(t, "end\n")
			if got, want := g.ctlOutput(t, "exec", "--", "sh", "-c", where), g.Stdout(); got != want {
				t.Errorf("gatectl exec runs a program in\n%swant\n%s", got, want)
			}
			g.stop(t)
		})
	}
}

func TestExecReachesThePIDNamespace(t *testing.T) {
	h := testenv.NewHost(t)
	g := startGate(t, h, "--pidns", "sleep", "infinity")
	r := g.ctlOutput(t, "exec", "--", "sh", "-c", "echo $$; cat /proc/1/comm; kill -0 1 && echo seen")
	rows := table(r)
	if len(rows) != 3 || len(rows[0][0]) > 3 || rows[2][0] != "seen" {
		t.Errorf("the program sees %q, want a small pid and process 1 of the gate", r)
	}
	g.stop(t)
}

func TestExecHasTheProgramsExitCode(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range map[string][]string{"plain": {}, "pid namespace": {"--pidns"}} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, h, append(flags, "sleep", "infinity")...)
			for _, c := range []struct {
				command []string
				code    int
				line    string // on stderr
			}{
				{[]string{"true"}, 0, ""},
				{[]string{"sh", "-c", "exit 7"}, 7, ""},
				{[]string{"sh", "-c", "exit 255"}, 255, ""},
				{[]string{"sh", "-c", "kill -TERM $$"}, 128 + 15, ""},
				{[]string{"sh", "-c", "kill -KILL $$"}, 128 + 9, ""},
				{[]string{"not-there"}, 127, "not-there"},
				{[]string{"/not/there"}, 127, "/not/there"},
				{[]string{"/etc/passwd"}, 126, "/etc/passwd"},
			} {
				r := g.ctl(t, append([]string{"exec", "--"}, c.command...)...)
				if r.Code != c.code || len(lacks(r.Stderr, c.line)) > 0 || c.line == "" && r.Stderr != "" {
					t.Errorf("%q: %v, want exit code %d and %q on stderr", c.command, r, c.code, c.line)
				}
			}
			if r := g.ctl(t, "exec"); r.Code != 2 || strings.Count(r.Stderr, "\n") != 1 {
				t.Errorf("exec of nothing: %v, want exit code 2", r)
			}
			g.stop(t)
		})
	}
}

func TestExecPassesStreamsArgumentsAndSignalsOn(t *testing.T) {
	h := testenv.NewHost(t)
	g := startGate(t, h, "--pidns", "sleep", "infinity")
	ctl := func(args ...string) []string { return append([]string{"--socket", g.socket(), "exec"}, args...) }

	cat := h.Command("gatectl", ctl("sh", "-c", "cat; echo error >&2; echo \"$@\"", "sh", "--json", "-x", "a b", "")...)
	cat.Stdin = strings.NewReader(strings.Repeat("line\n", 100_000))
	if r := h.Run(t, cat); r.Code != 0 || r.Stderr != "error\n" || !strings.HasSuffix(r.Stdout, "line\n--json -x a b \n") || len(r.Stdout) < 500_000 {
		t.Errorf("exit code %d, %d bytes of output, stderr %q", r.Code, len(r.Stdout), r.Stderr)
	}

	p := h.Start(t, h.Command("gatectl", ctl("--", "sh", "-c", "trap 'echo got; exit 3' USR1; echo started; while :; do sleep 0.01; done")...))
	awaitLine(t, p, "started")
	p.Signal(unix.SIGUSR1)
	if r := p.Wait(t); r.Code != 3 || !strings.Contains(r.Stdout, "got\n") {
		t.Error(r)
	}
	g.stop(t)
}

// What was run inside does not outlive gatectl, nor a gate that has a pid
// namespace.
func TestExecLeavesNothingBehind(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range map[string][]string{
		"plain":         {},
		"network":       {"--net=slirp"},
		"pid namespace": {"--pidns"},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, h, append(flags, "sleep", "infinity")...)
			p := h.Start(t, h.Command("gatectl", "--socket", g.socket(), "exec", "--", "sh", "-c", "echo started; exec tail -f /dev/null"))
			awaitLine(t, p, "started")
			p.Kill()
			p.Wait(t)
			testenv.Until(t, "the end of the program", func() bool {
				return !slices.ContainsFunc(h.Processes(), func(p testenv.ProcessInfo) bool { return p.Name == "tail" })
			})
			g.stop(t)
			h.NoProcesses(t)
		})
	}
	t.Run("with the gate", func(t *testing.T) {
		g := startGate(t, h, "--pidns", "sleep", "infinity")
		p := h.Start(t, h.Command("gatectl", "--socket", g.socket(), "exec", "--", "sh", "-c", "echo started; exec sleep infinity"))
		awaitLine(t, p, "started")
		g.stop(t)
		if r := p.Wait(t); r.Code != 128+9 {
			t.Errorf("%v, want exit code 137", r)
		}
		h.NoProcesses(t)
	})
}

func TestExecKeepsTheTerminal(t *testing.T) {
	for name, flags := range map[string][]string{"plain": {}, "pid namespace": {"--net=slirp", "--pidns"}} {
		t.Run(name, func(t *testing.T) {
			h := testenv.NewHost(t)
			g := startGate(t, h, append(flags, "sleep", "infinity")...)
			x, p := onTerminal(t, h, "gatectl", "--socket", g.socket(), "exec", "--", "bash", "--norc", "-i")
			x.Expect(t, "prompt> ")
			x.Type(t, "test -t 0 && test -t 1 && tty && id -u && echo sure $((6*7))\n")
			x.Expect(t, "/dev/pts/")
			x.Expect(t, "sure 42")
			x.Type(t, "echo run $((6*8)); cat\n")
			x.Expect(t, "run 48") // now the line is the kernel's to edit
			x.Type(t, "one\n")
			testenv.Until(t, "cat's echo", func() bool { return strings.Count(x.Output.String(), "one\r\n") == 2 })
			x.Type(t, "\x03")
			testenv.Until(t, "the third prompt", func() bool { return strings.Count(x.Output.String(), "prompt> ") == 3 })
			x.Type(t, "echo status $?\n")
			x.Expect(t, "status 130")
			x.Type(t, "exit 5\n")
			if r := p.Wait(t); r.Code != 5 {
				t.Errorf("%v\n%s", r, x.Output)
			}
			if strings.Contains(x.Output.String(), "job control") {
				t.Errorf("the shell complains:\n%s", x.Output)
			}
			g.stop(t)
		})
	}
}

func TestExecSaysThatTheGateIsGone(t *testing.T) {
	h := testenv.NewHost(t)
	g := startGate(t, h, "sleep", "infinity")
	g.Signal(os.Kill)
	g.Wait(t)
	r := g.ctl(t, "exec", "--", "true")
	if r.Code != 1 || strings.Count(r.Stderr, "\n") != 1 || len(lacks(r.Stderr, g.socket())) > 0 {
		t.Errorf("%v, want exit code 1 and a line that names the socket", r)
	}
}

// What runs inside may trace processes of its namespaces, as which gatectl is
// seen from the moment that it has joined them.
func TestExecIsNotTracedFromInside(t *testing.T) {
	h := testenv.NewHost(t)
	g := startGate(t, h, "--net=slirp", "sleep", "infinity")
	r := h.Run(t, h.Command("strace", "-f", "-o", "/tmp/calls", "-e", "trace=prctl,setns,execveat", "gatectl", "--socket", g.socket(), "exec", "true"))
	if r.Code != 0 {
		t.Fatal(r)
	}
	calls := h.ReadFile(t, "/tmp/calls")
	closed, joined := strings.Index(calls, "PR_SET_DUMPABLE, SUID_DUMP_DISABLE) = 0"), strings.Index(calls, "setns(")
	if closed < 0 || joined < closed {
		t.Errorf("the copy of gatectl can be traced when it joins the namespaces:\n%s", calls)
	}
}
