package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// How TCP connections live and end, and what is left of them.

// sockets are the descriptors of the parent's sockets.
func (g *gate) sockets(t *testing.T) (fds []int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", g.PID())
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		to, err := os.Readlink(filepath.Join(dir, f.Name()))
		if n, bad := strconv.Atoi(f.Name()); err == nil && bad == nil && strings.HasPrefix(to, "socket:") {
			fds = append(fds, n)
		}
	}
	return fds
}

// eachSocket calls f with a duplicate of each of the parent's sockets.
func (g *gate) eachSocket(t *testing.T, f func(fd int)) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(g.PID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	for _, n := range g.sockets(t) {
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			t.Fatal(err)
		}
		f(fd)
		unix.Close(fd)
	}
}

// connections are the TCP sockets of the Host that are in a state, as ss(8) names
// it, and go to an address.
func (s site) connections(t *testing.T, state string, to netip.Addr) int {
	t.Helper()
	r := s.Run(t, s.RootCommand("ss", "-Htn", "state", state, "dst", "["+to.String()+"]"))
	if r.Code != 0 {
		t.Fatal(r)
	}
	return strings.Count(r.Stdout, "\n")
}

// A guest that gives up sends nothing: its SYNs stop. The kernel of the host would
// go on for two minutes.
func TestADialEndsWithTheProgramThatWantedIt(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for _, hole := range blackholes {
		cmd := g.in("probe", "pending", "3", at(hole, 80))
		stdin, keys := io.Pipe()
		cmd.Stdin = stdin
		p := s.Start(t, cmd)
		testenv.Until(t, "the host's SYNs", func() bool { return s.connections(t, "syn-sent", hole) == 3 })
		keys.Close()
		p.Wait(t)
		testenv.Until(t, "the end of the dials", func() bool { return s.connections(t, "syn-sent", hole) == 0 })
	}
	g.stop(t)
}

// urgent ADDR sends a stream with urgent data in it, and reads one.
var _ = testenv.Probe("urgent", func(args []string) int {
	conn, err := dialer.Dial("tcp", args[0])
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	return report(exchangeUrgent(conn.(*net.TCPConn)))
})

// exchangeUrgent sends a stream of which every 1000th byte is urgent, while it
// reads the same from the other side.
func exchangeUrgent(conn *net.TCPConn) error {
	want := pattern(1 << 20)
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inlineErr error
	err = raw.Control(func(fd uintptr) {
		inlineErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	})
	if err := errors.Join(err, inlineErr); err != nil {
		return err
	}
	var sendErr error
	var sending sync.WaitGroup
	sending.Go(func() {
		for rest := want; len(rest) > 0 && sendErr == nil; {
			n := min(999, len(rest))
			if _, sendErr = conn.Write(rest[:n]); sendErr != nil {
				return
			}
			if rest = rest[n:]; len(rest) == 0 {
				break
			}
			var oobErr error
			sendErr = raw.Write(func(fd uintptr) bool {
				oobErr = unix.Sendto(int(fd), rest[:1], unix.MSG_OOB, nil)
				return !errors.Is(oobErr, unix.EAGAIN)
			})
			sendErr = errors.Join(sendErr, oobErr)
			rest = rest[1:]
		}
		sendErr = errors.Join(sendErr, conn.CloseWrite())
	})
	got, err := io.ReadAll(conn)
	if err != nil {
		conn.Close() // lets the sender go
	}
	sending.Wait()
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%d bytes came of %d, or others", len(got), len(want))
	}
	return errors.Join(err, sendErr)
}

// Urgent data is nothing but bytes in their place.
func TestUrgentDataStaysInTheStream(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		ended := make(chan error, 1)
		server := serveTCP(t, s.outside, at(outside, 0), func(conn *net.TCPConn) { ended <- exchangeUrgent(conn) })
		g.run(t, "probe", "urgent", server.String())
		if err := receive(t, ended, "the server's end"); err != nil {
			t.Error(err)
		}
	})
	g.stop(t)
}

// partings ADDR COUNT opens connections, says so, waits for a line on stdin, and
// closes all of them.
var _ = testenv.Probe("partings", func(args []string) int {
	count, _ := strconv.Atoi(args[1])
	var conns []net.Conn
	for range count {
		conn, err := dialer.Dial("tcp", args[0])
		if err != nil {
			return report(err)
		}
		conns = append(conns, conn)
	}
	fmt.Println("open")
	_, _ = io.Copy(io.Discard, os.Stdin)
	var err error
	for _, conn := range conns {
		err = errors.Join(err, conn.Close())
	}
	return report(err)
})

// Connections that both sides close at once, or almost, are gone then, on both.
func TestBothSidesMayCloseAtOnce(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	before := len(g.sockets(t))
	const count = 50
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		for _, first := range []string{"outside", "inside"} {
			now := make(chan struct{})
			server := serveTCP(t, s.outside, at(outside, 0), func(*net.TCPConn) { <-now })
			cmd := g.in("probe", "partings", server.String(), strconv.Itoa(count))
			stdin, keys := io.Pipe()
			cmd.Stdin = stdin
			p := s.Start(t, cmd)
			awaitLine(t, p, "open\n")
			if n := len(g.sockets(t)); n < before+count {
				t.Fatalf("%d sockets for %d connections", n-before, count)
			}
			if first == "inside" {
				keys.Close()
				testenv.Until(t, "the first end", func() bool {
					return g.run(t, "ss", "-Htn", "exclude", "established", "dst", "["+outside.String()+"]") != ""
				})
			}
			close(now)
			keys.Close()
			if r := p.Wait(t); r.Code != 0 {
				t.Error(r)
			}
			testenv.Until(t, "the gate to close its sockets", func() bool { return len(g.sockets(t)) == before })
			testenv.Until(t, "the guest to forget its own", func() bool {
				return g.run(t, "ss", "-Htn", "exclude", "time-wait", "dst", "["+outside.String()+"]") == ""
			})
		}
	})
	g.stop(t)
}

// again ADDR COUNT HOW connects COUNT times from one port. HOW says who is first to
// close, guest or host, or that the guest resets. Where the guest's own kernel
// does not give the port again yet, it is asked until it does.
var _ = testenv.Probe("again", func(args []string) int {
	count, _ := strconv.Atoi(args[1])
	d := dialer
	d.Control = func(_, _ string, c syscall.RawConn) error {
		var optErr error
		err := c.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return errors.Join(err, optErr)
	}
	for i := range count {
		var conn net.Conn
		var err error
		testenv.Eventually(testenv.Patience, func() bool {
			conn, err = d.Dial("tcp", args[0])
			return !errors.Is(err, unix.EADDRNOTAVAIL)
		})
		if err != nil {
			return report(fmt.Errorf("connection %d: %w", i, err))
		}
		d.LocalAddr = conn.LocalAddr()
		switch args[2] {
		case "reset":
			err = conn.(*net.TCPConn).SetLinger(0)
		case "guest":
			err = conn.(*net.TCPConn).CloseWrite()
			fallthrough
		default:
			if err == nil {
				_, err = io.Copy(io.Discard, conn)
			}
		}
		if err := errors.Join(err, conn.Close()); err != nil {
			return report(fmt.Errorf("connection %d: %w", i, err))
		}
	}
	return report(nil)
})

// netstat is a counter of the gate's kernel (nstat(8)).
func (g *gate) netstat(t *testing.T, name string) int {
	t.Helper()
	names, values := []string{}, []string{}
	for line := range strings.Lines(g.run(t, "cat", "/proc/net/netstat")) {
		names, values = values, strings.Fields(line)
		if i := slices.Index(names, name); i >= 0 {
			n, err := strconv.Atoi(values[i])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("the kernel has no counter %s", name)
	return 0
}

// A port may be used again, towards the same destination, as soon as the guest's
// own kernel lets it.
func TestAPortIsUsedAgainAtOnce(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	// The guest's kernel has TIME_WAIT where it is first to close. With this it uses
	// such a port again after a second.
	g.run(t, "sysctl", "-q", "-w", "net.ipv4.tcp_tw_reuse=1")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		parts := serveTCP(t, s.outside, at(outside, 0), func(*net.TCPConn) {})
		waits := serveTCP(t, s.outside, at(outside, 0), func(conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) })
		g.run(t, "probe", "again", parts.String(), "100", "host")
		g.run(t, "probe", "again", waits.String(), "100", "reset")
		g.run(t, "probe", "again", waits.String(), "3", "guest")
	})
	// No SYN was dropped, to be sent again after a second.
	if again := g.netstat(t, "TCPSynRetrans"); again != 0 {
		t.Errorf("%d SYNs had to be repeated", again)
	}
	g.stop(t)
}

// stallTime is how long a writer makes no progress until it is taken for stopped.
const stallTime = 500 * time.Millisecond

// flood writes size bytes. Where it is stopped it says how many it has written,
// once, and goes on.
func flood(conn *net.TCPConn, size int, stopped func(int)) error {
	chunk := pattern(1 << 16)
	for done := 0; done < size; {
		patience := stallTime
		if stopped == nil {
			patience = testenv.Patience
		}
		if err := conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		n, err := conn.Write(chunk[:min(len(chunk), size-done)])
		done += n
		if errors.Is(err, os.ErrDeadlineExceeded) && stopped != nil {
			stopped(done)
			stopped, err = nil, nil
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", done, err)
		}
	}
	return conn.CloseWrite()
}

// flood ADDR COUNT SIZE writes to COUNT connections, and prints how much each has
// written when it is stopped.
var _ = testenv.Probe("flood", func(args []string) int {
	count, _ := strconv.Atoi(args[1])
	size, _ := strconv.Atoi(args[2])
	results := make(chan error, count)
	for range count {
		go func() {
			conn, err := dialer.Dial("tcp", args[0])
			if err == nil {
				defer conn.Close()
				err = flood(conn.(*net.TCPConn), size, func(n int) { fmt.Println("stopped at", n) })
			}
			results <- err
		}()
	}
	var err error
	for range count {
		err = errors.Join(err, <-results)
	}
	return report(err)
})

// slow ADDR COUNT reads COUNT connections when its stdin has ended, and prints how
// much came.
var _ = testenv.Probe("slow", func(args []string) int {
	count, _ := strconv.Atoi(args[1])
	var conns []net.Conn
	for range count {
		conn, err := dialer.Dial("tcp", args[0])
		if err != nil {
			return report(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, conn := range conns {
		n, err := io.Copy(io.Discard, conn)
		fmt.Println(n, outcome(err))
	}
	return 0
})

// memory is what the parent has resident, in bytes.
func (g *gate) memory(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	kib, err := strconv.Atoi(strings.TrimSuffix(field(t, string(status), "VmRSS"), " kB"))
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// A reader that stops stops its sender: both windows close, and in between there
// are no more bytes than the stack's buffer takes. All of them arrive when the
// reader goes on.
func TestASlowReaderStopsTheSender(t *testing.T) {
	const (
		count = 8
		size  = 64 << 20 // more than all buffers on the way hold
		room  = 16 << 20 // of the parent, for each connection
	)
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	before := g.memory(t)
	bounded := func(t *testing.T, stopped []int) {
		t.Helper()
		if slices.Max(stopped) >= size {
			t.Errorf("%d bytes were sent that nobody reads", stopped)
		}
		if used := g.memory(t) - before; used > count*room {
			t.Errorf("the gate has %d bytes for %d connections", used, count)
		}
	}
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		t.Run("inside", func(t *testing.T) {
			stopped, ended := make(chan int, count), make(chan error, count)
			server := serveTCP(t, s.outside, at(outside, 0), func(conn *net.TCPConn) {
				ended <- flood(conn, size, func(n int) { stopped <- n })
			})
			cmd := g.in("probe", "slow", server.String(), strconv.Itoa(count))
			stdin, keys := io.Pipe()
			cmd.Stdin = stdin
			p := s.Start(t, cmd)
			var at []int
			for range count {
				at = append(at, receive(t, stopped, "the sender to be stopped"))
			}
			bounded(t, at)
			keys.Close()
			if r := p.Wait(t); r.Stdout != strings.Repeat(fmt.Sprintf("%d ok\n", size), count) {
				t.Errorf("the readers got %v", r)
			}
			for range count {
				if err := receive(t, ended, "the sender's end"); err != nil {
					t.Error(err)
				}
			}
		})
		t.Run("outside", func(t *testing.T) {
			goOn := make(chan struct{})
			got := make(chan string, count)
			server := serveTCP(t, s.outside, at(outside, 0), func(conn *net.TCPConn) {
				<-goOn
				n, err := io.Copy(io.Discard, conn)
				got <- fmt.Sprint(n, " ", outcome(err))
			})
			p := s.Start(t, g.in("probe", "flood", server.String(), strconv.Itoa(count), strconv.Itoa(size)))
			testenv.Until(t, "the senders to be stopped", func() bool { return strings.Count(p.Stdout(), "\n") == count })
			var at []int
			for line := range strings.Lines(p.Stdout()) {
				var n int
				if _, err := fmt.Sscanf(line, "stopped at %d", &n); err != nil {
					t.Fatalf("%v in %q", err, line)
				}
				at = append(at, n)
			}
			bounded(t, at)
			close(goOn)
			if r := p.Wait(t); r.Code != 0 {
				t.Error(r)
			}
			for range count {
				if what := receive(t, got, "the reader"); what != fmt.Sprintf("%d ok", size) {
					t.Errorf("a reader got %s", what)
				}
			}
		})
	})
	g.stop(t)
}

// A connection to a peer on the host's side that falls silent ends when the
// keepalive probes of the host's kernel say so. That takes two hours; here the
// test reaches into the gate for its sockets, and has them ask every second.
func TestAPeerThatFallsSilentIsFoundOut(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	var clients []*testenv.Process
	arrived := make(chan struct{}, 2)
	for _, addr := range []netip.Addr{s.outside.Addr4, s.outside.Addr6} {
		server := serveTCP(t, s.outside, at(addr, 0), func(conn *net.TCPConn) {
			_, _ = conn.Read(make([]byte, 1))
			arrived <- struct{}{}
			_, _ = conn.Read(make([]byte, 1))
		})
		clients = append(clients, s.Start(t, g.in("probe", "read", server.String())))
		receive(t, arrived, "the connection")
	}
	found := 0
	g.eachSocket(t, func(fd int) {
		peer, err := unix.Getpeername(fd)
		switch peer.(type) {
		case *unix.SockaddrInet4, *unix.SockaddrInet6:
		default:
			return
		}
		if err != nil {
			return
		}
		found++
		for option, want := range map[int]int{unix.TCP_KEEPIDLE: 2 * 3600, unix.TCP_KEEPINTVL: 75, unix.TCP_KEEPCNT: 9} {
			if got, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, option); err != nil || got != want {
				t.Errorf("socket option %d is %d, %v, want %d", option, got, err, want)
			}
		}
		for option, value := range map[int]int{unix.TCP_KEEPIDLE: 1, unix.TCP_KEEPINTVL: 1, unix.TCP_KEEPCNT: 2} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value); err != nil {
				t.Error(err)
			}
		}
	})
	if found != len(clients) {
		t.Fatalf("found %d of the gate's connections, want %d", found, len(clients))
	}
	if r := s.outside.Run(t, s.outside.Command("ip", "link", "set", "eth0", "down")); r.Code != 0 {
		t.Fatal(r)
	}
	for _, p := range clients {
		if r := p.Wait(t); r.Stdout != " connection reset by peer\n" {
			t.Errorf("the client sees %v, want a reset", r)
		}
	}
	g.stop(t)
}

// crowd ADDR COUNT connects as often at once, and waits for the end of all.
var _ = testenv.Probe("crowd", func(args []string) int {
	var count int
	if _, err := fmt.Sscan(args[1], &count); err != nil {
		return report(err)
	}
	errs := make(chan error, count)
	for range count {
		go func() {
			conn, err := dialer.Dial("tcp", args[0])
			if err == nil {
				_, err = io.Copy(io.Discard, conn)
				conn.Close()
			}
			errs <- err
		}()
	}
	var err error
	for range count {
		err = errors.Join(err, <-errs)
	}
	return report(err)
})

// Where the host gives the gate few descriptors, connections wait for those of others,
// and are not told that nobody listens. The user is told why, and has the API meanwhile.
func TestConnectionsWaitWhereDescriptorsAreFew(t *testing.T) {
	s := newSite(t)
	release := make(chan struct{})
	server := serveTCP(t, s.outside, at(s.outside.Addr4, 0), func(*net.TCPConn) { <-release }).String()
	g := &gate{host: s.Host, stateDir: s.User.RuntimeDir + "/gate"}
	g.Process = s.Start(t, s.Command("sh", "-c", "ulimit -n 64; exec gatekit --state-dir="+g.stateDir+" --debug --net=slirp probe crowd "+server+" 45"))
	awaitLine(t, g.Process, "no descriptors are left for connections.*ulimit -n")
	if _, err := g.client(t).Connections(t.Context()); err != nil {
		t.Error(err)
	}
	close(release)
	if r := g.Wait(t); r.Code != 0 || !strings.Contains(r.Stderr, "counters.dialsTurnedAway=") {
		t.Error(r)
	}
}
