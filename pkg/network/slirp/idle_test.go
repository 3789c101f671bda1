package slirp

import (
	"testing"
	"time"
)

func TestALoopLearnsHowLongToSpin(t *testing.T) {
	var i idleness
	for _, step := range []struct {
		name  string
		slept time.Duration
		want  time.Duration
	}{
		{"nothing soon", time.Second, 0},
		{"the first that came soon", maxSpin / 2, minSpin},
		{"the next", maxSpin / 2, 2 * minSpin},
		{"a longer sleep", maxSpin, minSpin},
		{"and another", time.Hour, 0},
	} {
		if i.learn(step.slept); i.spin != step.want {
			t.Fatalf("%s: it spins for %v, want %v", step.name, i.spin, step.want)
		}
	}
	for range 20 {
		i.learn(0)
	}
	if i.spin != maxSpin {
		t.Errorf("after many that came soon it spins for %v, want %v", i.spin, maxSpin)
	}
}

// A relay that gets work while its loop goes to sleep wakes it, and no other does.
func TestARelayWakesItsLoopOnlyWhenThatSleeps(t *testing.T) {
	woken := 0
	q := readyQueue{wake: func() { woken++ }}
	q.put(&relay{})
	if woken != 0 {
		t.Error("a loop at work was woken")
	}
	if q.sleep() {
		t.Error("it sleeps on work")
	}
	if n := len(q.take(nil)); n != 1 || !q.empty() {
		t.Errorf("took %d", n)
	}
	if !q.sleep() {
		t.Error("it does not sleep without work")
	}
	q.put(&relay{})
	q.put(&relay{})
	if woken != 1 {
		t.Errorf("woken %d times, want once", woken)
	}
	q.take(nil)
	q.sleep()
	q.awake()
	q.put(&relay{})
	if woken != 1 {
		t.Error("it was woken after it had woken by itself")
	}
}
