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

// A call that comes while the loop goes to sleep wakes it, and no other does.
func TestACallWakesItsLoopOnlyWhenThatSleeps(t *testing.T) {
	woken := 0
	c := calls{wake: func() { woken++ }}
	nothing := func() {}
	c.put(nothing)
	if woken != 0 {
		t.Error("a loop at work was woken")
	}
	if c.sleep() {
		t.Error("it sleeps on work")
	}
	if n := len(c.take(nil)); n != 1 || !c.empty() {
		t.Errorf("took %d", n)
	}
	if !c.sleep() {
		t.Error("it does not sleep without work")
	}
	c.put(nothing)
	c.put(nothing)
	if woken != 1 {
		t.Errorf("woken %d times, want once", woken)
	}
	c.take(nil)
	c.sleep()
	c.awake()
	c.put(nothing)
	if woken != 1 {
		t.Error("it was woken after it had woken by itself")
	}
	if n := len(c.end()); n != 1 || c.put(nothing) {
		t.Errorf("%d calls are left at the end, and one more is taken", n)
	}
}
