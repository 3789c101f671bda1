// Package parent is the host side of the gate: it maps ids, holds the state dir,
// starts the child in new namespaces, and runs the network driver, the port
// driver and the API until the command ends.
//
// Run is the whole life of a gate:
//
//	options, host      what would fail is said now, with its remedy
//	state dir          made and locked; resolv.conf and hosts written
//	child              executed in new namespaces; ids mapped meanwhile
//	parts              network driver, port driver, API: each a Run(ctx) in one
//	                   errgroup, started as the child reports what they need
//	command            runs, once all parts do
//	end                the first of: the command's end, a part's error, a signal
//	                   before the command runs, the caller's context
//
// One deferred teardown undoes what was done, in reverse order, on every path.
//
// What goes wrong is an error of Run, and what is worth a line goes to the Logger that
// was given. Both name the field of options that is wrong, or that mends it, package
// and all, as parent.Options.SingleID: a program with flags puts these in its place.
// Gates in one process know nothing of each other.
package parent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/handshake"
	"github.com/gatekit/gatekit/internal/statedir"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/port"
	"github.com/gatekit/gatekit/pkg/port/auto"
)

// ExitError is the error of a gate that did its work, and whose command did not end
// with code 0.
type ExitError struct {
	// Code is the command's exit code, 1 to 255; 0 where a signal ended it.
	Code int

	// Signal is the signal that ended the command, or the gate before the command
	// ran. 0 is none.
	Signal syscall.Signal
}

// Error says how the command ended.
func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return "the command was ended by " + unix.SignalName(e.Signal)
	}
	return fmt.Sprintf("the command ended with exit code %d", e.Code)
}

// Status is the exit code for a program that ends as its command did, as shells
// number it: 128 and the signal's number where there was a signal.
func (e *ExitError) Status() int {
	if e.Signal != 0 {
		return 128 + int(e.Signal)
	}
	return e.Code
}

// StartError is the error of a command that cannot be started.
type StartError struct {
	// Reason is one line that names the command.
	Reason string

	// Code is 127 for a command that cannot be found, and 126 for one that cannot be
	// executed, as shells number them.
	Code int
}

// Error is the reason.
func (e *StartError) Error() string { return e.Reason }

// Run runs a gate until its command ends, and returns nil when that ended with code
// 0, as exec.Cmd's Run does. The error is an *ExitError when the command ended in
// another way. All others are of the gate itself: one wraps ErrUsage when the options
// can never work, and is a *StartError when there is no such command. Whatever it
// returns, nothing of the gate is left.
//
// When ctx is done the command gets SIGTERM, and SIGKILL after StopTimeout; the
// error is the context's cause.
func Run(ctx context.Context, o Options) error {
	o.setDefaults()
	g := &gate{o: &o}
	defer g.closeListenFiles()
	defer g.notifySignals()()
	if err := o.Validate(); err != nil {
		return err
	}
	if err := g.checkHost(ctx); err != nil {
		return err
	}
	exit, err := g.run(ctx)
	if err == nil && exit != (ExitError{}) {
		err = &exit
	}
	return err
}

// gate is a gate at run time.
type gate struct {
	o       *Options
	ids     idMaps
	dir     *statedir.Dir
	joined  *network.Namespaces // nil where the gate makes its own
	child   *process
	session *session
	ports   port.Driver // nil without one, as are ledger and auto
	ledger  *ledger
	auto    *auto.Publisher
	notify  *notifier      // nil without one
	signals chan os.Signal // nil where none are asked for

	running atomic.Bool // the command was let go
	stop    sync.Once   // of stopCommand
}

// checker is what a network driver may implement to look at the host before
// anything is made.
type checker interface{ Check() error }

// checkHost finds what would fail on this host, while nothing has been made.
func (g *gate) checkHost(ctx context.Context) (err error) {
	caller := currentCaller("/proc")
	if g.o.mapsIDs() {
		if err := checkUserNamespaces("/proc", caller); err != nil {
			return err
		}
		if g.ids, err = g.o.idMaps(ctx, caller); err != nil {
			return err
		}
	}
	if c, ok := g.o.Network.(checker); ok {
		if err := c.Check(); err != nil {
			return err
		}
	}
	if caller.realRoot() {
		g.o.Logger.Warn("started by root: what runs inside is safer when an unprivileged user starts the gate")
		if g.ids.denySetgroups && !g.o.SingleID {
			g.o.Logger.Warn("root has no subordinate ids, so it is alone inside, as with parent.Options.SingleID")
		}
	}
	return nil
}

// run makes the gate, runs it, and takes it down.
func (g *gate) run(ctx context.Context) (exit ExitError, err error) {
	g.dir, err = statedir.Create(statedir.Options{Path: g.o.StateDir, Name: g.o.Name})
	if err != nil {
		return exit, err
	}
	defer func() { err = errors.Join(err, g.dir.Close()) }()
	if !g.o.RestorePorts {
		// What an earlier gate left is over, and nothing is for a later one, but
		// after a kill.
		if err := removePorts(g.dir.Ports()); err != nil {
			return exit, err
		}
		defer func() { err = errors.Join(err, removePorts(g.dir.Ports())) }()
	}
	if unlisted := g.dir.Unlisted(); unlisted != nil {
		g.o.Logger.Warn("gatectl list will not show this gate", "reason", unlisted)
	}
	if err := g.writeEtcFiles(); err != nil {
		return exit, err
	}
	env := g.o.Env
	if g.o.Network.Plan().Namespace && !g.o.DetachNetNS {
		if g.notify, env, err = newNotifier(env, g.dir.Notify(), g.o.Logger); err != nil {
			return exit, err
		}
		if g.notify != nil {
			defer g.notify.close()
		}
	}
	g.o.Env = environment(env, g.o.EnvPrefixes, g.dir.Path())
	if j, ok := g.o.Network.(network.Joiner); ok {
		if g.joined, err = j.Join(ctx, g.ids.write); err != nil {
			return exit, err
		}
		defer func() { err = errors.Join(err, g.joined.Leave()) }()
		if g.joined.Shared {
			g.o.CreatePIDNS, g.o.Reaper = true, &g.o.CreatePIDNS
		}
		g.ids = idMaps{} // they are mapped
	}
	var conn *handshake.Conn
	if g.child, conn, err = launch(g.o, g.joined); err != nil {
		return exit, err
	}
	g.o.Logger.Debug("the child runs in its namespaces", "pid", g.child.Pid, "stateDir", g.dir.Path())
	moveBack := func() {} // once the child is gone
	defer func() { moveBack() }()
	g.session = newSession(conn, g.o.Stopped)
	defer func() {
		err = errors.Join(err, g.child.end())
		g.session.close()
	}()
	if name := g.o.EvacuateCgroup2; name != "" {
		moveBack, err = evacuateCgroup2(g.o.Logger, name, os.Getpid(), g.child.Pid)
		if err != nil {
			return exit, err
		}
	}
	return g.supervise(ctx)
}

// deathPatience is how long the child may take to end after its channel has.
const deathPatience = 5 * time.Second

// errEnded ends the parts when the command has ended.
var errEnded = errors.New("the command ended")

// supervise runs the parts, starts the command and waits for the first end. The
// parts outlive ctx while the command is asked to end: it may need the network
// for that.
func (g *gate) supervise(ctx context.Context) (ExitError, error) {
	parts, partsCtx := errgroup.WithContext(context.WithoutCancel(ctx))
	parts.Go(func() error { return g.start(partsCtx, parts) })
	parts.Go(func() error { return g.watch(ctx, partsCtx) })
	if g.signals != nil {
		parts.Go(func() error { return g.forwardSignals(partsCtx) })
	}
	if g.notify != nil {
		parts.Go(func() error { return g.notify.run(partsCtx) })
	}
	err := parts.Wait()
	if errors.Is(err, errChildGone) {
		err = g.outcome() // a part may see the end before watch does, and not why
	}
	var early earlySignal
	switch {
	case errors.Is(err, errEnded):
		e := g.session.exit
		return ExitError{Code: e.Code, Signal: syscall.Signal(e.Signal)}, nil
	case errors.As(err, &early):
		return ExitError{Signal: syscall.Signal(early)}, nil
	case errors.Is(err, errChildGone):
		g.session.conn.Close()
		err = g.child.death(deathPatience)
	}
	// A part has failed, or the caller gave up: the command did not end yet.
	g.stopCommand()
	return ExitError{}, err
}

// watch returns when the command or the child has ended, or the caller wants
// the gate to end.
func (g *gate) watch(ctx, partsCtx context.Context) error {
	select {
	case <-g.session.done:
	case <-partsCtx.Done():
		return nil
	case <-ctx.Done():
		g.stopCommand()
		return context.Cause(ctx)
	}
	return g.outcome()
}

// outcome waits for the session's end and says why it came: errEnded when the
// command has ended, errChildGone when the child died without a word.
func (g *gate) outcome() error {
	<-g.session.done
	if g.session.exit != nil {
		return errEnded
	}
	var failure *handshake.Failure
	if errors.As(g.session.err, &failure) {
		if failure.Code > 1 {
			return &StartError{failure.Reason, failure.Code}
		}
		return errors.New(failure.Reason)
	}
	return g.session.err
}

// stopCommand asks the command, if it runs, to end, and waits for that, for a
// while.
func (g *gate) stopCommand() { g.stop.Do(g.askToEnd) }

func (g *gate) askToEnd() {
	if !g.running.Load() || g.session.signal(syscall.SIGTERM) != nil {
		return
	}
	timeout := time.NewTimer(g.o.StopTimeout)
	defer timeout.Stop()
	select {
	case <-g.session.done:
	case <-timeout.C:
		g.o.Logger.Warn("the command did not end after SIGTERM; killing it", "timeout", g.o.StopTimeout)
	}
}

// start brings up the parts in the order in which they need each other, and then
// lets the command go.
func (g *gate) start(ctx context.Context, parts *errgroup.Group) error {
	setup, err := g.setup().File()
	if err != nil {
		return err
	}
	defer setup.Close()
	files := []*os.File{setup}
	if g.joined != nil && g.o.DetachNetNS {
		files = append(files, g.joined.Net)
	}
	if err := g.session.send(handshake.KindSetup, nil, files...); err != nil {
		return err
	}
	mapped := make(chan error, 1)
	go func() { mapped <- g.mapIDs(ctx) }()
	err = g.attach(ctx)
	if err == nil {
		err = g.startNetwork(ctx, parts)
	}
	if err != nil {
		return errors.Join(err, <-mapped)
	}
	if err := <-mapped; err != nil {
		return err
	}
	if err := g.startPorts(ctx, parts); err != nil {
		return err
	}
	select {
	case <-g.session.ready:
	case <-ctx.Done():
		return nil
	}
	if err := g.startAPI(ctx, parts); err != nil {
		return err
	}
	if err := g.dir.SetChildPID(g.child.Pid); err != nil {
		return err
	}
	g.o.Logger.Debug("the command may run", "command", g.o.Command)
	g.running.Store(true)
	if err := g.session.send(handshake.KindRun, nil); err != nil {
		return err
	}
	g.followPlan(ctx, parts)
	g.followHosts(ctx, parts)
	return nil
}

// setup is what the child needs to know.
func (g *gate) setup() handshake.Setup {
	mounts, err := json.Marshal(g.o.mounts(g.dir))
	if err != nil {
		panic(err) // a struct of strings and booleans
	}
	s := handshake.Setup{
		Plan:         g.o.Network.Plan(),
		Mounts:       mounts,
		PIDNamespace: g.o.CreatePIDNS,
		Reap:         *g.o.Reaper,
		Command:      g.o.Command,
		ListenFDs:    len(g.o.ListenFiles),
	}
	if g.o.DetachNetNS {
		s.DetachedNetns = g.dir.Netns()
	}
	return s
}

func (g *gate) closeListenFiles() {
	for _, f := range g.o.ListenFiles {
		f.Close()
	}
}
