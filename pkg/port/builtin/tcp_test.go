package builtin

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/port"
)

func TestTCPReachesTheServiceInEveryFamily(t *testing.T) {
	d := start(t, Options{})
	for _, tt := range []struct{ name, proto, parent, service string }{
		{"tcp from IPv4 to IPv4", "tcp", "127.0.0.1", "127.0.0.1:0"},
		{"tcp from IPv6 to IPv6", "tcp", "::1", "[::1]:0"},
		{"tcp4 from IPv4 to IPv6", "tcp4", "127.0.0.1", "[::1]:0"},
		{"tcp6 from IPv6 to IPv4", "tcp6", "::1", "127.0.0.1:0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			service, _ := serveTCP(t, tt.service, echo)
			c := dialTCP(t, forwardTo(t, d, tt.proto, tt.parent, service))
			roundTrip(t, c, "hello")
		})
	}
}

func TestTCPOnEveryAddressServesBothFamilies(t *testing.T) {
	d := start(t, Options{})
	for _, parent := range []string{"", "0.0.0.0", "::"} {
		t.Run("parent address "+parent, func(t *testing.T) {
			service, _ := serveTCP(t, "127.0.0.1:0", echo)
			statuses, err := d.Add(t.Context(), []port.Spec{{
				Proto: "tcp", ParentIP: parent, ChildPort: service.(*net.TCPAddr).Port,
			}})
			if err != nil {
				t.Fatal(err)
			}
			for _, ip := range []string{"127.0.0.1", "::1"} {
				// The service listens on IPv4 alone: the IPv6 client is served by
				// the fallback.
				roundTrip(t, dialTCP(t, at(ip, statuses[0].Spec.ParentPort)), "hello")
			}
		})
	}
}

func TestTCP4AndTCP6ShareAPort(t *testing.T) {
	d := start(t, Options{})
	four, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) { fmt.Fprint(c, "four") })
	six, _ := serveTCP(t, "[::1]:0", func(c *net.TCPConn) { fmt.Fprint(c, "six") })
	number, release := freePort(t)
	release()
	add(t, d,
		fmt.Sprintf("%d:%d/tcp4", number, four.(*net.TCPAddr).Port),
		fmt.Sprintf("%d:%d/tcp6", number, six.(*net.TCPAddr).Port))
	for ip, want := range map[string]string{"127.0.0.1": "four", "::1": "six"} {
		if got, err := io.ReadAll(dialTCP(t, at(ip, number))); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", ip, got, err, want)
		}
	}
}

func TestTCPCarriesMuchDataBothWaysAtOnce(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveTCP(t, "127.0.0.1:0", echo)
	c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
	want := make([]byte, 16<<20)
	_, _ = rand.Read(want)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = c.Write(want)
		_ = c.CloseWrite()
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes of %d, %v", len(got), len(want), err)
	}
}

func TestTCPHalfClose(t *testing.T) {
	d := start(t, Options{})
	t.Run("the client's end reaches the service, which answers after it", func(t *testing.T) {
		service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			question, err := io.ReadAll(c)
			fmt.Fprintf(c, "%s, %v", question, err)
		})
		c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
		fmt.Fprint(c, "question")
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != "question, <nil>" {
			t.Fatalf("got %q, %v", got, err)
		}
	})
	t.Run("the service's end reaches the client, which goes on", func(t *testing.T) {
		heard := make(chan string, 1)
		service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			fmt.Fprint(c, "greeting")
			_ = c.CloseWrite()
			all, _ := io.ReadAll(c)
			heard <- string(all)
		})
		c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
		if got, err := io.ReadAll(c); err != nil || string(got) != "greeting" {
			t.Fatalf("got %q, %v", got, err)
		}
		fmt.Fprint(c, "more")
		c.Close()
		if got := <-heard; got != "more" {
			t.Fatalf("the service heard %q", got)
		}
	})
	testenv.Until(t, "all connections to be over", func() bool { return d.Counters().Conns == 0 })
}

func TestTCPResets(t *testing.T) {
	d := start(t, Options{})
	t.Run("the client's reset reaches the service", func(t *testing.T) {
		heard := make(chan error, 1)
		service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, err := io.Copy(c, c)
			heard <- err
		})
		c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
		roundTrip(t, c, "hello")
		_ = c.SetLinger(0)
		c.Close()
		if err := <-heard; !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("the service got %v", err)
		}
	})
	t.Run("the service's reset reaches the client, after what it had sent", func(t *testing.T) {
		answer := bytes.Repeat([]byte("x"), 100_000)
		service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 1)) // one byte of two: closing resets
			_, _ = c.Write(answer)
		})
		c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
		if _, err := c.Write([]byte("ab")); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if !errors.Is(err, unix.ECONNRESET) || len(got) != len(answer) {
			t.Fatalf("got %d bytes of %d, %v", len(got), len(answer), err)
		}
	})
	t.Run("a client that writes to a service that is gone is reset", func(t *testing.T) {
		service, _ := serveTCP(t, "127.0.0.1:0", func(*net.TCPConn) {})
		c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
		if got, err := io.ReadAll(c); err != nil || len(got) != 0 {
			t.Fatalf("got %q, %v", got, err)
		}
		testenv.Until(t, "a write to fail", func() bool {
			_, err := c.Write([]byte("x"))
			return err != nil
		})
	})
	t.Run("a service that dies while its client is half closed resets it", func(t *testing.T) {
		die := make(chan struct{})
		service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, _ = io.ReadAll(c)
			<-die
			_ = c.SetLinger(0)
		})
		c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
		_ = c.CloseWrite()
		close(die)
		wantReset(t, c)
	})
	t.Run("a client that dies half closed, while the service is silent, resets the service", func(t *testing.T) {
		heard := make(chan error, 1)
		service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, _ = io.ReadAll(c) // the client's end
			fmt.Fprint(c, "x")
			for {
				if _, err := c.Write([]byte("x")); err != nil {
					heard <- err
					return
				}
			}
		})
		c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
		_ = c.CloseWrite()
		_, _ = io.ReadFull(c, make([]byte, 1))
		c.Close()
		if err := <-heard; !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Fatalf("the service got %v", err)
		}
	})
	testenv.Until(t, "all connections to be over", func() bool { return d.Counters().Conns == 0 })
}

func TestTCPServiceMayComeLateAndGo(t *testing.T) {
	d := start(t, Options{})
	number, release := freePort(t)
	release()
	status := add(t, d, fmt.Sprintf("127.0.0.1:0:%d/tcp", number))[0]
	address := at("127.0.0.1", status.Spec.ParentPort)
	for round := range 2 {
		wantRefused(t, address)
		_, stop := serveTCP(t, at("127.0.0.1", number), echo)
		c := dialTCP(t, address)
		roundTrip(t, c, fmt.Sprintf("round %d", round))
		c.Close()
		stop()
	}
	if got := d.Counters().DialErrors; got != 2 {
		t.Errorf("%d dial errors, want 2", got)
	}
}

func TestTCPDialEnds(t *testing.T) {
	t.Run("after its time, when the service does not answer", func(t *testing.T) {
		d := start(t, Options{DialTimeout: 50 * time.Millisecond})
		c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", silentService(t)))
		wantReset(t, c)
	})
	t.Run("with Run", func(t *testing.T) {
		d := start(t, Options{})
		dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", silentService(t)))
		testenv.Until(t, "the dial", func() bool { return d.Counters().Conns == 1 })
	})
	t.Run("with Run, when no socket comes from the namespace", func(t *testing.T) {
		d := start(t, Options{Sockets: &home{gate: make(chan struct{})}})
		dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}))
		testenv.Until(t, "the dial", func() bool { return d.Counters().Conns == 1 })
	})
}

// silentService is a listener whose queue is full: it answers no SYN.
func silentService(t *testing.T) net.Addr {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	service := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: sa.(*unix.SockaddrInet4).Port}
	for range 3 { // a queue of 0 holds one
		c, err := net.DialTimeout("tcp", service.String(), 50*time.Millisecond)
		if err != nil {
			return service
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue does not fill")
	return nil
}

func TestTCPCaps(t *testing.T) {
	d := start(t, Options{MaxConns: 3, MaxConnsPerForward: 2})
	service, _ := serveTCP(t, "127.0.0.1:0", echo)
	first := forwardTo(t, d, "tcp", "127.0.0.1", service)
	second := forwardTo(t, d, "tcp", "127.0.0.1", service)
	kept := []*net.TCPConn{dialTCP(t, first), dialTCP(t, first)}
	for _, c := range kept {
		roundTrip(t, c, "hello")
	}
	wantRefused(t, first) // the forward is full
	c := dialTCP(t, second)
	roundTrip(t, c, "hello")
	wantRefused(t, second) // the driver is full
	if got := d.Counters().ConnsRefused; got != 2 {
		t.Errorf("%d refused, want 2", got)
	}
	c.Close()
	testenv.Until(t, "room for another", func() bool { return d.Counters().Conns == 2 })
	roundTrip(t, dialTCP(t, second), "hello")
}

func TestRemoveTCP(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveTCP(t, "127.0.0.1:0", echo)
	address := forwardTo(t, d, "tcp", "127.0.0.1", service)
	c := dialTCP(t, address)
	roundTrip(t, c, "hello")
	if err := d.Remove(t.Context(), []int{1, 1}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("tcp", address); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a new connection got %v", err)
	}
	roundTrip(t, c, "still here")
	if list := d.List(); list == nil || len(list) != 0 {
		t.Errorf("the list is %#v", list)
	}
	// The test's end stops Run, which does not wait for the hour.
}

func TestRemoveTCPCutsConnectionsInTheEnd(t *testing.T) {
	for name, drain := range map[string]time.Duration{"after a while": time.Millisecond, "at once": 0} {
		t.Run(name, func(t *testing.T) {
			d := start(t, Options{})
			service, _ := serveTCP(t, "127.0.0.1:0", echo)
			c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
			roundTrip(t, c, "hello")
			if err := d.Remove(t.Context(), []int{1}, drain); err != nil {
				t.Fatal(err)
			}
			wantReset(t, c)
		})
	}
}

func TestADrainIsOverWithTheLastConnection(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveTCP(t, "127.0.0.1:0", echo)
	address := forwardTo(t, d, "tcp", "127.0.0.1", service)
	first, last := dialTCP(t, address), dialTCP(t, address)
	roundTrip(t, first, "hello")
	roundTrip(t, last, "hello")
	d.mu.Lock()
	fw := d.forwards[1]
	d.mu.Unlock()
	if err := d.Remove(t.Context(), []int{1}, time.Hour); err != nil {
		t.Fatal(err)
	}
	first.Close()
	testenv.Until(t, "the end of one connection", func() bool { return d.Counters().Conns == 1 })
	roundTrip(t, last, "still here")
	last.Close()
	select {
	case <-fw.over:
	case <-time.After(testenv.Patience):
		t.Error("the drain goes on")
	}
}

// TestAcceptSurvivesAShortageOfDescriptors gives the process no more descriptors while
// a client connects, whatever others it closes.
func TestAcceptSurvivesAShortageOfDescriptors(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveTCP(t, "127.0.0.1:0", echo)
	address := forwardTo(t, d, "tcp", "127.0.0.1", service)
	roundTrip(t, dialTCP(t, address), "before")

	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
	defer restore()
	to := net.TCPAddrFromAddrPort(mustAddrPort(t, address))
	if err := unix.Connect(client, &unix.SockaddrInet4{Addr: [4]byte(to.IP.To4()), Port: to.Port}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "accept to fail several times", func() bool { return d.Counters().AcceptErrors > 2 })
	restore()
	c, err := net.FileConn(fileOf(t, client))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testenv.Patience))
	roundTrip(t, c, "the one that waited")
	roundTrip(t, dialTCP(t, address), "after")
}

func fileOf(t *testing.T, fd int) *os.File {
	f := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

// TestMemoryCarriesWhereThereIsNoPipe sends a stream through the carrier that
// stands in for a pipe.
func TestMemoryCarriesWhereThereIsNoPipe(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	m := &memory{buf: make([]byte, 4)}
	if _, err := m.Fill(fds[1], chunk); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("an empty socket gives %v", err)
	}
	if _, err := unix.Write(fds[0], []byte("abcdef")); err != nil {
		t.Fatal(err)
	}
	n, err := m.Fill(fds[1], chunk)
	if n != 4 || err != nil {
		t.Fatalf("Fill: %d, %v", n, err)
	}
	for _, part := range []int{1, 3} {
		if n, err := m.Drain(fds[1], part); n != part || err != nil {
			t.Fatalf("Drain: %d, %v", n, err)
		}
	}
	got := make([]byte, 8)
	if n, err := unix.Read(fds[0], got); err != nil || string(got[:n]) != "abcd" {
		t.Fatalf("got %q, %v", got[:n], err)
	}
}

// A client that does not read has the service wait, as without us, and ends it when it
// goes.
func TestTCPWaitsForAClientThatDoesNotRead(t *testing.T) {
	d := start(t, Options{})
	stuck, ended := make(chan struct{}), make(chan error, 1)
	service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
		// What the buffers take is less than this.
		buf := make([]byte, 1<<20)
		for range 1000 {
			_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := c.Write(buf); errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
		}
		close(stuck)
		_ = c.SetWriteDeadline(time.Now().Add(testenv.Patience))
		for {
			if _, err := c.Write(buf); err != nil {
				ended <- err
				return
			}
		}
	})
	c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
	<-stuck
	if n := d.Counters().Conns; n != 1 {
		t.Errorf("there are %d connections", n)
	}
	c.Close()
	if err := <-ended; !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("the service sees %v", err)
	}
}

// A service whose program never takes its connections has the kernel take what is sent;
// the client's end ends both.
func TestTCPToAServiceThatNeverAccepts(t *testing.T) {
	d := start(t, Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", l.Addr()))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	taken, err := l.Accept() // at last
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_ = taken.SetDeadline(time.Now().Add(testenv.Patience))
	if got, err := io.ReadAll(taken); string(got) != "hello" || err != nil {
		t.Errorf("the service reads %q, %v", got, err)
	}
	next := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", l.Addr()))
	testenv.Until(t, "the connection", func() bool { return d.Counters().Conns == 2 })
	if err := next.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	next.Close()
	testenv.Until(t, "its end", func() bool { return d.Counters().Conns == 1 })
}
