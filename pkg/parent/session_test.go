package parent

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/handshake"
)

// newTestSession returns a session and the child's end of its channel.
func newTestSession(t *testing.T) (*session, *handshake.Conn) {
	t.Helper()
	conn, file, err := handshake.Pair()
	if err != nil {
		t.Fatal(err)
	}
	child, err := handshake.New(file)
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(conn, nil)
	t.Cleanup(func() { child.Close(); s.close() })
	return s, child
}

// send sends a message with the writing end of a pipe on it, and returns the
// reading end: it is at its end when nobody holds the other any more.
func send(t *testing.T, child *handshake.Conn, kind handshake.Kind, body any) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	defer w.Close()
	if err := child.Send(kind, body, w); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDescriptorsThatNobodyAskedForAreClosed(t *testing.T) {
	s, child := newTestSession(t)
	for name, pipe := range map[string]*os.File{
		"ready":                    send(t, child, handshake.KindReady, nil),
		"the answer to no request": send(t, child, handshake.KindSockets, handshake.Reply{ID: 7}),
		"an answer without an id":  send(t, child, handshake.KindSockets, "none"),
		"a second ready":           send(t, child, handshake.KindReady, nil),
	} {
		expectEnd(t, name, pipe)
	}
	<-s.done
}

func TestWhoWaitsForSocketsHearsOfTheChildsEnd(t *testing.T) {
	s, child := newTestSession(t)
	asked := make(chan error, 1)
	go func() {
		_, err := s.Sockets(context.Background(), unix.AF_INET, unix.SOCK_STREAM, 1)
		asked <- err
	}()
	if _, err := child.Expect(handshake.KindSockets); err != nil {
		t.Fatal(err)
	}
	child.Close()
	if err := <-asked; !errors.Is(err, errChildGone) {
		t.Errorf("while it waits: %v", err)
	}
	if _, err := s.Sockets(context.Background(), unix.AF_INET, unix.SOCK_STREAM, 1); !errors.Is(err, errChildGone) {
		t.Errorf("afterwards: %v", err)
	}
}

// ask has a session ask its child for a socket, and returns the request's id and what
// becomes of it.
func ask(ctx context.Context, t *testing.T, s *session, child *handshake.Conn) (id uint64, asked <-chan error) {
	t.Helper()
	outcome := make(chan error, 1)
	go func() {
		_, err := s.Sockets(ctx, unix.AF_INET, unix.SOCK_STREAM, 1)
		outcome <- err
	}()
	m, err := child.Expect(handshake.KindSockets)
	if err != nil {
		t.Fatal(err)
	}
	var request handshake.Request
	if err := m.Decode(&request); err != nil {
		t.Fatal(err)
	}
	return request.ID, outcome
}

// expectEnd expects the other end of a pipe to be closed, that came with what.
func expectEnd(t *testing.T, what string, pipe *os.File) {
	t.Helper()
	if err := pipe.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%s: %v; want the end of the pipe", what, err)
	}
}

func TestARequestThatWasGivenUpLeavesNoDescriptor(t *testing.T) {
	s, child := newTestSession(t)
	ctx, cancel := context.WithCancel(context.Background())
	id, asked := ask(ctx, t, s, child)
	cancel()
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	expectEnd(t, "a late answer", send(t, child, handshake.KindSockets, handshake.Reply{ID: id}))
}

// What runs inside can change the child, so its answers are not taken on trust.
func TestAnAnswerHasAsManySocketsAsWereAskedForOrLess(t *testing.T) {
	s, child := newTestSession(t)
	id, asked := ask(t.Context(), t, s, child)
	if err := child.Send(handshake.KindSockets, handshake.Reply{ID: id}); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; err == nil || !strings.Contains(err.Error(), "the child sent 0") {
		t.Errorf("an answer without a socket: %v", err)
	}
	id, asked = ask(t.Context(), t, s, child)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	err = child.Send(handshake.KindSockets, handshake.Reply{ID: id}, w, w)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := <-asked; err == nil || !strings.Contains(err.Error(), "the child sent 2") {
		t.Errorf("an answer with two: %v", err)
	}
	expectEnd(t, "an answer with two", r)
}
