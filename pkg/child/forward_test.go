package child

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// counterEnv makes the test binary a command that prints a line for each SIGUSR1
// until SIGUSR2 comes.
const counterEnv = "GATEKIT_TEST_PRINT_SIGNALS"

func init() {
	if os.Getenv(counterEnv) == "" {
		return
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	fmt.Println("ready")
	for s := range signals {
		if s == syscall.SIGUSR2 {
			fmt.Println("end")
			os.Exit(0)
		}
		fmt.Println("SIGUSR1")
	}
}

// counter starts such a command, in a process group of its own if apart.
func counter(t *testing.T, apart bool) (process, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), counterEnv+"=1")
	var pidfd int
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd, Setpgid: apart}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		unix.Close(pidfd)
	})
	if err := out.(*os.File).SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return process{pid: cmd.Process.Pid, pidfd: pidfd}, lines
}

// want reads a line from the command.
func want(t *testing.T, lines *bufio.Reader, line string) {
	t.Helper()
	if got, err := lines.ReadString('\n'); got != line+"\n" {
		t.Errorf("the command printed %q, %v; want %q", got, err, line)
	}
}

func TestASignalIsForwardedWhereTheCommandDoesNotHaveIt(t *testing.T) {
	child := func(f *forwarder) { f.received <- syscall.SIGUSR1 }
	parent := func(f *forwarder) { f.fromParent(syscall.SIGUSR1) }
	for name, c := range map[string]struct {
		apart bool // the command has a process group of its own
		early bool // it came before the command ran
		sent  []func(*forwarder)
		want  int
	}{
		"the parent's":                  {sent: []func(*forwarder){parent}, want: 1},
		"the child's":                   {sent: []func(*forwarder){child}, want: 1},
		"the group's":                   {sent: []func(*forwarder){child, parent}},
		"the group's, the parent first": {sent: []func(*forwarder){parent, child}},
		"the group's and the parent's, as timeout(1)": {sent: []func(*forwarder){parent, child, parent}},
		"that of a group it left":                     {apart: true, sent: []func(*forwarder){child, parent}, want: 1},
		"that of a group it left, the parent first":   {apart: true, sent: []func(*forwarder){parent, child}, want: 1},
		"the group's, too early":                      {early: true, sent: []func(*forwarder){child, parent}, want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, lines := counter(t, c.apart)
			f := newForwarder()
			defer f.stop()
			if c.early {
				c.sent[0](f)
				c.sent = c.sent[1:]
			}
			f.start(p)
			for _, send := range c.sent {
				send(f)
			}
			for range c.want {
				want(t, lines, "SIGUSR1")
			}
			// Waits for the parent's copy as long as the child's of before.
			f.received <- syscall.SIGUSR2
			want(t, lines, "end")
		})
	}
}

// A typed signal of the parent's waits for longer than those that come after it.
func TestCopiesOfOneSideAreForwardedInTheirOrder(t *testing.T) {
	f := newForwarder()
	defer f.stop()
	now := time.Now()
	f.hold(ofParent, syscall.SIGUSR1, now.Add(time.Second))
	f.hold(ofParent, syscall.SIGUSR2, now)
	if first, second := f.held[0].due, f.held[1].due; second.Before(first) {
		t.Errorf("the second is due %v before the first", first.Sub(second))
	}
}

func TestACommandIsWithinTheCgroupsOfTheGate(t *testing.T) {
	for name, c := range map[string]struct {
		own, its []string
		want     bool
	}{
		"the same":               {[]string{"0::/a"}, []string{"0::/a"}, true},
		"below":                  {[]string{"0::/a"}, []string{"0::/a/b"}, true},
		"below the root":         {[]string{"0::/"}, []string{"0::/b"}, true},
		"beside":                 {[]string{"0::/a"}, []string{"0::/ab"}, false},
		"above":                  {[]string{"0::/a/b"}, []string{"0::/a"}, false},
		"elsewhere in version 1": {[]string{"1:cpu:/a", "0::/"}, []string{"1:cpu:/b", "0::/"}, false},
		"not to be read":         {[]string{"0::/a"}, nil, true},
	} {
		if got := withinCgroups(c.own, c.its); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
