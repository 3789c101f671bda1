package parent

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// ForwardableSignals are the signals for Options.Signals, to be asked for by
// signal.Notify: all but SIGCHLD, SIGPIPE and SIGURG, those that the C library and
// the Go runtime keep for themselves, and those that this process ignores, as it
// does SIGHUP under nohup(1).
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

// forwardSignals sends signals to the command. Before it runs, those that people
// and service managers end programs with end the gate, and the others are lost.
func (g *gate) forwardSignals(ctx context.Context) error {
	for {
		var sig syscall.Signal
		select {
		case s, ok := <-g.o.Signals:
			if !ok {
				return nil
			}
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
