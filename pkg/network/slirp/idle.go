package slirp

import (
	"runtime"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
)

// idleness decides what a loop does that has nothing to do. To sleep and be woken
// costs the two switches of a thread and, on an idle processor, the way out of
// its sleep, which a virtual machine pays for with an exit: together more than
// all else that a small packet needs. So a loop looks for a while whether there
// is more to do before it sleeps.
//
// For how long is learned, as KVM's halt polling does: as long as events come
// within maxSpin it is worth it; after a longer sleep it was not, and the
// spin is halved until it is none. A loop that nothing happens to sleeps, without
// a timer.
type idleness struct {
	spin   time.Duration // how long to look for work before sleeping
	rounds int           // since the loop last slept
}

const (
	maxSpin = 200 * time.Microsecond // KVM's default as well
	minSpin = 10 * time.Microsecond  // the first, and the last before none

	// yieldRounds is after how many rounds without a sleep the goroutines that
	// wait in Go's poller are let run.
	yieldRounds = 64
)

// await waits until there is something to do, and returns the events of
// descriptors among that.
func (l *loop) await(events []linux.Ready) (int, error) {
	if l.idle.rounds++; l.idle.rounds >= yieldRounds {
		l.idle.rounds = 0
		return l.epoll.Yield(events)
	}
	n, err := l.look(events)
	if n > 0 || err != nil || l.tcp != nil && !l.tcp.sleep() || !l.calls.sleep() {
		return n, err
	}
	l.idle.rounds = 0
	asleep := time.Now()
	n, err = l.epoll.Wait(events)
	l.calls.awake()
	l.idle.learn(time.Since(asleep))
	return n, err
}

// look looks for something to do, and spins while there is nothing.
func (l *loop) look(events []linux.Ready) (int, error) {
	n, err := l.epoll.Poll(events)
	if n > 0 || err != nil || l.idle.spin == 0 {
		return n, err
	}
	for began := time.Now(); l.calls.empty() && time.Since(began) < l.idle.spin; {
		runtime.Gosched()
		if n, err = l.epoll.Poll(events); n > 0 || err != nil {
			return n, err
		}
	}
	return 0, nil
}

// learn is told how long the loop slept after it had spun in vain.
func (i *idleness) learn(slept time.Duration) {
	switch {
	case slept < maxSpin:
		i.spin = min(maxSpin, max(minSpin, 2*i.spin))
	case i.spin <= minSpin:
		i.spin = 0
	default:
		i.spin /= 2
	}
}
