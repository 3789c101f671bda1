package signals

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
)

// counterEnv makes the test binary a program that prints a line for each SIGUSR1
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

// counter starts such a program, in a process group of its own if apart.
func counter(t *testing.T, apart bool) (*os.Process, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), counterEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: apart}
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
	})
	if err := out.(*os.File).SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return cmd.Process, lines
}

// want reads a line from the program.
func want(t *testing.T, lines *bufio.Reader, line string) {
	t.Helper()
	if got, err := lines.ReadString('\n'); got != line+"\n" {
		t.Errorf("the program printed %q, %v; want %q", got, err, line)
	}
}

// waitForStop waits until a child has stopped.
func waitForStop(t *testing.T, pid int) {
	t.Helper()
	if _, status, err := linux.Wait(pid); err != nil || !status.Stopped() {
		t.Fatalf("the program is to stop: status %v, %v", status, err)
	}
}

func TestASignalIsForwardedWhereTheProgramDoesNotHaveIt(t *testing.T) {
	witness := func(f *Forwarder) { f.Witness <- syscall.SIGUSR1 }
	front := func(f *Forwarder) { f.Front <- syscall.SIGUSR1 }
	type sends = []func(*Forwarder)
	for name, c := range map[string]struct {
		apart bool // the program has a process group of its own
		early int  // how many came before the program ran
		sent  sends
		want  int
	}{
		"the front's":                  {sent: sends{front}, want: 1},
		"the witness's":                {sent: sends{witness}, want: 1},
		"the group's":                  {sent: sends{witness, front}},
		"the group's, the front first": {sent: sends{front, witness}},
		"the group's and the front's, as timeout(1)": {sent: sends{front, witness, front}},
		"that of a group it left":                    {apart: true, sent: sends{witness, front}, want: 1},
		"that of a group it left, the front first":   {apart: true, sent: sends{front, witness}, want: 1},
		"the group's, early":                         {early: 2, sent: sends{witness, front}, want: 1},
		"the group's, half of it early":              {early: 1, sent: sends{witness, front}, want: 1},
		"the group's, the front's early":             {early: 1, sent: sends{front, witness}, want: 1},
		"the front's, early":                         {early: 1, sent: sends{front}, want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, lines := counter(t, c.apart)
			f := New()
			for _, send := range c.sent[:c.early] {
				send(f)
			}
			f.Start(p.Pid, func(s syscall.Signal) error { return p.Signal(s) })
			defer f.Stop()
			for _, send := range c.sent[c.early:] {
				send(f)
			}
			for range c.want {
				want(t, lines, "SIGUSR1")
			}
			// Waits for the front's copy as long as the witness's of before.
			f.Witness <- syscall.SIGUSR2
			want(t, lines, "end")
		})
	}
}

func TestAProgramIsContinuedOnce(t *testing.T) {
	p, _ := counter(t, false)
	var got []syscall.Signal
	f := New()
	f.Start(p.Pid, func(s syscall.Signal) error {
		got = append(got, s)
		return p.Signal(s)
	})
	send := func(signals ...syscall.Signal) {
		for _, s := range signals {
			if err := p.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(syscall.SIGSTOP)
	for _, meanwhile := range [][]syscall.Signal{
		{syscall.SIGCONT, syscall.SIGSTOP}, // the front is to stop once more, too
		{syscall.SIGCONT},                  // with which the front was continued
	} {
		waitForStop(t, p.Pid)
		f.Stopping()
		send(meanwhile...)
		f.Resume(true)
		f.Front <- syscall.SIGCONT // with which the front was continued
	}
	send(syscall.SIGSTOP)
	waitForStop(t, p.Pid)
	f.Stopping()
	f.Resume(true)
	testenv.Until(t, "the program to go on", func() bool { return !linux.StillStopped(p.Pid) })
	f.Front <- syscall.SIGCONT
	f.Front <- syscall.SIGUSR2
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	f.Stop()
	if want := []syscall.Signal{syscall.SIGCONT, syscall.SIGUSR2}; !slices.Equal(got, want) {
		t.Errorf("the program was sent %v, want %v", got, want)
	}
}

// A shell that is the program has a process group of its own, and reads from the
// terminal as soon as it goes on: it must have that by then.
func TestAProgramIsContinuedBehindItsFront(t *testing.T) {
	for name, c := range map[string]struct {
		stopped bool // so was the front
		from    []side
		want    []syscall.Signal
	}{
		"the front's":              {true, []side{ofFront}, []syscall.Signal{syscall.SIGUSR1, syscall.SIGCONT, syscall.SIGUSR2}},
		"the witness's":            {true, []side{ofWitness}, []syscall.Signal{syscall.SIGUSR1, syscall.SIGCONT, syscall.SIGUSR2}},
		"both":                     {true, []side{ofFront, ofWitness}, []syscall.Signal{syscall.SIGUSR1, syscall.SIGCONT, syscall.SIGUSR2}},
		"no front's that stopped":  {false, []side{ofFront}, []syscall.Signal{syscall.SIGUSR1, syscall.SIGCONT, syscall.SIGUSR2}},
		"none, with a front as is": {false, nil, []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _ := counter(t, true)
			sent := make(chan syscall.Signal, 16)
			f := New()
			f.Start(p.Pid, func(s syscall.Signal) error {
				sent <- s
				return p.Signal(s)
			})
			defer f.Stop()
			if err := p.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			waitForStop(t, p.Pid)
			f.Stopping()
			for _, of := range c.from {
				[]chan os.Signal{f.Witness, f.Front}[of] <- syscall.SIGCONT
				testenv.Until(t, "the Forwarder to take it", func() bool { return len(f.Witness)+len(f.Front) == 0 })
			}
			f.Front <- syscall.SIGUSR1
			got := []syscall.Signal{<-sent}
			f.Resume(c.stopped)
			f.Witness <- syscall.SIGUSR2
			for got[len(got)-1] != syscall.SIGUSR2 {
				got = append(got, <-sent)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("the program was sent %v, want %v", got, c.want)
			}
		})
	}
}

// What stops a program stops its front, maybe before that can say what it got.
func TestCopiesWaitWhileTheFrontStandsStill(t *testing.T) {
	const stood = time.Hour
	f := New()
	now := time.Now()
	f.last[ofWitness][syscall.SIGTSTP] = now.Add(-stood - sameTime/2)
	f.last[ofWitness][syscall.SIGTERM] = now.Add(-stood / 2)
	f.held = []heldCopy{
		{syscall.SIGTSTP, ofWitness, now.Add(-stood + sameTime/2)},
		{syscall.SIGTERM, ofWitness, now.Add(-stood / 2)},
	}
	f.postpone(now.Add(-stood), now)
	if !f.late(ofFront, syscall.SIGTSTP, now) {
		t.Error("what stopped the program is forwarded once more when the front goes on")
	}
	if got := f.last[ofWitness][syscall.SIGTERM]; got.After(now) {
		t.Errorf("what came while the front stood still came %v from now", got.Sub(now))
	}
	for i, want := range []time.Duration{sameTime / 2, sameTime} {
		if got := f.held[i].due.Sub(now); got != want {
			t.Errorf("copy %d waits for %v, want %v", i, got, want)
		}
	}
}

// A typed signal of the front's waits for longer than those that come after it.
func TestCopiesOfOneSideAreForwardedInTheirOrder(t *testing.T) {
	f := New()
	now := time.Now()
	f.hold(ofFront, syscall.SIGUSR1, now.Add(time.Second))
	f.hold(ofFront, syscall.SIGUSR2, now)
	if first, second := f.held[0].due, f.held[1].due; second.Before(first) {
		t.Errorf("the second is due %v before the first", first.Sub(second))
	}
}

// A front that does not run for a while says late what it got. The witness's copy waits
// for as long as that is taken for its twin.
func TestACopyIsForwardedOnlyWhenItsTwinWouldBeAnother(t *testing.T) {
	f := New()
	now := time.Now()
	if f.late(ofWitness, syscall.SIGTERM, now) {
		t.Error("the first copy has a twin")
	}
	f.hold(ofWitness, syscall.SIGTERM, now)
	if due := f.held[0].due; f.late(ofFront, syscall.SIGTERM, due) || !f.late(ofFront, syscall.SIGTERM, due.Add(-1)) {
		t.Errorf("the witness's copy is forwarded after %v, when the front's is not yet, or no longer, its twin", due.Sub(now))
	}
}

func TestAProgramIsWithinTheCgroupsOfItsFront(t *testing.T) {
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
