package parent

import (
	"context"
	"errors"
	"io"
	"os"
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
		if err := pipe.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := pipe.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %v; want the end of the pipe", name, err)
		}
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

func TestARequestThatWasGivenUpLeavesNoDescriptor(t *testing.T) {
	s, child := newTestSession(t)
	ctx, cancel := context.WithCancel(context.Background())
	asked := make(chan error, 1)
	go func() {
		_, err := s.Sockets(ctx, unix.AF_INET, unix.SOCK_STREAM, 1)
		asked <- err
	}()
	m, err := child.Expect(handshake.KindSockets)
	if err != nil {
		t.Fatal(err)
	}
	var request handshake.Request
	if err := m.Decode(&request); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	pipe := send(t, child, handshake.KindSockets, handshake.Reply{ID: request.ID})
	if err := pipe.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%v; want the end of the pipe", err)
	}
}
