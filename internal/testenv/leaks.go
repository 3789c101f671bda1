package testenv

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// leakPatience is how long a goroutine or descriptor may take to go after the
// last test.
const leakPatience = 5 * time.Second

// leaks reports the goroutines and descriptors that are left when the tests
// have ended. Both get some time to go: a goroutine that was told to end may
// not have run yet.
func leaks(before map[string]int) error {
	var left []string
	if Eventually(leakPatience, func() bool {
		left = append(strangers(), extra(before, descriptors())...)
		return len(left) == 0
	}) {
		return nil
	}
	return fmt.Errorf("testenv: left behind by the tests:\n%s", strings.Join(left, "\n"))
}

// strangers returns the stacks of the goroutines that are neither this one nor
// the runtime's and testing's own.
func strangers() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var out []string
	for i, g := range strings.Split(string(buf), "\n\n") {
		if i == 0 || ownedByRuntime(g) { // the first is the caller
			continue
		}
		out = append(out, g)
	}
	return out
}

func ownedByRuntime(stack string) bool {
	for _, known := range []string{
		"testing.(*M).", "testing.runFuzzing", "testing.tRunner.func",
		"os/signal.signal_recv", "os/signal.loop",
		"runtime.goexit0", "runtime.ensureSigM", "runtime/trace.",
		"created by runtime.gc", "created by runtime/pprof",
	} {
		if strings.Contains(stack, known) {
			return true
		}
	}
	return false
}

// descriptors counts the open descriptors of this process by what they refer
// to. What the Go runtime keeps open for itself is not counted.
func descriptors() map[string]int {
	count := map[string]int{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return count
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil { // the descriptor of the directory that was read
			continue
		}
		switch target {
		case "anon_inode:[eventpoll]", "anon_inode:[eventfd]":
			continue // the runtime's network poller
		}
		count[target]++
	}
	return count
}

// extra lists what is in after more often than in before.
func extra(before, after map[string]int) []string {
	var out []string
	for target, n := range after {
		if n > before[target] {
			out = append(out, fmt.Sprintf("descriptor of %s (%d more)", target, n-before[target]))
		}
	}
	return out
}
