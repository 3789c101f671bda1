package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// usual are the namespaces of a gate with a network of its own.
const usual = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET

// startGateFor makes a gate with a child in new namespaces. The child is told
// of the state dir, so that exists first.
func startGateFor(t *testing.T, flags uintptr, environ ...string) *os.Process {
	t.Helper()
	home(t)
	stateDir := filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "state")
	child := startChild(t, flags, append(environ, "GATEKIT_STATE_DIR="+stateDir, "ROOTLESSKIT_PARENT_EUID=42")...)
	startGateAt(t, stateDir, child.Pid)
	t.Setenv("GATEKIT_STATE_DIR", stateDir)
	return child
}

// execIn runs gatectl exec and returns what came of it.
func execIn(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := gatectlCommand(t, append([]string{"exec"}, args...)...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func namespacesOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range []string{"user", "mnt", "net", "uts", "ipc", "pid"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		if err != nil {
			t.Fatal(err)
		}
		out[name] = link
	}
	return out
}

func TestExecJoinsTheNamespacesThatDiffer(t *testing.T) {
	for name, flags := range map[string]uintptr{
		"user and mount":              syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		"a network":                   usual,
		"a pid namespace":             usual | syscall.CLONE_NEWPID,
		"a pid namespace and more":    usual | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		"none, as from inside a gate": 0,
	} {
		t.Run(name, func(t *testing.T) {
			var child *os.Process
			if flags == 0 {
				child = startGateForPlain(t)
			} else {
				child = startGateFor(t, flags)
			}
			want := namespacesOf(t, child.Pid)
			stdout, stderr, code := execIn(t, "sh", "-c", `for n in user mnt net uts ipc pid; do echo $n $(readlink /proc/self/ns/$n); done; id -u; echo $$`)
			if code != 0 {
				t.Fatalf("code %d: %s", code, stderr)
			}
			lines := strings.Fields(stdout)
			for i := 0; i < 12; i += 2 {
				if want[lines[i]] != lines[i+1] {
					t.Errorf("namespace %s is %s, the child's %s", lines[i], lines[i+1], want[lines[i]])
				}
			}
			if flags != 0 && lines[12] != "0" {
				t.Errorf("uid %s, want 0", lines[12])
			}
			if pid, _ := strconv.Atoi(lines[13]); flags&syscall.CLONE_NEWPID != 0 && pid > 100 {
				t.Errorf("pid %d in a new pid namespace", pid)
			}
		})
	}
}

// startGateForPlain makes a gate whose child is in our own namespaces.
func startGateForPlain(t *testing.T) *os.Process {
	t.Helper()
	home(t)
	stateDir := filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "state")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1", "GATEKIT_STATE_DIR="+stateDir)
	child := startReady(t, cmd)
	startGateAt(t, stateDir, child.Pid)
	t.Setenv("GATEKIT_STATE_DIR", stateDir)
	return child
}

func TestExecEndsWithTheCodeOfTheProgram(t *testing.T) {
	startGateFor(t, usual|syscall.CLONE_NEWPID)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	strange := filepath.Join(t.TempDir(), "strange")
	if err := os.WriteFile(strange, []byte("\x00text"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args   []string
		code   int
		stderr string
	}{
		"success":                      {[]string{"true"}, 0, ""},
		"after a double dash":          {[]string{"--", "sh", "-c", "exit 7"}, 7, ""},
		"a flag of the program's":      {[]string{"sh", "-c", "exit 8", "--help"}, 8, ""},
		"a program called like one":    {[]string{"help"}, 127, "command not found: help is in no directory of PATH"},
		"killed":                       {[]string{"sh", "-c", "kill -KILL $$"}, 137, ""},
		"terminated":                   {[]string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		"not found in PATH":            {[]string{"no-such-program"}, 127, "command not found: no-such-program is in no directory of PATH"},
		"a path that is not there":     {[]string{"/no/such"}, 127, "/no/such: no such file"},
		"a file without the x bit":     {[]string{plain}, 126, "permission denied"},
		"a file that is not a program": {[]string{strange}, 126, "not a program"},
		"a directory":                  {[]string{"/"}, 126, "/: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, stderr, code := execIn(t, tc.args...)
			if code != tc.code || !strings.Contains(stderr, tc.stderr) || (tc.stderr == "") != (stderr == "") || strings.Count(stderr, "\n") > 1 {
				t.Errorf("code %d, stderr %q; want %d, %q", code, stderr, tc.code, tc.stderr)
			}
		})
	}
}

func TestExecLeavesTheProgramACleanProcess(t *testing.T) {
	child := startGateFor(t, usual)
	var limit unix.Rlimit
	if err := unix.Prlimit(child.Pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe() // what a careless caller leaves open
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	t.Setenv("GATECTL_TEST_OWN", "kept")
	t.Setenv("ROOTLESSKIT_PARENT_EUID", "the caller's")
	cmd := gatectlCommand(t, "exec", "sh", "-c", `
		ls /proc/$$/fd
		ulimit -S -n
		grep -E '^(CapEff|CapBnd|SigBlk|SigIgn)' /proc/self/status
		env`)
	cmd.ExtraFiles = []*os.File{r, w}
	// A limit of our own, which is not the one that Go raises.
	shell := exec.CommandContext(t.Context(), "sh", append([]string{"-c", `ulimit -S -n 333; exec "$0" "$@"`, "/proc/self/exe"}, cmd.Args[1:]...)...)
	shell.Env, shell.ExtraFiles = cmd.Env, cmd.ExtraFiles
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shell.Args[3] = self
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	if !strings.HasPrefix(text, "0\n1\n2\n333\n") {
		t.Errorf("descriptors and their limit are not 0 to 2 and 333:\n%.60s", text)
	}
	full := statusOf(t, child.Pid, "CapBnd")
	for _, want := range []string{
		"CapEff:\t" + full, "CapBnd:\t" + full, "SigBlk:\t0000000000000000",
		// What this process ignores itself is passed on: make has its children
		// ignore two signals of the C library's.
		"SigIgn:\t" + statusOf(t, os.Getpid(), "SigIgn"),
		"GATECTL_TEST_OWN=kept", "ROOTLESSKIT_PARENT_EUID=42",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "the caller's") {
		t.Error("a variable of the gate's is set twice")
	}
}

func statusOf(t *testing.T, pid int, key string) string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); name == key {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in the status of %d", key, pid)
	return ""
}

func TestExecStaysInTheDirectoryIfItIsThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "here")
	hidden := filepath.Join(t.TempDir(), "b", "hidden")
	for _, d := range []string{dir, hidden} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	startGateFor(t, usual, hideEnv+"="+hidden)
	for start, want := range map[string]string{dir: dir, hidden: "/"} {
		t.Chdir(start)
		if stdout, stderr, code := execIn(t, "sh", "-c", "unset PWD; pwd -P"); strings.TrimSpace(stdout) != want {
			t.Errorf("from %s: %q, %q, code %d, want %s", start, stdout, stderr, code, want)
		}
	}
}

func TestExecRefusesAProcessThatIsNotTheChild(t *testing.T) {
	home(t)
	stateDir := filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "state")
	child := startChild(t, usual, "GATEKIT_STATE_DIR=/another")
	startGateAt(t, stateDir, child.Pid)
	t.Setenv("GATEKIT_STATE_DIR", stateDir)
	if _, stderr, code := execIn(t, "true"); code != 1 || !strings.Contains(stderr, "is not the child of the gate") {
		t.Errorf("code %d, %q", code, stderr)
	}
	child.Kill()
	testenv.Until(t, "the child to die", func() bool { return !testenv.Alive(child.Pid) })
	if _, stderr, code := execIn(t, "true"); code != 1 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("a dead child: code %d, %q", code, stderr)
	}
}

// running is a gatectl exec that has said "ready".
type running struct {
	cmd    *exec.Cmd
	output *bufio.Reader
}

// startExec starts it in a process group of its own.
func startExec(t *testing.T, script string) running {
	t.Helper()
	cmd := gatectlCommand(t, "exec", "sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return running{cmd, bufio.NewReader(stdout)}
}

func (r running) line(t *testing.T) string {
	t.Helper()
	line, err := r.output.ReadString('\n')
	if err != nil {
		t.Fatalf("read %q: %v", line, err)
	}
	return strings.TrimSpace(line)
}

func TestExecRelaysSignals(t *testing.T) {
	startGateFor(t, usual|syscall.CLONE_NEWPID)
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1} {
		t.Run(unix.SignalName(s), func(t *testing.T) {
			r := startExec(t, fmt.Sprintf(`trap 'echo caught; exit 9' %d; echo ready; while :; do read line || :; done`, s))
			if line := r.line(t); line != "ready" {
				t.Fatal(line)
			}
			if err := r.cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if line := r.line(t); line != "caught" {
				t.Errorf("the program says %q", line)
			}
			r.cmd.Wait()
			if code := r.cmd.ProcessState.ExitCode(); code != 9 {
				t.Errorf("code %d", code)
			}
		})
	}
}

// What comes to gatectl's process group comes to the program, too.
func TestExecGivesTheProgramOnceWhatIsSentToAll(t *testing.T) {
	startGateFor(t, usual|syscall.CLONE_NEWPID)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGUSR1, 42} {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			// On a machine so busy that the witness does not run for a while, one may be
			// taken for two; not time after time.
			for range 3 {
				if signalAll(t, s) == 1 {
					return
				}
			}
			t.Error("the program has each signal twice")
		})
	}
}

// signalAll sends a signal to all of a process group with a gatectl exec, and returns how
// often the program has it.
func signalAll(t *testing.T, s syscall.Signal) (caught int) {
	t.Helper()
	r := startExec(t, fmt.Sprintf(`trap 'echo caught' %d; trap 'echo end; exit 0' 64; echo ready; while :; do read line || :; done`, s))
	r.line(t)
	if err := unix.Kill(-r.cmd.Process.Pid, s); err != nil {
		t.Fatal(err)
	}
	if line := r.line(t); line != "caught" {
		t.Fatal(line)
	}
	// It is forwarded behind what came before it, and seen to last by a shell.
	if err := r.cmd.Process.Signal(syscall.Signal(64)); err != nil {
		t.Fatal(err)
	}
	for caught = 1; r.line(t) == "caught"; caught++ {
	}
	if err := r.cmd.Wait(); err != nil {
		t.Error(err)
	}
	return caught
}

func TestTheProgramDiesWithGatectl(t *testing.T) {
	for name, flags := range map[string]uintptr{"in our pid namespace": usual, "in one of its own": usual | syscall.CLONE_NEWPID} {
		t.Run(name, func(t *testing.T) {
			startGateFor(t, flags)
			r := startExec(t, `echo ready; exec sleep 1000`)
			r.line(t)
			children := testenv.Children(r.cmd.Process.Pid)
			if len(children) != 2 {
				t.Fatalf("gatectl has the children %v, want the witness and the program", children)
			}
			t.Cleanup(func() {
				for _, pid := range children {
					if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); t.Failed() && err == nil {
						t.Logf("left:\n%s", status)
					}
				}
			})
			r.cmd.Process.Kill()
			testenv.Until(t, "both to die", func() bool { return !slices.ContainsFunc(children, testenv.Alive) })
		})
	}
}

// newTerminal makes a terminal for this user. A Host's is the same, but for the
// Host, which would ask for root.
func newTerminal(t *testing.T) *testenv.Terminal {
	t.Helper()
	h := &testenv.Host{User: &testenv.User{UID: uint32(os.Geteuid())}}
	return h.NewTerminal(t)
}

// startAt starts gatectl exec at a terminal.
func startAt(t *testing.T, terminal *testenv.Terminal, script string) *exec.Cmd {
	t.Helper()
	cmd := gatectlCommand(t, "exec", "sh", "-c", script)
	terminal.Attach(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

// A Ctrl-C reaches gatectl and the program; the program must count one. What could
// have been typed, but is sent to gatectl, reaches gatectl alone.
func TestAtATerminalTheProgramIsInTheForegroundAndGetsEachKeyOnce(t *testing.T) {
	startGateFor(t, usual|syscall.CLONE_NEWPID)
	terminal := newTerminal(t)
	cmd := startAt(t, terminal, `trap 'n=$((n+1)); echo INT $n' INT; trap 'echo QUIT' QUIT; trap 'echo END $n; exit 3' TERM; test -t 0 && echo terminal; while :; do read line; done`)
	terminal.Expect(t, "terminal")
	terminal.Type(t, "\x03")
	terminal.Expect(t, "INT 1")
	if err := cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	terminal.Expect(t, "QUIT")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	terminal.Expect(t, "END 1")
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("code %d, want 3", code)
	}
}

func TestAStoppedProgramStopsGatectl(t *testing.T) {
	startGateFor(t, usual|syscall.CLONE_NEWPID)
	terminal := newTerminal(t)
	cmd := startAt(t, terminal, `kill -STOP $$; echo continued; exit 4`)
	testenv.Until(t, "gatectl to stop", func() bool { return strings.HasPrefix(statusOf(t, cmd.Process.Pid, "State"), "T") })
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	terminal.Expect(t, "continued")
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 4 {
		t.Errorf("code %d, want 4", code)
	}
}
