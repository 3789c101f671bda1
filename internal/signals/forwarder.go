// Package signals passes signals on to a program that runs for another process, the
// front: to a gate's command, which runs for the gate's parent, and to what gatectl
// exec runs inside a gate.
package signals

import (
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
)

// Forwarder passes the front's signals on to the program, so that each comes once,
// whoever it was sent to.
//
// One that is typed at a terminal, or sent to a process group or to all processes of
// a cgroup, comes to the front and the program alike, and a program that counts its
// SIGINTs, or takes a second SIGTERM for impatience, must not get two. What a process
// is told of a signal (siginfo in sigaction(2)) names who sent it, and not to whom. So
// there is a third process in that process group and cgroup, the witness, and from the
// two copies, or their absence, it is concluded where the signal went. The child is the
// witness of a gate, and passes signals on; gatectl exec starts one of its own, and
// passes them on itself.
//
//	witness's copy  front's copy
//	typed           any           the program has it: not forwarded
//	yes             yes           the program has it
//	yes             no            sent to the witness: forwarded
//	no              yes           sent to the front: forwarded
//
// That is so while the program is where these two are (see beside). To one that is
// elsewhere the first of the copies is forwarded, at once.
//
// A copy waits for its twin before it is forwarded, in the order of coming. The
// front's waits shortly, for kill(2) has sent the signal to all of a group before
// any of it runs, and a service manager kills the processes of a cgroup in a
// loop, within a millisecond; the witness's waits for the front to run and say so.
// A signal that is typed may be on its way for longer: the terminal's driver sends
// it, and who sees to that may be late.
//
// Where the two cannot be told apart, a copy too many is better than none: what
// came before the program ran is forwarded, and twins that come further apart than
// the wait are two signals.
//
// A front that stops with its program (Stopping) is continued before it (Resume): a
// shell outside continues the front's process group, and a shell that is the program has
// one of its own, and needs the terminal first. So a SIGCONT waits for that. Copies wait
// as if no time had passed until then: the front's, of what has stopped the program, may
// not have been on its way yet.
type Forwarder struct {
	// Front and Witness take the copies, and have room for some. Those over that
	// may be lost, as pending signals of one number are in the kernel: who puts
	// them in does not wait.
	Front, Witness chan os.Signal

	calls   chan func()
	done    chan struct{}
	running sync.WaitGroup // run

	// The rest is run's.
	pid       int // of the program
	kill      func(syscall.Signal) error
	last      [2]map[os.Signal]time.Time // by side: when it last got a signal
	held      []heldCopy                 // those that wait for their twins
	stopping  time.Time                  // when Stopping was called; zero behind Resume
	continued [2]bool                    // by side: a SIGCONT waits for Resume
	spent     bool                       // the front's next SIGCONT is the one that continued it
}

// side is who got a copy of a signal.
type side int

const (
	ofWitness side = iota
	ofFront
)

// heldCopy is one copy of a signal, to be forwarded when it is due.
type heldCopy struct {
	signal os.Signal
	of     side
	due    time.Time
}

// The copies of one signal may lie apart, on a busy machine.
const (
	// sameTime is for how long the witness's copy waits for the front's, and makes it
	// a twin. The front is another process, which may not run for a while; who sends
	// to the witness alone can wait.
	sameTime = time.Second

	// twinTime is how long the front's waits for one that is typed; a copy of the
	// witness's that comes within that time of the front's, which was forwarded, is
	// its twin and late.
	twinTime = 300 * time.Millisecond

	// groupTime is how long the front's waits for the witness's else.
	groupTime = 50 * time.Millisecond
)

// New returns a Forwarder that forwards nothing yet: what its channels take waits.
func New() *Forwarder {
	return &Forwarder{
		Front:   make(chan os.Signal, 64),
		Witness: make(chan os.Signal, 64),
		calls:   make(chan func()),
		done:    make(chan struct{}),
		last:    [2]map[os.Signal]time.Time{{}, {}},
	}
}

// Start begins to forward to the program pid, which was just started, by kill. An error
// of kill's, that the program has ended, is no error here: its end is on its way. What
// came until now came before there was a program.
func (f *Forwarder) Start(pid int, kill func(syscall.Signal) error) {
	f.pid, f.kill = pid, kill
	for len(f.Witness) > 0 {
		f.early(ofWitness, <-f.Witness)
	}
	for len(f.Front) > 0 {
		f.early(ofFront, <-f.Front)
	}
	f.running.Go(f.run)
}

// Stop ends the forwarding, once.
func (f *Forwarder) Stop() {
	close(f.done)
	f.running.Wait()
}

// Stopping says that the program was stopped, and that the front may stop with it.
// Resume follows. Both are called between Start and Stop, by who waits for the program
// (linux.Wait), and who does not wait for it in between.
func (f *Forwarder) Stopping() {
	f.do(func() { f.stopping = time.Now() })
}

// Resume ends what Stopping began. If the front had stopped and goes on now, so does the
// program, unless it has already.
func (f *Forwarder) Resume(stopped bool) {
	still := linux.StillStopped(f.pid)
	f.do(func() { f.goOn(stopped, still) })
}

// do has run call what uses run's.
func (f *Forwarder) do(call func()) {
	select {
	case f.calls <- call:
	case <-f.done:
	}
}

func (f *Forwarder) run() {
	timer := time.NewTimer(twinTime)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if len(f.held) > 0 && f.stopping.IsZero() {
			first := slices.MinFunc(f.held, func(a, b heldCopy) int { return a.due.Compare(b.due) })
			timer.Reset(time.Until(first.due))
			due = timer.C
		}
		select {
		case s := <-f.Witness:
			f.take(ofWitness, s)
		case s := <-f.Front:
			f.take(ofFront, s)
		case <-due:
			f.release()
		case call := <-f.calls:
			call()
		case <-f.done:
			return
		}
	}
}

// early handles a copy that came before the program ran.
func (f *Forwarder) early(of side, s os.Signal) {
	if !f.late(of, s, time.Now()) {
		f.forward(s)
	}
}

// take handles a copy of a signal.
func (f *Forwarder) take(of side, s os.Signal) {
	switch {
	case s != syscall.SIGCONT:
	case of == ofFront && f.spent:
		f.spent = false
		return
	case !f.stopping.IsZero():
		f.continued[of] = true
		return
	}
	now := time.Now()
	late := f.late(of, s, now)
	switch {
	case f.drop(1-of, s), of == ofWitness && linux.IsTyped(s) && linux.InForeground():
		// The program has it.
	case late:
	case !beside(f.pid):
		f.forward(s)
	default:
		f.hold(of, s, now)
	}
}

// late notes a copy, and says whether its twin has been seen to: forwarded, or dropped
// for one of its own.
func (f *Forwarder) late(of side, s os.Signal, now time.Time) bool {
	near := sameTime
	if of == ofWitness {
		near = twinTime
	}
	f.last[of][s] = now
	return now.Sub(f.last[1-of][s]) < near
}

// goOn handles the front's going on, before the program if that is still stopped.
func (f *Forwarder) goOn(stopped, still bool) {
	f.postpone(f.stopping, time.Now())
	f.stopping = time.Time{}
	waited := f.continued
	f.continued = [2]bool{}
	if stopped {
		// The SIGCONT that has continued the front, and its copies, did what they were for.
		f.spent = !waited[ofFront]
		f.last[ofFront][syscall.SIGCONT] = time.Now()
		f.drop(ofFront, syscall.SIGCONT)
		f.drop(ofWitness, syscall.SIGCONT)
		if still {
			f.forward(syscall.SIGCONT)
		}
		return
	}
	for _, of := range []side{ofWitness, ofFront} {
		if waited[of] {
			f.take(of, syscall.SIGCONT)
		}
	}
}

// postpone sets all copies later by the time for which the front stood still, since
// then; those that came meanwhile come now.
func (f *Forwarder) postpone(then, now time.Time) {
	stood := now.Sub(then)
	earlier := func(a, b time.Time) time.Time {
		if a.Before(b) {
			return a
		}
		return b
	}
	for _, last := range f.last {
		for s, t := range last {
			last[s] = earlier(t.Add(stood), now)
		}
	}
	for i, c := range f.held {
		f.held[i].due = earlier(c.due.Add(stood), now.Add(sameTime))
	}
}

// forward sends the program a signal.
func (f *Forwarder) forward(s os.Signal) { _ = f.kill(s.(syscall.Signal)) }

// drop drops the copies of s that wait, and says whether there were any.
func (f *Forwarder) drop(of side, s os.Signal) bool {
	n := len(f.held)
	f.held = slices.DeleteFunc(f.held, func(c heldCopy) bool { return c.of == of && c.signal == s })
	return len(f.held) < n
}

// hold has a copy wait for its twin, behind those of the same side.
func (f *Forwarder) hold(of side, s os.Signal, now time.Time) {
	wait := sameTime
	switch {
	case of == ofWitness:
	case linux.IsTyped(s) && linux.InForeground():
		wait = twinTime
	default:
		wait = groupTime
	}
	due := now.Add(wait)
	for _, c := range f.held {
		if c.of == of && c.due.After(due) {
			due = c.due
		}
	}
	f.held = append(f.held, heldCopy{s, of, due})
}

// release forwards what has waited long enough. Twins that have come, but were
// not taken because this process did not run, are taken before.
func (f *Forwarder) release() {
	now := time.Now()
	for len(f.Witness) > 0 {
		f.take(ofWitness, <-f.Witness)
	}
	for len(f.Front) > 0 {
		f.take(ofFront, <-f.Front)
	}
	f.held = slices.DeleteFunc(f.held, func(c heldCopy) bool {
		over := !c.due.After(now)
		if over {
			f.forward(c.signal)
		}
		return over
	})
}
