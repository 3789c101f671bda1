package slirp

import (
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// alarms are the relays that have something to do at a time, the soonest first: a heap,
// in which each relay knows its place. A relay whose time has moved on stays where it is
// until the time that it had before, so that a stream does not stir it with every
// segment. One timer, of the next, wakes the loop.
type alarms struct {
	heap  []*relay
	timer tcpip.Timer
	at    time.Duration // when it goes off; 0 is not set
	wake  func()        // has at set to 0, on the loop
}

// alarm is a relay's place.
type alarm struct {
	at    time.Duration
	index int // plus one; 0 is none
}

// add has a relay called at a time, or sooner.
func (a *alarms) add(r *relay, at time.Duration) {
	switch {
	case r.alarm.index == 0:
		r.alarm.at = at
		a.heap = append(a.heap, r)
		a.up(len(a.heap) - 1)
	case at < r.alarm.at:
		r.alarm.at = at
		a.up(r.alarm.index - 1)
	}
}

// remove takes a relay out.
func (a *alarms) remove(r *relay) {
	if r.alarm.index == 0 {
		return
	}
	i, last := r.alarm.index-1, len(a.heap)-1
	moved := a.heap[last]
	a.heap[last] = nil
	a.heap = a.heap[:last]
	r.alarm = alarm{}
	if last == 0 {
		a.heap = nil
	}
	if i < last {
		a.heap[i] = moved
		a.down(i)
		a.up(moved.alarm.index - 1)
	}
}

// due takes out a relay whose time has come; nil is none.
func (a *alarms) due(now time.Duration) *relay {
	if len(a.heap) == 0 || a.heap[0].alarm.at > now {
		return nil
	}
	r := a.heap[0]
	a.remove(r)
	return r
}

// set has the loop woken for the first.
func (a *alarms) set(clock tcpip.Clock, now time.Duration) {
	if len(a.heap) == 0 {
		return
	}
	next := a.heap[0].alarm.at
	if a.at != 0 && a.at <= next {
		return
	}
	a.at = next
	if a.timer == nil {
		a.timer = clock.AfterFunc(next-now, a.wake)
		return
	}
	a.timer.Reset(next - now)
}

// stop ends the timer.
func (a *alarms) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// up and down put the relay at i where it belongs.

func (a *alarms) up(i int) {
	r := a.heap[i]
	for i > 0 {
		parent := (i - 1) / 2
		if a.heap[parent].alarm.at <= r.alarm.at {
			break
		}
		a.put(i, a.heap[parent])
		i = parent
	}
	a.put(i, r)
}

func (a *alarms) down(i int) {
	r := a.heap[i]
	for {
		child := 2*i + 1
		if child >= len(a.heap) {
			break
		}
		if child+1 < len(a.heap) && a.heap[child+1].alarm.at < a.heap[child].alarm.at {
			child++
		}
		if r.alarm.at <= a.heap[child].alarm.at {
			break
		}
		a.put(i, a.heap[child])
		i = child
	}
	a.put(i, r)
}

func (a *alarms) put(i int, r *relay) {
	a.heap[i] = r
	r.alarm.index = i + 1
}
