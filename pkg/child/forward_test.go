package child

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
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

// counter starts such a command.
func counter(t *testing.T) (process, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), counterEnv+"=1")
	var pidfd int
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
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

func TestASignalThatCameToParentAndChildIsForwardedOnce(t *testing.T) {
	p, lines := counter(t)
	f := newForwarder()
	defer f.stop()
	f.start(p)
	f.received <- syscall.SIGUSR1 // as if sent to the whole process group
	want(t, lines, "SIGUSR1")
	f.fromParent(syscall.SIGUSR1)
	f.fromParent(syscall.SIGUSR2)
	want(t, lines, "end")
}

func TestASignalOfTheParentsAloneIsForwarded(t *testing.T) {
	p, lines := counter(t)
	f := newForwarder()
	defer f.stop()
	f.start(p)
	f.fromParent(syscall.SIGUSR1)
	want(t, lines, "SIGUSR1")
	f.fromParent(syscall.SIGUSR2)
	want(t, lines, "end")
}
