package child

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
)

// forwarder passes signals on to the command, so that each comes once, whoever it
// was sent to.
//
// The parent gets a signal and sends it here. But one that is typed at a
// terminal, or sent to a process group or to all processes of a cgroup, comes to
// parent, child and command alike, and a command that counts its SIGINTs, or takes
// a second SIGTERM for impatience, must not get three. What a process is told of
// a signal (siginfo in sigaction(2)) names who sent it, and not to whom. So the
// child looks at what it gets itself, and from the two copies, or their absence,
// concludes where the signal went:
//
//	child's copy  parent's copy
//	typed         any            the command has it: not forwarded
//	yes           yes            the command has it
//	yes           no             sent to the child: forwarded
//	no            yes            sent to the parent: forwarded
//
// That is so while the command is where these two are (see process.beside). To one
// that is elsewhere the first of the copies is forwarded, at once.
//
// A copy waits for its twin before it is forwarded, in the order of coming. The
// parent's waits shortly, for kill(2) has sent the signal to all of a group before
// any of it runs, and a service manager kills the processes of a cgroup in a
// loop, within a millisecond; the child's waits for the parent to run and say so.
// A signal that is typed may be on its way for longer: the terminal's driver sends
// it, and who sees to that may be late.
//
// Where the two cannot be told apart, a copy too many is better than none: what
// came before the command ran is forwarded, and twins that come further apart than
// the wait are two signals.
//
// A command that was stopped, and the parent with it, is continued when the parent
// says so, whatever else it gets: a shell outside continues the gate's process group,
// and a shell that is the command has one of its own, and needs the terminal first.
type forwarder struct {
	received chan os.Signal // the child's own
	sent     chan os.Signal // the parent's
	resume   chan struct{}  // has room for one
	done     chan struct{}

	// The rest is run's.
	command process
	last    [2]map[os.Signal]time.Time // by side: when it last got a signal
	held    []heldCopy                 // those that wait for their twins
}

// side is who got a copy of a signal.
type side int

const (
	ofChild side = iota
	ofParent
)

// heldCopy is one copy of a signal, to be forwarded when it is due.
type heldCopy struct {
	signal os.Signal
	of     side
	due    time.Time
}

// The copies of one signal may lie apart, on a busy machine.
const (
	// sameTime is for how long the child's copy makes the parent's a twin.
	sameTime = time.Second

	// twinTime is how long the child's copy waits for the parent's, and the
	// parent's for one that is typed; a copy of the child's that comes within that
	// time of the parent's, which was forwarded, is its twin and late.
	twinTime = 300 * time.Millisecond

	// groupTime is how long the parent's waits for the child's else.
	groupTime = 50 * time.Millisecond
)

// newForwarder starts to catch signals. They wait until start.
func newForwarder() *forwarder {
	f := &forwarder{
		received: make(chan os.Signal, 64),
		sent:     make(chan os.Signal, 64),
		resume:   make(chan struct{}, 1),
		done:     make(chan struct{}),
		last:     [2]map[os.Signal]time.Time{{}, {}},
	}
	signal.Notify(f.received, linux.ForwardableSignals()...)
	return f
}

// start begins to forward to the command, which was just started. What the child
// got until now came before there was a command.
func (f *forwarder) start(command process) {
	f.command = command
	for len(f.received) > 0 {
		s := <-f.received
		f.last[ofChild][s] = time.Now()
		command.kill(s)
	}
	go f.run()
}

// stop ends the forwarding.
func (f *forwarder) stop() {
	signal.Stop(f.received)
	close(f.done)
}

// fromParent takes a signal that the parent sent. When the command is not
// collecting them, for it takes none, those over the buffer are lost, as
// pending signals of one number are in the kernel.
func (f *forwarder) fromParent(s syscall.Signal) {
	select {
	case f.sent <- s:
	default:
	}
}

// fromResumed takes it that the parent goes on, after it had stopped.
func (f *forwarder) fromResumed() {
	select {
	case f.resume <- struct{}{}:
	default: // it is under way
	}
}

func (f *forwarder) run() {
	timer := time.NewTimer(twinTime)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if len(f.held) > 0 {
			first := slices.MinFunc(f.held, func(a, b heldCopy) int { return a.due.Compare(b.due) })
			timer.Reset(time.Until(first.due))
			due = timer.C
		}
		select {
		case s := <-f.received:
			f.take(ofChild, s)
		case s := <-f.sent:
			f.take(ofParent, s)
		case <-due:
			f.release()
		case <-f.resume:
			f.command.kill(syscall.SIGCONT)
		case <-f.done:
			return
		}
	}
}

// take handles a copy of a signal.
func (f *forwarder) take(of side, s os.Signal) {
	now, twin := time.Now(), 1-of
	near := sameTime
	if twin == ofParent {
		near = twinTime
	}
	since := now.Sub(f.last[twin][s])
	f.last[of][s] = now
	switch {
	case f.drop(twin, s), of == ofChild && linux.IsTyped(s) && linux.InForeground():
		// The command has it.
	case since < near:
		// The twin was forwarded, or had one itself.
	case !f.command.beside():
		f.command.kill(s)
	default:
		f.hold(of, s, now)
	}
}

// drop drops the copies of s that wait, and says whether there were any.
func (f *forwarder) drop(of side, s os.Signal) bool {
	n := len(f.held)
	f.held = slices.DeleteFunc(f.held, func(c heldCopy) bool { return c.of == of && c.signal == s })
	return len(f.held) < n
}

// hold has a copy wait for its twin, behind those of the same side.
func (f *forwarder) hold(of side, s os.Signal, now time.Time) {
	wait := twinTime
	if of == ofParent && !(linux.IsTyped(s) && linux.InForeground()) {
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
func (f *forwarder) release() {
	now := time.Now()
	for len(f.received) > 0 {
		f.take(ofChild, <-f.received)
	}
	for len(f.sent) > 0 {
		f.take(ofParent, <-f.sent)
	}
	f.held = slices.DeleteFunc(f.held, func(c heldCopy) bool {
		over := !c.due.After(now)
		if over {
			f.command.kill(c.signal)
		}
		return over
	})
}
