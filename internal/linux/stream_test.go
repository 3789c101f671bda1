package linux

import (
	"io"
	"net"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestStreamOfTellsWhatWasSentAndReceived(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	raw, err := client.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	stream := func() (s Stream) {
		t.Helper()
		var err error
		if cerr := raw.Control(func(fd uintptr) { s, err = StreamOf(int(fd)) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		return s
	}
	if s := stream(); s.Sent != 0 || s.Received != 0 || s.HalfClosed {
		t.Errorf("at first: %+v", s)
	}
	if _, err := client.Write(make([]byte, 70_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, make([]byte, 70_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Write([]byte("five!")); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the bytes", func() bool { s := stream(); return s.Sent == 70_000 && s.Received == 5 && !s.HalfClosed })
	if err := server.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the end of one half", func() bool { return stream().HalfClosed })
	if s := stream(); s.Sent != 70_000 || s.Received != 5 {
		t.Errorf("after the end of one half: %+v", s)
	}
}

func TestStreamOfWantsASocketOfTCP(t *testing.T) {
	if s, err := StreamOf(-1); err == nil {
		t.Errorf("there is one: %+v", s)
	}
}
