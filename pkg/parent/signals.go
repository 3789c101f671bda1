package parent

import (
	"context"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

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
