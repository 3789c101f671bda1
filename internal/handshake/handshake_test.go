package handshake

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pair makes both ends of a channel.
func pair(t *testing.T) (parent, child *Conn) {
	t.Helper()
	parent, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if child, err = New(file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { parent.Close(); child.Close() })
	return parent, child
}

func TestABodyArrivesAsItWasSent(t *testing.T) {
	parent, child := pair(t)
	want := Request{ID: 7, Domain: unix.AF_INET6, Type: unix.SOCK_DGRAM, N: 3}
	if err := parent.Send(KindSockets, want); err != nil {
		t.Fatal(err)
	}
	m, err := child.Expect(KindSockets)
	if err != nil {
		t.Fatal(err)
	}
	var got Request
	if err := m.Decode(&got); err != nil || got != want {
		t.Fatalf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestDescriptorsArriveNonBlockingAndCloseOnExec(t *testing.T) {
	parent, child := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := child.Send(KindNetwork, nil, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	m, err := parent.Expect(KindNetwork)
	if err != nil {
		t.Fatal(err)
	}
	defer m.CloseFiles()
	if len(m.Files) != 1 {
		t.Fatalf("%d descriptors arrived, not 1", len(m.Files))
	}
	fds, err := descriptors(m.Files)
	if err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("status flags %#x, %v: not O_NONBLOCK", flags, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v: not FD_CLOEXEC", flags, err)
	}
	if _, err := m.Files[0].WriteString("through"); err != nil {
		t.Fatal(err)
	}
	m.Files[0].Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "through" {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestTheOtherSidesDeathIsEndOfFile(t *testing.T) {
	parent, child := pair(t)
	child.Close()
	if _, err := parent.Recv(); err != io.EOF {
		t.Fatalf("got %v, want EOF", err)
	}
}

func TestLastWordsArriveFromASideThatDidNotListen(t *testing.T) {
	parent, child := pair(t)
	if err := parent.Send(KindMapped, nil); err != nil {
		t.Fatal(err)
	}
	if err := child.Send(KindExit, Exit{Code: 7}); err != nil {
		t.Fatal(err)
	}
	child.Close() // with a message unread
	if m, err := parent.Recv(); err != nil || m.Kind != KindExit {
		t.Fatalf("got %q, %v", m.Kind, err)
	}
	if _, err := parent.Recv(); err != io.EOF {
		t.Fatalf("got %v, want EOF", err)
	}
}

func TestAnErrorIsReturnedToWhoExpectsAnother(t *testing.T) {
	parent, child := pair(t)
	if err := child.Send(KindError, Error{Reason: "open /dev/net/tun: permission denied", Code: 1}); err != nil {
		t.Fatal(err)
	}
	_, err := parent.Expect(KindReady)
	var failure *Failure
	if !errors.As(err, &failure) || failure.Code != 1 || !strings.Contains(failure.Reason, "/dev/net/tun") {
		t.Fatalf("got %v", err)
	}
}

func TestAMessageOutOfTurnIsAnError(t *testing.T) {
	parent, child := pair(t)
	if err := child.Send(KindReady, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := parent.Expect(KindNetwork); err == nil || !strings.Contains(err.Error(), `"ready"`) {
		t.Fatalf("got %v", err)
	}
}

func TestAMessageThatIsTooLargeIsNotSent(t *testing.T) {
	parent, _ := pair(t)
	if err := parent.Send(KindError, Error{Reason: strings.Repeat("x", maxMessage)}); err == nil {
		t.Fatal("no error")
	}
}

func TestANetworkRidesOnASetup(t *testing.T) {
	parent, child := pair(t)
	file, err := Setup{Command: []string{"true"}, Mounts: []byte("{}")}.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := parent.Send(KindSetup, nil, file, ns); err != nil {
		t.Fatal(err)
	}
	m, err := child.Expect(KindSetup)
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Setup()
	if err != nil || got.Network == nil {
		t.Fatalf("network %v, %v", got.Network, err)
	}
	defer got.Network.Close()
	want, err := ns.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := got.Network.Stat(); err != nil || !os.SameFile(info, want) {
		t.Errorf("it is another file: %v", err)
	}
}

func TestASetupMayBeLargerThanAMessage(t *testing.T) {
	parent, child := pair(t)
	want := Setup{Command: []string{strings.Repeat("x", 20*maxMessage), ""}, Mounts: []byte("{}")}
	file, err := want.File()
	if err != nil {
		t.Fatal(err)
	}
	err = parent.Send(KindSetup, nil, file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	m, err := child.Expect(KindSetup)
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Setup()
	if err != nil || !slices.Equal(got.Command, want.Command) {
		t.Errorf("a command of %d arguments, %v", len(got.Command), err)
	}
	if _, err := m.Files[0].Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file is still open: %v", err)
	}
	if _, err := (Message{Kind: KindSetup}).Setup(); err == nil {
		t.Error("a setup without a file is taken")
	}
}

// What breaks into the child may say what it likes.
func FuzzAMessageOfAnyShape(f *testing.F) {
	for _, packet := range []string{
		`{"kind":"exit","body":{"code":7,"signal":9}}`, `{"kind":"error","body":{"reason":"no","code":127}}`,
		`{"kind":"sockets","body":{"id":1,"errno":24}}`, `{"kind":"stopped","body":{"signal":20}}`, `{"kind":7}`, `[]`, `{`,
	} {
		f.Add([]byte(packet))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) == 0 || len(packet) > maxMessage {
			return // the end, and what the kernel may refuse to send
		}
		parent, child, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer parent.Close()
		defer child.Close()
		var rider [2]int
		if err := unix.Pipe2(rider[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(rider[0])
		err = unix.Sendmsg(int(child.Fd()), packet, unix.UnixRights(rider[1]), nil, 0)
		unix.Close(rider[1])
		if err != nil {
			t.Fatal(err)
		}
		if m, err := parent.Recv(); err == nil {
			for _, body := range []any{new(Exit), new(Reply), new(Signal)} {
				_ = m.Decode(body) // an error, or a body
			}
			if m.Failure() == nil {
				t.Error("an error that is none")
			}
			if _, err := m.Setup(); err == nil {
				t.Error("a pipe that nobody has written to is a setup")
			}
			m.CloseFiles()
		}
		if n, err := unix.Read(rider[0], make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("the descriptor is still open: %d, %v", n, err)
		}
	})
}
