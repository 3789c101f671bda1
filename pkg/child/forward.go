package child

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
)

// forwarder passes signals on to the command: one that is typed at the terminal,
// or sent to the parent or the child, comes once.
//
// The parent gets a signal and sends it here. But one that is typed at a
// terminal, or sent to a process group or a whole cgroup, comes to parent, child
// and command alike, and a command that counts its SIGINTs must not get three.
// So the child looks at what it gets itself:
//
//	typed at the terminal       the command has it: not forwarded
//	any other                   forwarded
//
// and a signal that the parent sends is dropped when the child got it itself at
// about the same time. How often does not matter: the kernel makes one of several
// that are pending. A signal does not tell whether it was sent to the child alone,
// so one that is sent to all three comes to the command twice: by itself and from
// the child. The two come by different ways, so the parent's, when it is
// one that a terminal sends and we are in the foreground, waits a moment for its
// twin.
//
// A command that was stopped, and the parent with it, is continued when the parent
// says so, whatever else it gets: a shell outside continues the gate's process group,
// and a shell that is the command has one of its own, and needs the terminal first.
type forwarder struct {
	received chan os.Signal // the child's own
	sent     chan os.Signal // the parent's
	resume   chan struct{}  // has room for one
	done     chan struct{}
}

// The two copies of one signal may lie apart, on a busy machine. A copy of the
// child's own counts for sameTime; the parent's waits for it, when it must come
// if it comes, for twinTime.
const (
	sameTime = time.Second
	twinTime = 300 * time.Millisecond
)

// newForwarder starts to catch signals. They wait until start.
func newForwarder() *forwarder {
	f := &forwarder{
		received: make(chan os.Signal, 64),
		sent:     make(chan os.Signal, 64),
		resume:   make(chan struct{}, 1),
		done:     make(chan struct{}),
	}
	signal.Notify(f.received, linux.ForwardableSignals()...)
	return f
}

// start begins to forward to the command.
func (f *forwarder) start(command process) { go f.run(command) }

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

func (f *forwarder) run(command process) {
	own := make(map[os.Signal]time.Time) // when the child last got it itself
	for {
		select {
		case s := <-f.received:
			f.take(command, s, own)
		case s := <-f.sent:
			if linux.IsTyped(s) && linux.InForeground() {
				f.awaitTwin(command, s, own)
			}
			if at, ok := own[s]; ok && time.Since(at) < sameTime {
				continue
			}
			command.kill(s)
		case <-f.resume:
			command.kill(syscall.SIGCONT)
		case <-f.done:
			return
		}
	}
}

// take handles a signal that the child got itself.
func (f *forwarder) take(command process, s os.Signal, own map[os.Signal]time.Time) {
	own[s] = time.Now()
	if !linux.IsTyped(s) || !linux.InForeground() {
		command.kill(s)
	}
}

// awaitTwin waits a moment for the child's own copy of s.
func (f *forwarder) awaitTwin(command process, s os.Signal, own map[os.Signal]time.Time) {
	if at, ok := own[s]; ok && time.Since(at) < sameTime {
		return
	}
	timeout := time.NewTimer(twinTime)
	defer timeout.Stop()
	for {
		select {
		case r := <-f.received:
			f.take(command, r, own)
			if r == s {
				return
			}
		case <-timeout.C:
			return
		case <-f.done:
			return
		}
	}
}
