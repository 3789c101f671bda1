package parent

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// ForwardableSignals are all signals for Options.Signals that can be sent on: those
// aside that are of no use to the command, SIGCHLD, SIGPIPE and SIGURG, those that the
// C library and the Go runtime keep for themselves, and those that this process
// ignores, as it does SIGHUP under nohup(1).
func ForwardableSignals() []os.Signal { return linux.ForwardableSignals() }

// StopWithCommand is for Options.Stopped in a program with a terminal: it stops this
// process as the command was stopped, so that the shell which waits for it gets the
// terminal, and returns true once that has continued it. Without a terminal it
// returns false at once.
func StopWithCommand(syscall.Signal) bool { return linux.StopWithCommand() }

// earlySignal is a signal that came before the command ran.
type earlySignal syscall.Signal

func (s earlySignal) Error() string {
	return fmt.Sprintf("got %s before the command ran", unix.SignalName(syscall.Signal(s)))
}

// notifySignals asks for the signals of Options.Signals, until stop is called.
func (g *gate) notifySignals() (stop func()) {
	if len(g.o.Signals) == 0 { // to signal.Notify that would be all
		return func() {}
	}
	g.signals = make(chan os.Signal, 64) // what the command does not keep up with is lost
	signal.Notify(g.signals, g.o.Signals...)
	return func() { signal.Stop(g.signals) }
}

// forwardSignals sends signals to the command. Before it runs, those that people
// and service managers end programs with end the gate, and the others are lost.
func (g *gate) forwardSignals(ctx context.Context) error {
	for {
		var sig syscall.Signal
		select {
		case s := <-g.signals:
			sig = s.(syscall.Signal)
		case <-ctx.Done():
			return nil
		}
		if g.running.Load() {
			if err := g.session.signal(sig); err != nil {
				return err
			}
			continue
		}
		switch sig {
		case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT:
			return earlySignal(sig)
		}
	}
}
