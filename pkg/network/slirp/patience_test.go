package slirp

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/gatekit/gatekit/internal/testenv"
)

// Hours go by in these tests on a clock that both stacks have and that stands
// still otherwise.

// step is less than any time after which a probe that has no answer is repeated.
const step = 30 * time.Second

// settled waits until both stacks have their one connection in a state that lasts.
func (r *rig) settled() {
	r.t.Helper()
	lasting := func() bool {
		eps := r.guest.RegisteredEndpoints()
		return len(eps) == 1 && slices.Contains([]tcp.EndpointState{tcp.StateEstablished, tcp.StateFinWait2, tcp.StateCloseWait},
			tcp.EndpointState(eps[0].(*tcp.Endpoint).State()))
	}
	testenv.Until(r.t, "the connection to be in a lasting state", func() bool {
		return lasting() && r.isTrue(func() bool { return len(r.e.tcp.relays) == 1 && r.theRelay().conn.HasAll() })
	})
}

// pass lets time go by, in which the engine sends probes that the guest answers.
func (r *rig) pass(clock *faketime.ManualClock, d time.Duration) {
	r.t.Helper()
	r.settled()
	answers := r.guest.Stats().TCP.SegmentsSent
	for ; d > 0; d -= step {
		answered := answers.Value()
		if r.advance(clock, step) {
			testenv.Until(r.t, "an answer", func() bool { return answers.Value() > answered })
		}
	}
}

// advance lets time go by, and the engine see it. It says whether that has had to do
// something.
func (r *rig) advance(clock *faketime.ManualClock, d time.Duration) bool {
	var due time.Duration
	r.isTrue(func() bool {
		for _, relay := range r.e.tcp.relays {
			due = max(due, relay.conn.Due())
		}
		return true
	})
	clock.Advance(d)
	// Timers are looked at behind the calls of a round.
	return r.isTrue(func() bool { return true }) && r.isTrue(func() bool { return due != 0 && r.e.tcp.now >= due })
}

// pair is a connection from the guest to the host.
type pair struct {
	guest *gonet.TCPConn
	host  *net.TCPConn
}

// connect makes a connection of which the test has both ends. Neither has a
// deadline, for its clock is the machine's.
func (r *rig) connect(at string) pair {
	r.t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	guest, err := r.dial(r.gateway(l.Addr().(*net.TCPAddr).AddrPort()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { guest.Close() })
	host, err := l.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { host.Close() })
	return pair{guest, host.(*net.TCPConn)}
}

// goes says that what is written at one end comes out at the other.
func goes(t *testing.T, from, to net.Conn) {
	t.Helper()
	from.SetDeadline(time.Now().Add(patience))
	to.SetDeadline(time.Now().Add(patience))
	if _, err := from.Write([]byte("late")); err != nil {
		t.Error(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(to, got); err != nil || string(got) != "late" {
		t.Errorf("got %q, %v", got, err)
	}
}

// Nothing of ours ends a connection whose ends are both there, whatever its state
// and however long it is idle.
func TestTCPIdleConnectionsLiveOn(t *testing.T) {
	const night = 12 * time.Hour
	end := func(t *testing.T, of, to interface {
		net.Conn
		CloseWrite() error
	}) {
		t.Helper()
		of.CloseWrite()
		if n, err := to.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read %d bytes, %v", n, err)
		}
	}
	for name, test := range map[string]struct{ before, after func(*testing.T, pair) }{
		"idle": {
			func(*testing.T, pair) {},
			func(t *testing.T, p pair) { goes(t, p.guest, p.host); goes(t, p.host, p.guest) },
		},
		"after the end of the guest's half": {
			func(t *testing.T, p pair) { end(t, p.guest, p.host) },
			func(t *testing.T, p pair) { goes(t, p.host, p.guest) },
		},
		"after the end of the host's half": {
			func(t *testing.T, p pair) { end(t, p.host, p.guest) },
			func(t *testing.T, p pair) { goes(t, p.guest, p.host) },
		},
	} {
		for family, local := range families {
			t.Run(name+" over "+family, func(t *testing.T) {
				clock := faketime.NewManualClock()
				r := newRig(t, rigOptions{Options: all, clock: clock})
				p := r.connect(local)
				test.before(t, p)
				r.pass(clock, night)
				test.after(t, p)
			})
		}
	}
}

// A guest may keep its window closed for as long as it likes.
func TestTCPWindowOfZeroMayLast(t *testing.T) {
	clock := faketime.NewManualClock()
	r := newRig(t, rigOptions{Options: all, clock: clock})
	p := r.connect("127.0.0.1:0")
	want := bytes.Repeat([]byte("all of it "), 6<<20)
	var sent atomic.Int64
	written := make(chan error, 1)
	go func() {
		for chunk := range slices.Chunk(want, 1<<16) {
			n, err := p.host.Write(chunk)
			if sent.Add(int64(n)); err != nil {
				written <- err
				return
			}
		}
		written <- p.host.CloseWrite()
	}()
	last, still := int64(0), 0
	testenv.Until(t, "the sender to be stopped", func() bool {
		r.advance(clock, time.Second)
		now := sent.Load()
		if still++; now == 0 || now != last {
			still = 0
		}
		last = now
		return still > 50
	})
	if last == int64(len(want)) {
		t.Fatal("nothing stops the sender")
	}
	r.pass(clock, 12*time.Hour)
	read := make(chan error, 1)
	var got []byte
	go func() {
		var err error
		got, err = io.ReadAll(p.guest)
		read <- err
	}()
	testenv.Until(t, "the rest of the stream", func() bool {
		clock.Advance(step) // to the next probe, which finds the window open
		return len(read) == 1
	})
	if err := errors.Join(<-read, <-written); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes came, %v", len(got), len(want), err)
	}
}

// A guest that no longer answers, and did not say goodbye, is found out in the end.
func TestTCPGuestThatFallsSilentIsFoundOut(t *testing.T) {
	const probes = 9
	for name, test := range map[string]struct {
		before func(pair)
		after  time.Duration // of silence
		want   syscall.Errno // at the host
	}{
		"open":                            {func(pair) {}, keepAlive.Idle, syscall.ECONNRESET},
		"after the end of its own half":   {func(p pair) { p.guest.CloseWrite(); p.host.Read(make([]byte, 1)) }, halfOpenIdle, syscall.EPIPE},
		"after the end of the other half": {func(p pair) { p.host.CloseWrite(); p.guest.Read(make([]byte, 1)) }, keepAlive.Idle, syscall.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			clock := faketime.NewManualClock()
			r := newRig(t, rigOptions{Options: all, clock: clock})
			p := r.connect("127.0.0.1:0")
			test.before(p)
			r.settled()
			r.silent.Store(true)
			for range (test.after + (probes-1)*keepAlive.Interval) / step {
				r.advance(clock, step)
			}
			if relaysOf(r) != 1 {
				t.Fatal("the guest is given up before it has been asked often enough")
			}
			testenv.Until(t, "the end of the connection", func() bool {
				clock.Advance(step)
				return relaysOf(r) == 0
			})
			raw, err := p.host.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var pending int
			if err := raw.Control(func(fd uintptr) { pending, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) }); err != nil || syscall.Errno(pending) != test.want {
				t.Errorf("the host sees %v, %v, want %v", syscall.Errno(pending), err, test.want)
			}
		})
	}
}
