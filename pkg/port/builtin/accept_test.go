package builtin

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
)

// guarded is a buffer for the log.
type guarded struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (g *guarded) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.Write(b)
}

func (g *guarded) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.String()
}

// Whatever accept4(2) fails with is counted, and said once, where it is more than
// one connection's own; the connections that wait are served.
func TestAcceptSurvives(t *testing.T) {
	const failures = 4
	for name, c := range map[string]struct {
		errno  unix.Errno
		logged bool
	}{
		"a process out of descriptors":    {unix.EMFILE, true},
		"a host out of descriptors":       {unix.ENFILE, true},
		"a host out of buffers":           {unix.ENOBUFS, true},
		"a host out of memory":            {unix.ENOMEM, true},
		"a connection that was aborted":   {unix.ECONNABORTED, false},
		"a connection's protocol failing": {unix.EPROTO, false},
		"a connection's host unreachable": {unix.EHOSTUNREACH, false},
	} {
		t.Run(name, func(t *testing.T) {
			log := &guarded{}
			d := start(t, Options{Logger: slog.New(slog.NewTextHandler(log, nil))})
			service, _ := serveTCP(t, "127.0.0.1:0", echo)
			address := forwardTo(t, d, "tcp", "127.0.0.1", service)
			left := failures // the loop's own, as is take
			d.tcp.loop.do(func() {
				d.tcp.take = func(fd int) (int, netip.Addr, error) {
					if left > 0 {
						left--
						return -1, netip.Addr{}, c.errno
					}
					return linux.Accept(fd)
				}
			})
			for range 3 {
				roundTrip(t, dialTCP(t, address), "hello")
			}
			if got := d.Counters().AcceptErrors; got != failures {
				t.Errorf("%d errors are counted, want %d", got, failures)
			}
			want := 0
			if c.logged {
				want = 1
			}
			testenv.Until(t, "what is logged", func() bool { return strings.Count(log.String(), "\n") == want })
			if c.logged && (!strings.Contains(log.String(), c.errno.Error()) || !strings.Contains(log.String(), "forward=1")) {
				t.Errorf("the log is %q", log)
			}
		})
	}
}

// Each further failure rests twice as long, up to a second, and a success ends that.
func TestRestsGrowAndEnd(t *testing.T) {
	d := New(Options{Sockets: &home{}})
	defer d.cancel()
	a, err := newAcceptor(d)
	if err != nil {
		t.Fatal(err)
	}
	defer a.loop.close()
	fd, err := linux.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l := &listener{fd: fd, forward: &forward{}}
	a.take = func(int) (int, netip.Addr, error) { return -1, netip.Addr{}, unix.EMFILE }
	for want := minRest; want < maxRest; want *= 2 {
		if a.accept(l); l.rest != want {
			t.Fatalf("it rests for %v, want %v", l.rest, want)
		}
		if next := a.wake(l.resume.Add(-1)); !next.Equal(l.resume) {
			t.Fatalf("it rests until %v, want %v", next, l.resume)
		}
		if next := a.wake(l.resume); !next.IsZero() {
			t.Fatalf("after its rest it rests until %v", next)
		}
	}
	for range 2 {
		if a.accept(l); l.rest != maxRest {
			t.Fatalf("it rests for %v, want %v at the longest", l.rest, maxRest)
		}
	}
}
