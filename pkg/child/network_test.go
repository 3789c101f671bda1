package child

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/moby/sys/user"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestPingSocketsAreForAllGroupsInside(t *testing.T) {
	for name, c := range map[string]struct {
		maps []user.IDMap
		want string
	}{
		"one id":                       {[]user.IDMap{{ID: 0, ParentID: 1000, Count: 1}}, "0 0"},
		"subordinate ids":              {[]user.IDMap{{ID: 0, ParentID: 1000, Count: 1}, {ID: 1, ParentID: 100000, Count: 65536}}, "0 65536"},
		"some are below the caller's":  {[]user.IDMap{{ID: 0, ParentID: 200000, Count: 1}, {ID: 1, ParentID: 100000, Count: 65536}}, "0 0"},
		"ranges that are not in order": {[]user.IDMap{{ID: 0, ParentID: 1000, Count: 1}, {ID: 1, ParentID: 500000, Count: 10}, {ID: 11, ParentID: 100000, Count: 65536}}, "0 10"},
	} {
		if got := pingGroups(c.maps); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// The main goroutine of a probe has the process's first thread until it is let go.
func init() { runtime.LockOSThread() }

// apart makes a detached network namespace from the first thread, and says where that
// and the other are.
var _ = testenv.Probe("apart", func([]string) int {
	jobs, started := make(chan job), make(chan error)
	go func() {
		if err := <-started; err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for _, dir := range []string{"/proc/self", "/proc/thread-self"} {
			j := job{do: func() error {
				name, err := os.Readlink(dir + "/ns/net")
				fmt.Println(name)
				return err
			}, done: make(chan error)}
			jobs <- j
			<-j.done
		}
		os.Exit(0)
	}()
	serveApart(nil, jobs, started)
	return 1
})

func TestTheFirstThreadStaysWhereTheChildIs(t *testing.T) {
	testenv.UserNS{Inner: func(t *testing.T) {
		own, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "apart")
		cmd.Args[0] = "probe"
		out, err := cmd.CombinedOutput()
		spaces := strings.Fields(string(out))
		if err != nil || len(spaces) != 2 || spaces[0] != own || spaces[1] == own {
			t.Errorf("the first thread and the other are in %q (%v), want the first in %s and the other not", out, err, own)
		}
	}}.Run(t)
}
