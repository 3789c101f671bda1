package builtin

import (
	"context"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// away is a network namespace next to the test's, with sockets and services of
// its own: what the child is to the parent. Its thread ends with the test.
type away struct{ calls chan func() }

func newAway(t *testing.T) *away {
	t.Helper()
	a := &away{calls: make(chan func())}
	ready := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		ready <- err
		if err == nil {
			for f := range a.calls {
				f()
			}
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(a.calls); <-ended })
	return a
}

// do runs f in the namespace. Sockets that f makes stay there.
func (a *away) do(f func()) {
	done := make(chan struct{})
	a.calls <- func() { defer close(done); f() }
	<-done
}

func (a *away) Sockets(ctx context.Context, domain, typ, n int) (files []*os.File, err error) {
	a.do(func() { files, err = (&home{}).Sockets(ctx, domain, typ, n) })
	return files, err
}

// upLoopback brings lo of the calling thread's namespace up.
func upLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func TestForwardsLeadIntoTheOtherNamespace(t *testing.T) {
	testenv.UserNS{Flags: unix.CLONE_NEWNET, Inner: func(t *testing.T) {
		a := newAway(t)
		if err := upLoopback(); err != nil {
			t.Fatal(err)
		}
		var err error
		if a.do(func() { err = upLoopback() }); err != nil {
			t.Fatal(err)
		}
		d := start(t, Options{Sockets: a})
		for _, ip := range []string{"127.0.0.1", "::1"} {
			// The same addresses and ports on both sides: only a socket of the
			// other namespace reaches the service.
			var stream, datagrams net.Addr
			a.do(func() {
				stream, _ = serveTCP(t, at(ip, 80), echo)
				datagrams, _ = serveUDP(t, at(ip, 80), same)
			})
			if stream == nil || datagrams == nil {
				t.Fatal("no services")
			}
			bracketed := map[string]string{"127.0.0.1": "127.0.0.1", "::1": "[::1]"}[ip]
			add(t, d, bracketed+":80:80/tcp", bracketed+":80:80/udp")
			roundTrip(t, dialTCP(t, at(ip, 80)), "hello")
			exchangeUDP(t, dialUDP(t, at(ip, 80)), []byte("hello"))
		}
	}}.Run(t)
}
