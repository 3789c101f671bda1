// Command gatekit runs a program as root in namespaces of its own, with a
// network, for a user without privileges.
//
// Started by a user it is the parent; executed again by the parent, in the new
// namespaces, it is the child. Nothing but flags is handled here.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/gatekit/gatekit/internal/flagnames"
	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/persona"
	"github.com/gatekit/gatekit/pkg/child"
	"github.com/gatekit/gatekit/pkg/parent"
)

// Exit codes of the gate itself; a command that ran has its own.
const (
	codeFailure = 1
	codeUsage   = 2
)

func main() {
	// A log line for which there is no reader any more is lost, and not the end of
	// the gate: unless SIGPIPE is asked for, Go's runtime dies of it on descriptors
	// 1 and 2. The command has its default action again.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if child.IsChild() {
		os.Exit(child.Main(child.Options{Logger: childLogger(os.Args[1:])}))
	}
	os.Exit(run(os.Args))
}

// run is the parent. It returns the exit code.
func run(args []string) int {
	p := persona.Of(args[0])
	// What the caller has open is not for the command (LISTEN_FDS apart, which
	// are passed on one by one).
	if err := linux.CloseOnExecFrom(3); err != nil {
		return fail(p, err)
	}
	// The parent hands work to the kernel's threads, and shares the processors
	// with both ends of its connections: with all of them it would be woken on
	// one to wait for the other. It takes half of what Go would, which knows the
	// limits of a cgroup, unless somebody has said how many.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
	app := newApp(p, func(o parent.Options) error {
		o.Signals = parent.ForwardableSignals()
		o.Stopped = parent.StopWithCommand
		return parent.Run(context.Background(), o)
	})
	err := app.Run(args)
	var exit *parent.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		return fail(p, err)
	case exit.Signal != 0:
		return p.SignalCode(exit.Signal)
	}
	return exit.Code
}

// fail prints one line and returns the exit code that goes with the error.
func fail(p persona.Persona, err error) int {
	line := strings.ReplaceAll(err.Error(), "\n", "; ")
	// That it is wrong usage shows in the exit code.
	line = strings.ReplaceAll(line, parent.ErrUsage.Error()+": ", "")
	fmt.Fprintln(os.Stderr, p.Gate+":", flagnames.Spell(persona.Gatekit.Gate, line))
	var start *parent.StartError
	switch {
	case errors.As(err, &start):
		return start.Code
	case errors.Is(err, parent.ErrUsage):
		return codeUsage
	}
	return codeFailure
}
