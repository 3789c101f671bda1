// Package server serves the REST API of pkg/api on a unix socket, for a gate
// that it knows only as the interface Gate. The names of calls, fields and
// codes are pkg/api's.
package server

// How it works.
//
// One http.Server with a router: each path has a table of its methods, so that
// 404 and 405 are answered as JSON like all other errors. Before that stands
// the door: the caller's user id, taken from the socket when it connected
// (SO_PEERCRED), must be one of Options.UIDs. The socket's mode of 0600 keeps
// others out already; the door holds where the mode was changed.
//
// Every connection has limits: on the time for a header, a request and an
// answer, on the time that it may idle (Docker leaks connections,
// docker-py#3251), on the size of header and body; and the number of
// connections is limited, those above it wait in the listener's backlog.
//
// Run ends so: the listener is closed, idle connections with it; requests that
// run may finish within ShutdownTimeout; then their contexts are cancelled and
// their connections cut. Run waits until each connection's goroutine is gone,
// for as long as the Gate takes to notice.
//
// Limits: what is not HTTP at all is answered by net/http, in plain text.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/api"
)

// Gate is what the API shows and changes. Its methods are called concurrently.
type Gate interface {
	// Info describes the gate.
	Info() api.Info

	// ListPorts returns the forwards in place, ordered by id.
	ListPorts() []api.PortStatus

	// AddPorts puts all specs in place or none, and returns their status in the
	// order of the specs. An error that wraps port.ErrInvalid is answered with
	// 400, port.ErrConflict with 409, port.ErrNotFound with 404, all else with
	// 500.
	AddPorts(ctx context.Context, specs []api.PortSpec) ([]api.PortStatus, error)

	// RemovePort takes a forward away; its TCP connections may go on for as long
	// as drain says. Errors are answered as AddPorts's.
	RemovePort(ctx context.Context, id int, drain time.Duration) error

	// AutoPorts turns automatic forwards on or off, as they may be already.
	// Errors are answered as AddPorts's.
	AutoPorts(ctx context.Context, on bool) error

	// Connections returns the flows now.
	Connections() []api.Connection

	// Policy says what the namespace may reach. SetPolicy changes that as a whole,
	// or not at all. An error that wraps network.ErrPolicy is answered with 400, an
	// *api.Error with its code, all else with 500.
	Policy() (api.Policy, error)
	SetPolicy(p api.Policy) error
}

// Options for New.
type Options struct {
	// Gate is required.
	Gate Gate

	// Logger gets what goes wrong inside. Nil discards it.
	Logger *slog.Logger

	// UIDs are the user ids, as this process sees them, that may call: the
	// gate's owner, who is root inside, and real root. With none, nobody may.
	UIDs []uint32

	// ReadTimeout limits the time for a request's header, and for the whole
	// request. Zero means 10 seconds.
	ReadTimeout time.Duration

	// WriteTimeout limits the time from the end of a request's header to the
	// end of its answer. Zero means 60 seconds.
	WriteTimeout time.Duration

	// IdleTimeout closes a connection that is not used. Zero means api.IdleTimeout.
	IdleTimeout time.Duration

	// ShutdownTimeout is how long requests may go on when Run is to end. Zero
	// means 2 seconds.
	ShutdownTimeout time.Duration

	// MaxConnections limits the connections at a time. Zero means 256.
	MaxConnections int
}

// maxHeader is the size of the largest request header, in bytes (net/http adds
// 4096).
const maxHeader = 16 << 10

// Server serves one gate.
type Server struct {
	o       Options
	handler http.Handler

	policyChange sync.Mutex // held while the policy is looked at and changed
}

// New returns a server. It does nothing before Run.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		value *time.Duration
		zero  time.Duration
	}{
		{&o.ReadTimeout, 10 * time.Second},
		{&o.WriteTimeout, 60 * time.Second},
		{&o.IdleTimeout, api.IdleTimeout},
		{&o.ShutdownTimeout, 2 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 256
	}
	s := &Server{o: o}
	s.handler = s.router()
	return s
}

// Run serves ln until ctx is done, and returns nil then; or until ln fails, and
// returns that error. It closes ln. When it returns, no handler runs, and all
// connections are closed and their goroutines gone. The connections of ln must
// be unix sockets.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	// Requests outlive ctx, by the grace that shutdown gives them.
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var conns sync.WaitGroup
	hs := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: s.o.ReadTimeout,
		ReadTimeout:       s.o.ReadTimeout,
		WriteTimeout:      s.o.WriteTimeout,
		IdleTimeout:       s.o.IdleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnContext:       withPeer,
		// A connection is new before Serve returns, and closed at the very end
		// of its goroutine, on which its handlers run too.
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				conns.Add(1)
			case http.StateClosed, http.StateHijacked:
				conns.Done()
			}
		},
	}
	served := make(chan error, 1)
	go func() { served <- hs.Serve(limitConnections(ln, s.o.MaxConnections)) }()

	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("serve the API: %w", err)
	case <-ctx.Done():
		grace, stop := context.WithTimeout(requests, s.o.ShutdownTimeout)
		defer stop()
		if serr := hs.Shutdown(grace); serr != nil && !errors.Is(serr, context.DeadlineExceeded) {
			s.o.Logger.Warn("API: shut down", "error", serr)
		}
		<-served
	}
	cancel()
	hs.Close()
	conns.Wait()
	return err
}

// peerKey is the context key of a connection's peer.
type peerKey struct{}

// peer is who connected.
type peer struct {
	uid uint32
	err error
}

// withPeer notes in a connection's context who connected it.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	var p peer
	if limited, ok := conn.(*limitedConn); ok {
		conn = limited.Conn
	}
	if sc, ok := conn.(syscall.Conn); ok {
		p.uid, p.err = linux.PeerUID(sc)
	} else {
		p.err = fmt.Errorf("a %T has no peer credentials", conn)
	}
	return context.WithValue(ctx, peerKey{}, p)
}
