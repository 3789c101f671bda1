package slirp

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/gatekit/gatekit/internal/testenv"
)

// One who has sent all and is gone does not take with it what the other has not read
// yet, and is not waited for either.

// theRelay is the one relay, when it is there.
func (r *rig) theRelay() (found *relay) {
	r.t.Helper()
	testenv.Until(r.t, "the relay", func() bool {
		for _, l := range r.e.loops {
			for _, w := range l.all() {
				if one, ok := w.(*relay); ok {
					found = one
				}
			}
		}
		return found != nil
	})
	return found
}

func TestTCPASlowGuestHasAllOfAHostThatIsGone(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, tweak: probeSoon})
	small := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 64 << 10, Max: 64 << 10}
	must(t, r.guest.SetTransportProtocolOption(tcp.ProtocolNumber, &small))
	want := bytes.Repeat([]byte("0123456789abcdef"), 512)
	begin := make(chan struct{})
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_LINGER2, 1)
			})
		}
		if err != nil {
			t.Error(err)
		}
		<-begin
		c.Write(want)
	})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r.theRelay()
	r.silent.Store(true)
	close(begin)
	testenv.Until(t, "the server to be found gone", func() bool { return relaysOf(r) == 0 })
	r.silent.Store(false)
	c.SetDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes of %d, %v", len(got), len(want), err)
	}
}

func TestTCPASlowHostHasAllOfAGuestThatIsGone(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, tweak: probeSoon})
	linger := tcpip.TCPLingerTimeoutOption(10 * time.Millisecond)
	must(t, r.guest.SetTransportProtocolOption(tcp.ProtocolNumber, &linger))
	begin, got := make(chan struct{}), make(chan []byte, 1)
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		<-begin
		b, err := io.ReadAll(c)
		if err != nil {
			t.Errorf("after %d bytes: %v", len(b), err)
		}
		got <- b
	})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	// The kernel takes all, and the server little of it.
	if err := unix.SetsockoptInt(r.theRelay().fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20); err != nil {
		if err := unix.SetsockoptInt(r.theRelay().fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<20); err != nil {
			t.Fatal(err)
		}
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 12<<10)
	if _, err := c.Write(want); err != nil {
		t.Fatal(err)
	}
	c.Close()
	testenv.Until(t, "the guest to be found gone", func() bool { return relaysOf(r) == 0 })
	close(begin)
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("got %d bytes of %d", len(b), len(want))
	}
}

// A guest that has ended its half is told, too, that the host's side has broken off: it
// would wait for the rest for ever.
func TestTCPAGuestThatOnlyListensLearnsThatTheHostIsGone(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	asked, begin, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		close(asked)
		<-begin
		io.WriteString(c, "some of it")
		<-end
		c.SetLinger(0)
	})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.CloseWrite()
	<-asked
	one := r.theRelay()
	r.silent.Store(true)
	close(begin)
	testenv.Until(t, "a part to be on its way", func() bool { return r.isTrue(func() bool { return !one.conn.HasAll() }) })
	close(end)
	testenv.Until(t, "the host to be found gone", func() bool { return relaysOf(r) == 0 })
	r.silent.Store(false)
	c.SetDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(c)
	if wait, ok := err.(net.Error); string(got) != "some of it" || !ok || wait.Timeout() {
		t.Errorf("got %q, %v, want a reset after a part", got, err)
	}
	r.nothingLeft()
}

// When both halves have ended the relay has, also where the guest does not say that it
// knows: its kernel may be gone.
func TestTCPARelayEndsWithItsSecondHalf(t *testing.T) {
	t.Run("which is the host's", func(t *testing.T) {
		r := newRig(t, rigOptions{Options: all})
		ended, end := make(chan struct{}), make(chan struct{})
		server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
			io.Copy(io.Discard, c)
			close(ended)
			<-end
		})
		c, err := r.dial(r.gateway(server))
		if err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		<-ended
		r.silent.Store(true)
		close(end)
		testenv.Until(t, "the relay to end", func() bool { return relaysOf(r) == 0 })
		r.silent.Store(false)
		c.Close()
	})
	t.Run("which is the guest's", func(t *testing.T) {
		r := newRig(t, rigOptions{Options: all})
		end := make(chan struct{})
		server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) { <-end })
		c, err := r.dial(r.gateway(server))
		if err != nil {
			t.Fatal(err)
		}
		one := r.theRelay()
		r.silent.Store(true)
		close(end)
		testenv.Until(t, "the host's end", func() bool { return r.isTrue(func() bool { return one.toGuestDone }) })
		c.CloseWrite()
		testenv.Until(t, "the relay to end", func() bool { return relaysOf(r) == 0 })
		r.silent.Store(false)
		c.Close()
	})
}

// What nobody acknowledges is kept without a descriptor, so it has a limit of its own.
func TestTCPThereIsALimitToWhatIsKeptForGuestsThatAcknowledgeNothing(t *testing.T) {
	for name, full := range map[string]bool{"below": false, "beyond": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rigOptions{Options: all})
			asked, answer := make(chan struct{}), make(chan struct{})
			server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
				io.Copy(io.Discard, c)
				close(asked)
				<-answer
				io.WriteString(c, "all of it")
			})
			c, err := r.dial(r.gateway(server))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.CloseWrite()
			<-asked
			if full {
				r.isTrue(func() bool { r.e.tcp.orphaned = maxOrphaned - orphanSize; return true })
			}
			r.silent.Store(true)
			close(answer)
			testenv.Until(t, "the relay to end", func() bool { return relaysOf(r) == 0 })
			if left := r.isTrue(func() bool { return len(r.e.tcp.relays) > 0 }); left == full {
				t.Errorf("that its connection is kept is %v", left)
			}
			r.silent.Store(false)
			r.nothingLeft()
			if !full && !r.isTrue(func() bool { return r.e.tcp.orphaned == 0 }) {
				t.Error("what is no longer kept counts")
			}
		})
	}
}

// A server that does not want all of a request answers, and closes what it has not
// read: a reset follows its answer, and does not overtake it.
func TestTCPTheLastWordsOfAServerArrive(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	full, closed := make(chan struct{}), make(chan struct{})
	const answer = "413 too large"
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		<-full
		io.WriteString(c, answer)
		c.Close()
		close(closed)
	})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	one := r.theRelay()
	written := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			_, err = c.Write(make([]byte, 1<<16))
		}
		written <- err
	}()
	testenv.Until(t, "the host's socket to be full", func() bool { return r.isTrue(func() bool { return one.hostBlocked }) })
	// The loop sees both at once.
	for _, l := range r.e.loops {
		l.mu.Lock()
	}
	close(full)
	<-closed
	for _, l := range r.e.loops {
		l.mu.Unlock()
	}
	if got, _ := io.ReadAll(c); string(got) != answer { // the error may be the writer's
		t.Errorf("got %q, want %q", got, answer)
	}
	if err := <-written; errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the reset is not told: %v", err)
	}
}

// The same for a guest: what it has said is read, though what the host's side says at
// that moment finds it gone.
func TestTCPTheLastWordsOfAGuestArrive(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	speak, said, got := make(chan struct{}), make(chan struct{}), make(chan string, 1)
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		<-speak
		io.WriteString(c, "more")
		close(said)
		b, _ := io.ReadAll(c)
		got <- string(b)
	})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r.theRelay()
	// The loop has both before it.
	r.e.loops[0].mu.Lock()
	close(speak)
	<-said
	io.WriteString(c, "quit")
	r.resetGuest()
	r.e.loops[0].mu.Unlock()
	if words := <-got; words != "quit" {
		t.Errorf("got %q, want quit", words)
	}
}
