package main

// How a program is run inside a gate.
//
//	gatectl exec                              in the gate's namespaces
//	  | GET /v1/info: the child's pid
//	  | start the witness of signals
//	  | hold the child by a pidfd, read its
//	  | environment and namespaces, check
//	  | that it is the child, and alive
//	  | linux.Entry ------------------------> gatectl, called insideName:
//	  | forward signals, wait                   find the program, become it
//	  end with its exit code
//
// The program is looked up inside, for there /etc and PATH's directories may
// differ; so gatectl executes itself there first.
//
// A pid is a number that soon may mean another process, or means another to a
// process in a pid namespace of its own. What tells the gate's child is its
// environment: it names the state dir that the API names.
//
// The program stays in the terminal's session and foreground process group.
// What is typed at the terminal, or sent to all of the process group, reaches it
// without our help, which the witness tells us (package signals); what is sent to
// gatectl is forwarded. When the program is stopped, gatectl stops too, so that the
// shell gets its terminal back. When gatectl dies, so do the program and the witness.

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/signals"
	"github.com/gatekit/gatekit/pkg/api"
)

func execCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Usage:     "run a program inside the gate, with its exit code",
		UsageText: "gatectl exec [--] CMD [ARG...]",
		Action:    execute,
	}
}

func execute(c *cli.Context) error {
	if err := someArguments(c, "a command"); err != nil {
		return err
	}
	gate, err := connect(c)
	if err != nil {
		return err
	}
	info, err := gate.Info(c.Context)
	gate.CloseIdleConnections()
	if err != nil {
		return err
	}
	// The program and the witness die with the thread that starts them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	forward := signals.New()
	signal.Notify(forward.Front, linux.ForwardableSignals()...)
	defer signal.Stop(forward.Front)
	witness, err := startWitness(forward.Witness)
	if err != nil {
		return err
	}
	defer witness.end()

	program, err := enter(info, witness, c.Args().Slice())
	if err != nil {
		return err
	}
	defer program.Close()
	forward.Start(program.PID, program.Signal)
	defer forward.Stop()
	return wait(program, forward)
}

// enter starts the program inside the gate, as soon as the witness is ready.
func enter(info api.Info, witness *witness, args []string) (*linux.Process, error) {
	child, err := linux.OpenProcess(info.ChildPID)
	if errors.Is(err, os.ErrProcessDone) {
		return nil, fmt.Errorf("there is no process %d, the child of the gate: has it ended, or does gatectl run in a pid namespace of its own?", info.ChildPID)
	}
	if err != nil {
		return nil, fmt.Errorf("the gate's child: %w", err)
	}
	defer child.Close()
	variables, err := gateVariables(child, info.StateDir)
	if err != nil {
		return nil, err
	}
	namespaces, err := child.OtherNamespaces()
	if err != nil {
		return nil, fmt.Errorf("namespaces of the gate: %w", err)
	}
	owner, err := child.OwnerUID()
	if err != nil {
		return nil, fmt.Errorf("owner of the gate: %w", err)
	}
	// All that was read was of the child if it is still there.
	if err := child.Signal(0); err != nil {
		return nil, fmt.Errorf("the gate's child: %w", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	self, err := linux.OpenPath("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	witness.ready()
	linux.RestoreFileLimit()
	pid, err := linux.Entry{
		Target:     child,
		Namespaces: namespaces,
		// The groups of another user, real root, are none of the gate's.
		DropGroups: namespaces&unix.CLONE_NEWUSER != 0 && owner != os.Geteuid(),
		Dir:        dir,
		Program:    self,
		Args:       append([]string{insideName}, args...),
		Env:        withVariables(os.Environ(), variables),
	}.Start()
	if err != nil {
		return nil, err
	}
	program, err := linux.OpenProcess(pid)
	if err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _, _ = linux.Wait(pid)
		return nil, err
	}
	return program, nil
}

// gateVariables returns the variables with which a gate tells its command of
// itself, and makes sure that child is the child of the gate with this state
// dir.
func gateVariables(child *linux.Process, stateDir string) ([]string, error) {
	environ, err := child.Environ()
	if err != nil {
		return nil, fmt.Errorf("environment of the gate: %w", err)
	}
	const stateDirName = "STATE_DIR"
	prefixes := []string{"GATEKIT_", "ROOTLESSKIT_"}
	known := len(prefixes)
	all := strings.Split(string(environ), "\x00")
	for _, v := range all {
		// An embedding program may have prefixes of its own.
		if prefix, ok := strings.CutSuffix(v, stateDirName+"="+stateDir); ok && prefix != "" {
			prefixes = append(prefixes, prefix)
		}
	}
	if len(prefixes) == known {
		return nil, fmt.Errorf("process %d is not the child of the gate: does gatectl run in a pid namespace of its own?", child.PID)
	}
	return slices.DeleteFunc(all, func(v string) bool {
		return !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(v, p) })
	}), nil
}

// withVariables sets variables in an environment.
func withVariables(environ, variables []string) []string {
	out := slices.DeleteFunc(environ, func(old string) bool {
		name, _, _ := strings.Cut(old, "=")
		return slices.ContainsFunc(variables, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	})
	return append(out, variables...)
}

// wait waits for the program's end, and returns it as an exitCode. Nothing else
// in this process waits for processes.
func wait(program *linux.Process, forward *signals.Forwarder) error {
	for {
		_, status, err := linux.Wait(program.PID)
		switch {
		case err != nil:
			return err
		case status.Stopped():
			forward.Stopping()
			// Without a terminal, who stopped it will continue it.
			forward.Resume(linux.StopWithCommand())
		case status.Signaled():
			return exitCode(128 + int(status.Signal()))
		case status.ExitStatus() != 0:
			return exitCode(status.ExitStatus())
		default:
			return nil
		}
	}
}
