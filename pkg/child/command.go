package child

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/handshake"
	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/signals"
)

// activateName is the zeroth argument of the step between the child and a
// command that takes over sockets: only a process that exists can be told its
// own number in LISTEN_PID (sd_listen_fds(3)). Why it could not become the command
// it writes to a pipe, which the command does not get.
const activateName = "gatekit-activate"

// command is the command, found and ready to be started.
type command struct {
	path string
	argv []string
	env  []string
	fds  []uintptr // 0, 1, 2, the sockets of socket activation, and for these report

	failure, report *os.File // ends of the step's pipe; nil without one
}

// newCommand finds the command in the namespace.
func (c *child) newCommand() (*command, error) {
	argv := c.setup.Command
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, startFailure(argv[0], err)
	}
	cmd := &command{path: path, argv: argv, env: os.Environ(), fds: []uintptr{0, 1, 2}}
	if n := c.setup.ListenFDs; n > 0 {
		for i := range n {
			cmd.fds = append(cmd.fds, uintptr(handshakeFD+1+i))
		}
		if cmd.failure, cmd.report, err = os.Pipe(); err != nil {
			return nil, err
		}
		cmd.fds = append(cmd.fds, cmd.report.Fd())
		cmd.argv = append([]string{activateName, strconv.Itoa(n), path}, argv...)
		cmd.path = "/proc/self/exe"
	}
	return cmd, nil
}

// start starts the command in the session and the process group of the gate, so
// that a terminal stays one. It runs on the locked thread.
func (cmd *command) start() (process, error) {
	if err := linux.DropInheritedCapabilities(); err != nil {
		return process{}, err
	}
	p := process{pidfd: -1}
	pid, err := syscall.ForkExec(cmd.path, cmd.argv, &syscall.ProcAttr{
		Env:   cmd.env,
		Files: cmd.fds,
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, PidFD: &p.pidfd},
	})
	if cmd.report != nil {
		cmd.report.Close()
	}
	if err != nil {
		return process{}, startFailure(cmd.path, err)
	}
	p.pid = pid
	return p, nil
}

// failed is the error of a step that could not become the command, and has ended.
func (cmd *command) failed() error {
	var e handshake.Error
	if cmd.failure == nil || json.NewDecoder(cmd.failure).Decode(&e) != nil {
		return nil
	}
	return &handshake.Failure{Reason: e.Reason, Code: e.Code}
}

// process is the command that runs. The pidfd, which lasts as long as the child,
// is what signals go to: the number may come to mean another process once the
// command was waited for.
type process struct {
	pid   int
	pidfd int
}

func (p process) kill(s syscall.Signal) error {
	return unix.PidfdSendSignal(p.pidfd, s, nil, 0)
}

// startFailure is the error of a command that cannot be found or executed.
func startFailure(name string, err error) error {
	reason, code := linux.ExplainExec(name, err)
	return &handshake.Failure{Reason: reason, Code: code}
}

// activate is the step between: it sets LISTEN_PID to its own number and
// becomes the command. Its arguments are the number of sockets, the path and the
// command's arguments.
func activate(args []string) int {
	sockets, err := strconv.Atoi(args[0])
	if err != nil {
		return 1
	}
	report := os.NewFile(uintptr(handshakeFD+sockets), "report")
	syscall.CloseOnExec(int(report.Fd()))
	path := args[1]
	err = syscall.Exec(path, args[2:], activated(os.Environ(), os.Getpid(), sockets))
	reason, code := linux.ExplainExec(path, err)
	_ = json.NewEncoder(report).Encode(handshake.Error{Reason: reason, Code: code}) // the code says it, too
	return code
}

// activated is env for the process pid that takes over sockets. LISTEN_PIDFDID,
// which systemd has set since version 258, names the caller's process in another
// way, and a program that looks at it would take the sockets for another's.
func activated(env []string, pid, sockets int) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "LISTEN_PID" || name == "LISTEN_PIDFDID" || name == "LISTEN_FDS"
	})
	return append(env, "LISTEN_PID="+strconv.Itoa(pid), "LISTEN_FDS="+strconv.Itoa(sockets))
}

// serve waits for the parent's word to run the command, runs it, and serves the
// parent until the command ends.
func (c *child) serve(cmd *command) error {
	run := make(chan struct{})
	resumed := make(chan bool, 1)
	gone := make(chan error, 1)
	forward := signals.New()
	signal.Notify(forward.Witness, linux.ForwardableSignals()...)
	defer signal.Stop(forward.Witness)
	go func() { gone <- c.receive(run, resumed, forward) }()
	select {
	case <-run:
	case err := <-gone:
		return err
	}
	p, err := cmd.start()
	if err != nil {
		return err
	}
	forward.Start(p.pid, p.kill)
	defer forward.Stop()
	ended := make(chan handshake.Exit, 1)
	go func() { ended <- c.wait(p.pid, resumed, forward) }()
	select {
	case exit := <-ended:
		if err := cmd.failed(); err != nil {
			return err
		}
		if err := c.conn.Send(handshake.KindExit, exit); err != nil {
			return errParentGone
		}
		return nil
	case err := <-gone:
		return err
	}
}

// receive handles the parent's messages until the channel ends. resumed, which has room
// for one, takes whether the parent had stopped with the command.
func (c *child) receive(run chan<- struct{}, resumed chan<- bool, forward *signals.Forwarder) error {
	defer close(resumed)
	for {
		m, err := c.conn.Recv()
		if err == io.EOF {
			return errParentGone
		}
		if err != nil {
			return err
		}
		switch m.Kind {
		case handshake.KindRun:
			close(run)
		case handshake.KindSockets:
			err = c.makeSockets(m)
		case handshake.KindRebind:
			if err := c.mounts.rebind(); err != nil {
				c.log.Warn("files of /etc are the host's now", "error", err)
			}
		case handshake.KindResumed:
			var r handshake.Resumed
			if err = m.Decode(&r); err == nil {
				resumed <- r.Stopped
			}
		case handshake.KindSignal:
			var s handshake.Signal
			if err = m.Decode(&s); err == nil {
				select {
				case forward.Front <- syscall.Signal(s.Signal):
				default: // a command that takes no signals loses some
				}
			}
		default:
			err = fmt.Errorf("handshake: got %q when the command runs", m.Kind)
		}
		if err != nil {
			return err
		}
	}
}

// wait waits for the command's end, and collects orphans on the way if that is
// asked for. When the command is stopped, it waits for the parent's word first.
// Nothing else in this process waits for processes.
func (c *child) wait(command int, resumed <-chan bool, forward *signals.Forwarder) handshake.Exit {
	which := command
	if c.setup.Reap {
		which = -1
	}
	for {
		pid, status, err := linux.Wait(which)
		if err != nil {
			// Only ECHILD is possible, and only if the command was collected.
			c.log.Error("wait for the command", "error", err)
			return handshake.Exit{Code: 1}
		}
		if pid != command {
			continue
		}
		switch {
		case status.Stopped():
			forward.Stopping()
			// A parent that is gone is seen by receive.
			_ = c.conn.Send(handshake.KindStopped, handshake.Signal{Signal: int(status.StopSignal())})
			forward.Resume(<-resumed)
		case status.Signaled():
			return handshake.Exit{Signal: int(status.Signal())}
		default:
			return handshake.Exit{Code: status.ExitStatus()}
		}
	}
}
