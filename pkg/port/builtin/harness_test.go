package builtin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/port"
)

// The tests run the driver with both of its sides in one network namespace, on
// loopback: home makes the sockets that the child would make.

func TestMain(m *testing.M) { testenv.Main(m) }

// home is port.Sockets at home.
type home struct {
	calls atomic.Int64
	gate  chan struct{} // when set, calls wait until it is closed
	fail  atomic.Pointer[error]
}

func (h *home) Sockets(ctx context.Context, domain, typ, n int) ([]*os.File, error) {
	h.calls.Add(1)
	if h.gate != nil {
		select {
		case <-h.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := h.fail.Load(); err != nil {
		return nil, *err
	}
	return port.SocketsIn(nil).Sockets(ctx, domain, typ, n)
}

// start runs a driver for the length of the test.
func start(t testing.TB, opts Options) *Driver {
	t.Helper()
	if opts.Sockets == nil {
		opts.Sockets = &home{}
	}
	d := New(opts)
	run(t, d)
	return d
}

// run runs a driver for the length of the test.
func run(t testing.TB, d *Driver) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-result:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(testenv.Patience):
			t.Error("Run does not return")
		}
	})
}

// add adds forwards that are written as text.
func add(t testing.TB, d *Driver, texts ...string) []port.Status {
	t.Helper()
	statuses, err := d.Add(t.Context(), specs(t, texts...))
	if err != nil {
		t.Fatal(err)
	}
	return statuses
}

func specs(t testing.TB, texts ...string) []port.Spec {
	t.Helper()
	var all []port.Spec
	for _, text := range texts {
		parsed, err := port.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, parsed...)
	}
	return all
}

// forwardTo adds a forward of proto from a free port of parentIP to a service,
// and returns the address for clients.
func forwardTo(t testing.TB, d *Driver, proto, parentIP string, service net.Addr) string {
	t.Helper()
	target := netip.MustParseAddrPort(service.String())
	statuses, err := d.Add(t.Context(), []port.Spec{{
		Proto: proto, ParentIP: parentIP, ChildIP: target.Addr().String(), ChildPort: int(target.Port()),
	}})
	if err != nil {
		t.Fatal(err)
	}
	return at(parentIP, statuses[0].Spec.ParentPort)
}

// at joins a loopback address and a port.
func at(ip string, number int) string { return net.JoinHostPort(ip, fmt.Sprint(number)) }

// serveTCP runs a service, and each of its connections in a goroutine of its
// own. It ends with the test, or when the function that it returns is called.
func serveTCP(t testing.TB, address string, handle func(*net.TCPConn)) (net.Addr, func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of descriptors
				continue
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(testenv.Patience))
				handle(c.(*net.TCPConn))
			})
		}
	})
	stop := sync.OnceFunc(func() { l.Close(); wg.Wait() })
	t.Cleanup(stop)
	return l.Addr(), stop
}

// echo sends back what comes, and the end after its end.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

func dialTCP(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, testenv.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(testenv.Patience))
	return c.(*net.TCPConn)
}

// roundTrip sends text and wants it back.
func roundTrip(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("sent %q, got %q, %v", text, got, err)
	}
}

// wantReset wants the connection to have been reset, after some bytes perhaps.
func wantReset(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// wantRefused wants a new connection to be reset, at once or after it was made.
func wantRefused(t testing.TB, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testenv.Patience))
	wantReset(t, c)
}

// serveUDP runs a service that answers each datagram with what answer makes of
// it. It ends with the test, or when the function that it returns is called.
func serveUDP(t testing.TB, address string, answer func([]byte) []byte) (net.Addr, func()) {
	t.Helper()
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(answer(buf[:n]), from)
		}
	})
	stop := sync.OnceFunc(func() { c.Close(); wg.Wait() })
	t.Cleanup(stop)
	return c.LocalAddr(), stop
}

func same(b []byte) []byte { return b }

func dialUDP(t testing.TB, address string) *net.UDPConn {
	t.Helper()
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// exchangeUDP sends datagrams until one is answered, as clients do, and wants it
// back unchanged.
func exchangeUDP(t testing.TB, c *net.UDPConn, data []byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	testenv.Until(t, "an answer over UDP", func() bool {
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Read(buf)
		if err != nil {
			return false
		}
		return string(buf[:n]) == string(data) // else it answers an earlier one
	})
}

// freePort returns a port that is free in both families for the moment, and for
// as long as the function that it returns has not been called.
func freePort(t testing.TB) (number int, release func()) {
	t.Helper()
	for range 100 {
		v4, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		number := v4.Addr().(*net.TCPAddr).Port
		v6, err := net.Listen("tcp6", at("::1", number))
		if err == nil {
			release := sync.OnceFunc(func() { v4.Close(); v6.Close() })
			t.Cleanup(release)
			return number, release
		}
		v4.Close()
	}
	t.Fatal("no port is free in both families")
	return 0, nil
}
