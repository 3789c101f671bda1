// Package child is the namespace side of the gate: the process that the parent
// starts in the new namespaces. It sets up the network and the mounts, executes
// the command, forwards signals to it, collects orphans, and makes sockets in
// the network namespace for the port driver. It knows the parent only through
// the handshake.
//
// The child lives from the parent's clone(2) to the command's end:
//
//	executed as process 1 of nothing yet, without mapped ids but with all
//	capabilities in its user namespace (ambient, so that they outlive execve)
//	  | setup   -> interface, addresses, routes; their files go up
//	  | mapped  -> becomes root, mounts, finds the command
//	  | ready ->
//	  | run     -> starts the command
//	  |            serves: signals, sockets, waiting
//	  | exit  ->
//	  end
//
// A program that embeds the gate asks IsChild first of all in main, and then gives the
// process to Main: its threads, signals, working directory and descriptors from 3 on
// are the child's, and what the program's other packages have started in their init
// functions must need none of them.
//
// The parent's death is the end of the handshake's channel. The child then
// kills all that lives in its user namespace, and ends. The child's own death
// takes the command with it (PR_SET_PDEATHSIG); the parent ends the rest.
package child

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"syscall"

	"github.com/gatekit/gatekit/internal/handshake"
	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network"
)

// handshakeFD is the descriptor on which the parent puts the child's end of the
// channel; the sockets of socket activation follow it.
const handshakeFD = 3

// Name is the zeroth argument by which a program that embeds the gate knows
// that it was executed to be the child: see IsChild.
const Name = "gatekit-child"

// Options say how to be the child.
type Options struct {
	// Logger receives what goes wrong without ending the gate. nil discards it.
	Logger *slog.Logger

	// Networks adds the child halves of network drivers to those that are built
	// in, by the Plan's Driver. nil adds none.
	Networks map[string]NetworkSetup
}

// NetworkSetup is the child half of a network driver. It runs once, on a thread that is
// in the network namespace and has all capabilities there, and returns the files that
// the driver's Run takes. Ids are not mapped yet.
type NetworkSetup func(network.Plan) ([]*os.File, error)

// IsChild says whether this process was executed by a parent to be its child,
// or a step of it. A program that embeds the gate asks at the start of main,
// before anything else, and then calls Main.
func IsChild() bool {
	return len(os.Args) > 0 && (os.Args[0] == Name || os.Args[0] == activateName)
}

// Main is the child's whole life, and the process is its own. It returns the exit
// code of the process, for os.Exit. What goes wrong is told to the parent, whose Run
// returns it.
func Main(o Options) int {
	if os.Args[0] == activateName {
		return activate(os.Args[1:])
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	// The command gets SIGKILL when the thread that started it ends, so this
	// thread lasts as long as the child; and the capabilities that it drops are
	// its own.
	runtime.LockOSThread()
	conn, err := handshake.New(os.NewFile(handshakeFD, "handshake"))
	if err != nil {
		o.Logger.Error("this process is started by the gate alone", "error", err)
		return 1
	}
	defer conn.Close()
	c := &child{conn: conn, options: o, log: o.Logger, netns: here}
	err = c.run()
	if err == nil {
		return 0
	}
	if errors.Is(err, errParentGone) {
		c.killAll()
		return 1
	}
	var failure *handshake.Failure
	if !errors.As(err, &failure) {
		failure = &handshake.Failure{Reason: err.Error(), Code: 1}
	}
	if err := conn.Send(handshake.KindError, handshake.Error{Reason: failure.Reason, Code: failure.Code}); err != nil {
		c.killAll()
	}
	return 1
}

// errParentGone is the end of the channel.
var errParentGone = errors.New("the parent is gone")

// child is the state of the process.
type child struct {
	conn    *handshake.Conn
	options Options
	log     *slog.Logger
	setup   handshake.Setup
	mounts  Mounts
	users   *linux.UserNamespace
	netns   threadRunner // runs functions in the network namespace
}

// run goes through the steps at the top of this file.
func (c *child) run() error {
	err := linux.CloseOnExecFrom(handshakeFD)
	if err != nil {
		return err
	}
	// Now, for the command may cover /proc.
	if c.users, err = linux.OpenUserNamespace(0); err != nil {
		return err
	}
	m, err := c.expect(handshake.KindSetup)
	if err != nil {
		return err
	}
	if c.setup, err = m.Setup(); err != nil {
		return err
	}
	if err := json.Unmarshal(c.setup.Mounts, &c.mounts); err != nil {
		return fmt.Errorf("handshake: mounts: %w", err)
	}
	if err := c.setUpNetwork(); err != nil {
		return err
	}
	if _, err := c.expect(handshake.KindMapped); err != nil {
		return err
	}
	if err := becomeRoot(); err != nil {
		return err
	}
	c.allowPings()
	if err := c.setUpMounts(); err != nil {
		return err
	}
	if path := c.setup.DetachedNetns; path != "" {
		if err := c.netns(func() error { return bindNetns(path) }); err != nil {
			return err
		}
	}
	cmd, err := c.newCommand()
	if err != nil {
		return err
	}
	if c.setup.Reap && !c.setup.PIDNamespace {
		if err := linux.SetSubreaper(); err != nil {
			return err
		}
	}
	if err := c.conn.Send(handshake.KindReady, nil); err != nil {
		return errParentGone
	}
	return c.serve(cmd)
}

// expect is Conn.Expect with the end of the channel told apart.
func (c *child) expect(kind handshake.Kind) (handshake.Message, error) {
	m, err := c.conn.Expect(kind)
	if err == io.EOF {
		err = errParentGone
	}
	return m, err
}

// becomeRoot makes this process root inside. It is already where the caller is
// mapped to 0; explicit maps may map others.
func becomeRoot() error {
	if os.Getgid() != 0 {
		if err := syscall.Setresgid(0, 0, 0); err != nil {
			return fmt.Errorf("become group 0 inside: %w", os.NewSyscallError("setresgid", err))
		}
	}
	if os.Getuid() != 0 {
		if err := syscall.Setresuid(0, 0, 0); err != nil {
			return fmt.Errorf("become user 0 inside: %w", os.NewSyscallError("setresuid", err))
		}
	}
	return nil
}

// setUpMounts changes the mount namespace, and enters the working directory
// again: copy-up may have covered it.
func (c *child) setUpMounts() error {
	wd, wdErr := os.Getwd()
	if err := c.mounts.apply(c.log); err != nil {
		return err
	}
	if wdErr != nil {
		return nil // it was removed before we started; the command's business
	}
	if err := os.Chdir(wd); err != nil {
		c.log.Warn("the working directory is not there inside; using /", "error", err)
		return os.Chdir("/")
	}
	return nil
}

// killAll ends what lives in the user namespace. With a pid namespace the
// kernel does it when this process, its process 1, ends.
func (c *child) killAll() {
	if c.setup.PIDNamespace || c.users == nil { // nil: nothing was started
		return
	}
	if err := c.users.Kill(); err != nil {
		c.log.Error("cannot end the processes of the gate", "error", err)
	}
}
