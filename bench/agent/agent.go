// Package agent runs one side of a measurement somewhere else: a process inside a
// gate, or in another network namespace, that does what the benchmark tells it.
//
//	benchmark                      agent
//	Listener.Accept   <- connect - Run        over a unix socket in the file system,
//	Agent.Call        -- rpc ---> Service     which all namespaces share
//	Agent.Close       -- end ---> Run returns
//
// The socket is a path, not a stream that the gate would have to pass on: so a
// gate may do with stdin and stdout as it likes. The kernel tells the agent's
// process id (SO_PEERCRED in unix(7)) as the benchmark sees it, across PID
// namespaces. The protocol is that of net/rpc; a call that takes longer than its
// limit closes the connection, after which the agent is of no more use.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Run connects to a Listener at the path and does what it is told, until the
// other side closes the connection. Servers and programs that it started end with
// it.
func Run(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	s := &Service{}
	defer s.close()
	server := rpc.NewServer()
	if err := server.Register(s); err != nil {
		conn.Close()
		return err
	}
	server.ServeConn(conn)
	return nil
}

// Listener waits for agents.
type Listener struct {
	unix *net.UnixListener
}

// Listen makes a socket at the path, which every user may connect to. Close
// removes it.
func Listen(path string) (*Listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := unix.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("chmod %s: %w", path, err)
	}
	return &Listener{l}, nil
}

// Close ends the Listener. Agents that have connected stay.
func (l *Listener) Close() error { return l.unix.Close() }

// Agent is a process that does what it is told.
type Agent struct {
	// PID is its process id as this process sees it.
	PID int

	client *rpc.Client
	dead   atomic.Bool
}

// Accept waits for the next agent, until the context ends.
func (l *Listener) Accept(ctx context.Context) (*Agent, error) {
	stop := context.AfterFunc(ctx, func() { _ = l.unix.SetDeadline(time.Unix(1, 0)) })
	conn, err := l.unix.AcceptUnix()
	if !stop() {
		_ = l.unix.SetDeadline(time.Time{})
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	pid, err := peerPID(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &Agent{PID: pid, client: rpc.NewClient(conn)}, nil
}

func peerPID(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, fmt.Errorf("getsockopt(SO_PEERCRED): %w", err)
	}
	return int(cred.Pid), nil
}

// Close ends the agent.
func (a *Agent) Close() {
	a.dead.Store(true)
	_ = a.client.Close()
}

// Dead reports whether the agent is of no more use: it was closed, or a call found
// that it is gone.
func (a *Agent) Dead() bool { return a.dead.Load() }

// call has the agent run a method of its Service. A call that the context ends
// leaves the agent unusable.
func call[Reply any](ctx context.Context, a *Agent, method string, args any) (Reply, error) {
	type answer struct {
		reply Reply
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		var got answer
		got.err = a.client.Call("Service."+method, args, &got.reply)
		done <- got
	}()
	select {
	case got := <-done:
		if got.err != nil {
			// The errors of the Service itself come as rpc.ServerError.
			if _, answered := errors.AsType[rpc.ServerError](got.err); !answered {
				a.dead.Store(true)
				got.err = fmt.Errorf("the agent is gone, and its gate may be: %w", got.err)
			}
			return got.reply, fmt.Errorf("%s: %w", method, got.err)
		}
		return got.reply, nil
	case <-ctx.Done():
		a.Close() // ends the call too
		return (<-done).reply, fmt.Errorf("%s: %w", method, context.Cause(ctx))
	}
}
