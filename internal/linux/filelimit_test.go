package linux_test

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/linux"
)

// The test runs itself again with a soft limit that is under the hard one, which Go
// raises at the start.
func TestTheFileLimitIsLoweredForAWhileByManyAtOnce(t *testing.T) {
	if os.Getenv("GATEKIT_TEST_LIMIT") == "" {
		cmd := exec.Command("sh", "-c", `ulimit -Sn 256 && exec "$0" "$@"`, "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Args[3] = self
		cmd.Env = append(os.Environ(), "GATEKIT_TEST_LIMIT=256")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	limit := func() uint64 {
		var l syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
			t.Fatal(err)
		}
		return l.Cur
	}
	raised := limit()
	done := make(chan struct{})
	for range 2 { // by two at once
		go func() {
			restore := linux.LowerFileLimit()
			if got := limit(); got != 256 {
				t.Errorf("the limit is lowered to %d, want 256", got)
			}
			restore()
			done <- struct{}{}
		}()
	}
	<-done
	<-done
	if got := limit(); got != raised || raised <= 256 {
		t.Errorf("the limit is %d after it was lowered, and was %d", got, raised)
	}
}
