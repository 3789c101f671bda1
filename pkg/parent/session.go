package parent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/gatekit/gatekit/internal/handshake"
)

// session is the parent's end of the handshake. One goroutine, receive, takes
// what the child sends, and hands it to who waits for it.
type session struct {
	conn    *handshake.Conn
	stopped func(syscall.Signal) bool // may be nil

	detached chan struct{}          // closed by the message
	network  chan handshake.Message // gets one message
	ready    chan struct{}          // closed by the message

	// done is closed when nothing more will come. Then exit is how the command
	// ended, or nil and err is why nothing came.
	done chan struct{}
	exit *handshake.Exit
	err  error

	mu      sync.Mutex // guards the rest
	lastID  uint64
	waiting map[uint64]chan handshake.Message // requests for sockets
}

func newSession(conn *handshake.Conn, stopped func(syscall.Signal) bool) *session {
	s := &session{
		conn:     conn,
		stopped:  stopped,
		detached: make(chan struct{}),
		network:  make(chan handshake.Message, 1),
		ready:    make(chan struct{}),
		done:     make(chan struct{}),
		waiting:  make(map[uint64]chan handshake.Message),
	}
	go s.receive()
	return s
}

// close ends the channel, and with it receive.
func (s *session) close() {
	s.conn.Close()
	<-s.done
	select {
	case m := <-s.network:
		m.CloseFiles()
	default:
	}
}

// errChildGone is the end of the channel. What has reached the session by then,
// such as how the command ended, says more.
var errChildGone = errors.New("the child is gone")

// receive runs until the command's end, or the channel's.
func (s *session) receive() {
	defer close(s.done)
	var sawDetached, sawNetwork, sawReady bool
	for {
		m, err := s.conn.Recv()
		if err != nil {
			if err == io.EOF {
				err = errChildGone
			}
			s.err = err
			return
		}
		if m.Kind != handshake.KindNetwork && m.Kind != handshake.KindSockets {
			m.CloseFiles() // no other kind has any, but what runs inside can change the child
		}
		switch {
		case m.Kind == handshake.KindDetached && !sawDetached:
			sawDetached = true
			close(s.detached)
		case m.Kind == handshake.KindNetwork && !sawNetwork:
			sawNetwork = true
			s.network <- m
		case m.Kind == handshake.KindReady && !sawReady:
			sawReady = true
			close(s.ready)
		case m.Kind == handshake.KindSockets:
			s.answer(m)
		case m.Kind == handshake.KindStopped:
			s.onStopped(m)
		case m.Kind == handshake.KindExit:
			var exit handshake.Exit
			if s.err = m.Decode(&exit); s.err == nil {
				s.exit = &exit
			}
			return
		case m.Kind == handshake.KindError:
			s.err = m.Failure()
			return
		default:
			m.CloseFiles()
			s.err = fmt.Errorf("handshake: got %q out of turn", m.Kind)
			return
		}
	}
}

func (s *session) onStopped(m handshake.Message) {
	var stop handshake.Signal
	stopped := m.Decode(&stop) == nil && s.stopped != nil && s.stopped(syscall.Signal(stop.Signal))
	_ = s.send(handshake.KindResumed, handshake.Resumed{Stopped: stopped}) // an error shows in the next receive
}

// answer hands a reply to its request; nobody waits for a late one.
func (s *session) answer(m handshake.Message) {
	var reply handshake.Reply
	if err := m.Decode(&reply); err != nil {
		m.CloseFiles()
		return
	}
	s.mu.Lock()
	waiting, ok := s.waiting[reply.ID]
	delete(s.waiting, reply.ID)
	s.mu.Unlock()
	if !ok {
		m.CloseFiles()
		return
	}
	waiting <- m // has room for it
}

// send sends the child a message. The error is errChildGone when it cannot
// take it any more.
func (s *session) send(kind handshake.Kind, body any, files ...*os.File) error {
	err := s.conn.Send(kind, body, files...)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return errChildGone
	}
	return err
}

// signal has the child send a signal to the command.
func (s *session) signal(sig syscall.Signal) error {
	return s.send(handshake.KindSignal, handshake.Signal{Signal: int(sig)})
}

// Sockets implements port.Sockets: the child makes them.
func (s *session) Sockets(ctx context.Context, domain, typ, n int) ([]*os.File, error) {
	request := handshake.Request{Domain: domain, Type: typ, N: min(n, handshake.MaxFiles)}
	answer := make(chan handshake.Message, 1)
	s.mu.Lock()
	s.lastID++
	request.ID = s.lastID
	s.waiting[request.ID] = answer
	s.mu.Unlock()
	if err := s.send(handshake.KindSockets, request); err != nil {
		s.forget(request.ID, answer)
		return nil, err
	}
	select {
	case m := <-answer:
		var reply handshake.Reply
		if err := m.Decode(&reply); err != nil {
			m.CloseFiles()
			return nil, err
		}
		if reply.Errno != 0 {
			m.CloseFiles()
			return nil, fmt.Errorf("make a socket in the namespace: %w", reply.Errno)
		}
		if len(m.Files) == 0 || len(m.Files) > n {
			m.CloseFiles()
			return nil, fmt.Errorf("make %d sockets in the namespace: the child sent %d", n, len(m.Files))
		}
		return m.Files, nil
	case <-ctx.Done():
		s.forget(request.ID, answer)
		return nil, ctx.Err()
	case <-s.done:
		s.forget(request.ID, answer)
		return nil, errChildGone
	}
}

// forget gives up a request whose answer may be there already.
func (s *session) forget(id uint64, answer <-chan handshake.Message) {
	s.mu.Lock()
	_, pending := s.waiting[id]
	delete(s.waiting, id)
	s.mu.Unlock()
	if !pending {
		(<-answer).CloseFiles()
	}
}
