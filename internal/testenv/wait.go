package testenv

import (
	"testing"
	"time"
)

// Patience is how long the waiters of this package wait. It is long because
// the machine may be busy; a passing test never waits that long.
const Patience = 30 * time.Second

// Eventually polls cond until it is true, and reports whether that happened
// within the timeout.
func Eventually(timeout time.Duration, cond func() bool) bool {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if cond() {
			return true
		}
		select {
		case <-deadline.C:
			return cond()
		case <-tick.C:
		}
	}
}

// Until polls cond until it is true and fails the test when that takes longer
// than Patience. what completes the sentence "waiting for ...".
func Until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !Eventually(Patience, cond) {
		t.Fatalf("gave up after %v waiting for %s", Patience, what)
	}
}
