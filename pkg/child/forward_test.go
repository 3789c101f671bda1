package child

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// counterEnv makes the test binary a command that counts SIGUSR1 until SIGUSR2
// comes, and prints the count.
const counterEnv = "GATEKIT_TEST_COUNT_SIGNALS"

func init() {
	if os.Getenv(counterEnv) == "" {
		return
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	fmt.Println("ready")
	n := 0
	for s := range signals {
		if s == syscall.SIGUSR2 {
			fmt.Println(n)
			os.Exit(0)
		}
		n++
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

func TestASignalThatCameToParentAndChildIsForwardedOnce(t *testing.T) {
	p, lines := counter(t)
	f := newForwarder()
	defer f.stop()
	f.received <- syscall.SIGUSR1 // as if sent to the whole process group
	f.start(p)
	// The next is taken when the first is done.
	f.received <- syscall.SIGURG
	for len(f.received) > 0 {
		runtime.Gosched()
	}
	f.fromParent(syscall.SIGUSR1)
	f.fromParent(syscall.SIGUSR2)
	if line, err := lines.ReadString('\n'); line != "1\n" {
		t.Errorf("the command got SIGUSR1 %q times, %v", line, err)
	}
}

func TestASignalOfTheParentsAloneIsForwarded(t *testing.T) {
	p, lines := counter(t)
	f := newForwarder()
	defer f.stop()
	f.start(p)
	f.fromParent(syscall.SIGUSR1)
	f.fromParent(syscall.SIGUSR2)
	if line, err := lines.ReadString('\n'); line != "1\n" {
		t.Errorf("the command got SIGUSR1 %q times, %v", line, err)
	}
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}
