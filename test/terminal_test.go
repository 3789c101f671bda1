package test

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// onTerminal starts a command of the Host's user on a terminal.
func onTerminal(t *testing.T, h *testenv.Host, name string, args ...string) (*testenv.Terminal, *testenv.Process) {
	t.Helper()
	x := h.NewTerminal(t)
	cmd := h.Command(name, args...)
	cmd.Env = append(cmd.Env, "PS1=prompt> ", "INPUTRC=/dev/null", "HISTFILE=")
	x.Attach(cmd)
	return x, h.Start(t, cmd)
}

// terminalFlags are the ways to run a command that a terminal must survive.
var terminalFlags = map[string][]string{
	"plain":                      {},
	"pid namespace":              {"--pidns"},
	"pid namespace and a reaper": {"--pidns", "--reaper=true"},
	"reaper":                     {"--reaper=true"},
	"network and all namespaces": {"--net=slirp", "--pidns", "--cgroupns", "--utsns", "--ipcns"},
	"network that stands apart":  {"--net=slirp", "--detach-netns"},
}

func TestATerminalStaysATerminal(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range terminalFlags {
		t.Run(name, func(t *testing.T) {
			x, p := onTerminal(t, h, "gatekit", append(flags, "sh", "-ec", `
				for fd in 0 1 2; do test -t $fd; done
				: </dev/tty
				tty; stty size
				echo sure? > /dev/tty; read answer < /dev/tty; echo "so $answer"`)...)
			x.Expect(t, "/dev/pts/")
			x.Expect(t, "sure?")
			x.Type(t, "yes\n")
			x.Expect(t, "so yes")
			if r := p.Wait(t); r.Code != 0 {
				t.Errorf("%v\n%s", r, x.Output)
			}
		})
	}
}

// countSignals is a command that counts the signals that a terminal sends.
const countSignals = `
	i=0; q=0; w=0
	trap 'i=$((i+1)); echo INT-$i' INT
	trap 'q=$((q+1)); echo QUIT-$q' QUIT
	trap 'w=$((w+1)); echo WINCH-$w "$(stty size)"' WINCH
	trap 'echo "counted $i $q $w"' USR1
	trap 'exit 0' TERM
	echo started
	while :; do read line; done`

func TestKeysReachTheCommandOnce(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range terminalFlags {
		t.Run(name, func(t *testing.T) {
			x, p := onTerminal(t, h, "gatekit", append(flags, "sh", "-c", countSignals)...)
			x.Expect(t, "started")
			for i := range 5 {
				x.Type(t, "\x03")
				x.Expect(t, fmt.Sprintf("INT-%d", i+1))
			}
			x.Type(t, "\x1c")
			x.Expect(t, "QUIT-1")
			x.Resize(t, 33, 99)
			x.Expect(t, "WINCH-1 33 99")
			// The parent was sent the same signals. What it forwards comes in order,
			// so a second copy of any would be there before this one.
			p.Signal(unix.SIGUSR1)
			x.Expect(t, "counted 5 1 1")
			p.Signal(unix.SIGTERM)
			if r := p.Wait(t); r.Code != 0 {
				t.Errorf("%v\n%s", r, x.Output)
			}
		})
	}
}

func TestCtrlCEndsACommandThatDoesNotCatchIt(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range terminalFlags {
		t.Run(name, func(t *testing.T) {
			before := trace(t, h)
			x, p := onTerminal(t, h, "gatekit", append(flags, "sh", "-c", "echo started; exec sleep 60")...)
			x.Expect(t, "started")
			x.Type(t, "\x03")
			if r := p.Wait(t); r.Code != 128+int(unix.SIGINT) {
				t.Errorf("%v, want exit code 130\n%s", r, x.Output)
			}
			h.NoTrace(t, before)
		})
	}
}

func TestAShellOutsideStopsAndContinuesTheGate(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range terminalFlags {
		t.Run(name, func(t *testing.T) {
			h.WriteFile(t, "/srv/echo", "#!/bin/sh\necho started\nwhile read line; do echo \"[$line]\"; done\n", 0o755)
			x, p := onTerminal(t, h, "bash", "--norc", "--noediting", "-i")
			x.Expect(t, "prompt> ")
			x.Type(t, "gatekit "+strings.Join(flags, " ")+" /srv/echo\n")
			x.Expect(t, "started\r\n")
			x.Type(t, "one\n")
			x.Expect(t, "[one]")
			for _, line := range []string{"two", "three"} {
				x.Type(t, "\x1a")
				x.Expect(t, "Stopped")
				x.Expect(t, "prompt> ")
				x.Type(t, "echo outside $((6*7))\n")
				x.Expect(t, "outside 42\r\nprompt> ")
				x.Type(t, "fg\n")
				x.Type(t, line+"\n")
				x.Expect(t, "["+line+"]")
			}
			x.Type(t, "\x03")
			x.Expect(t, "prompt> ")
			x.Type(t, "echo status $?\n")
			x.Expect(t, "status 130\r\nprompt> ")
			x.Type(t, "exit 7\n")
			if r := p.Wait(t); r.Code != 7 {
				t.Errorf("%v\n%s", r, x.Output)
			}
			h.NoProcesses(t)
		})
	}
}

func TestAShellInsideControlsItsJobs(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range terminalFlags {
		t.Run(name, func(t *testing.T) {
			x, p := onTerminal(t, h, "gatekit", append(flags, "bash", "--norc", "--noediting", "-i")...)
			x.Expect(t, "prompt> ")
			x.Type(t, "sh -c 'echo start''ed; exec cat'\n")
			x.Expect(t, "started\r\n")
			x.Type(t, "one\n")
			x.Expect(t, "one\r\none\r\n")
			x.Type(t, "\x1a")
			x.Expect(t, "Stopped")
			x.Expect(t, "prompt> ")
			x.Type(t, "jobs; echo here $((6*7))\n")
			x.Expect(t, "here 42\r\nprompt> ")
			x.Type(t, "fg\n")
			x.Type(t, "two\n")
			x.Expect(t, "two\r\n")
			x.Expect(t, "two\r\n")
			x.Type(t, "\x03")
			x.Expect(t, "prompt> ")
			x.Type(t, "echo status $?\n")
			x.Expect(t, "status 130\r\nprompt> ")
			x.Type(t, "exit 5\n")
			if r := p.Wait(t); r.Code != 5 {
				t.Errorf("%v\n%s", r, x.Output)
			}
			for _, complaint := range []string{"no job control", "cannot set terminal process group", "Inappropriate ioctl"} {
				if strings.Contains(x.Output.String(), complaint) {
					t.Errorf("the shell complains:\n%s", x.Output)
				}
			}
		})
	}
}

// A shell that stops itself stops the gate, whose process group is another one.
func TestAShellInsideSuspendsItself(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range terminalFlags {
		t.Run(name, func(t *testing.T) { suspendInside(t, h, append([]string{"gatekit"}, flags...)) })
	}
	t.Run("gatectl exec", func(t *testing.T) {
		g := startGate(t, h, "--net=slirp", "--pidns", "sleep", "60")
		suspendInside(t, h, []string{"gatectl", "--socket", g.socket(), "exec"})
		g.stop(t)
	})
}

// suspendInside runs a shell inside from one outside, and goes from one to the
// other and back.
func suspendInside(t *testing.T, h *testenv.Host, inside []string) {
	t.Helper()
	x, p := onTerminal(t, h, "bash", "--norc", "--noediting", "-i")
	x.Type(t, strings.Join(inside, " ")+" bash --norc --noediting -i\n")
	x.Type(t, "echo inside-$(id -u)\n")
	x.Expect(t, "inside-0")
	for i := range 3 {
		x.Type(t, "suspend\n")
		x.Expect(t, "Stopped")
		x.Type(t, fmt.Sprintf("echo outside-$((%d+1))\n", i))
		x.Expect(t, fmt.Sprintf("outside-%d", i+1))
		x.Type(t, "fg\n")
		x.Type(t, fmt.Sprintf("echo back-$((%d+1))-$(id -u)\n", i))
		x.Expect(t, fmt.Sprintf("back-%d-0", i+1))
	}
	x.Type(t, "exit 5\n")
	x.Type(t, "exit $?\n")
	if r := p.Wait(t); r.Code != 5 {
		t.Errorf("%v\n%s", r, x.Output)
	}
}

func TestAHangupEndsTheGate(t *testing.T) {
	h := testenv.NewHost(t)
	before := trace(t, h)
	x, p := onTerminal(t, h, "gatekit", "--pidns", "sh", "-c", "echo started; exec sleep 60")
	x.Expect(t, "started")
	x.HangUp()
	if r := p.Wait(t); r.Code != 128+int(unix.SIGHUP) {
		t.Errorf("%v, want exit code 129", r)
	}
	h.NoTrace(t, before)
}

func TestWithoutATerminalTheStreamsAreTheCallers(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range processFlags {
		cmd := h.Command("gatekit", append(flags, "sh", "-c", "cat; echo error >&2; ! test -t 0")...)
		cmd.Stdin = strings.NewReader(strings.Repeat("line\n", 100_000))
		r := h.Run(t, cmd)
		if len(r.Stdout) != 500_000 || r.Stderr != "error\n" || r.Code != 0 {
			t.Errorf("%s: exit code %d, %d bytes of output, stderr %q", name, r.Code, len(r.Stdout), r.Stderr)
		}
	}
}
