package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// Programs for the tests of the network: clients and services for which no
// ordinary program shows what has to be seen.

// signalTerm ends a gate's command.
const signalTerm = syscall.SIGTERM

// pattern returns bytes that look random, and are always the same.
func pattern(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}

// outcome is the errno in an error, "end of file" or "ok".
func outcome(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case err == io.EOF:
		return "end of file"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}

// dialer gives up when something hangs.
var dialer = net.Dialer{Timeout: testenv.Patience}

// report prints an error for a probe and returns its exit code.
func report(err error) int {
	if err == nil {
		fmt.Println("ok")
		return 0
	}
	fmt.Println(err)
	return 1
}

// exchange has an echo service send size bytes back while they are still being
// sent, ends its own side, and expects the other's end.
func exchange(conn *net.TCPConn, size int) error {
	if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
		return err
	}
	want := pattern(size)
	var sending sync.WaitGroup
	var sendErr error
	sending.Go(func() {
		if _, sendErr = conn.Write(want); sendErr == nil {
			sendErr = conn.CloseWrite()
		}
	})
	got, err := io.ReadAll(conn)
	if err != nil {
		conn.Close() // lets the sender go
	}
	sending.Wait()
	switch {
	case err != nil:
		return fmt.Errorf("read: %s after %d of %d bytes", outcome(err), len(got), size)
	case sendErr != nil:
		return fmt.Errorf("write: %w", sendErr)
	case !bytes.Equal(got, want):
		return fmt.Errorf("%d bytes came back for %d, or others", len(got), size)
	}
	return nil
}

// exchange ADDR SIZE
var _ = testenv.Probe("exchange", func(args []string) int {
	size, _ := strconv.Atoi(args[1])
	conn, err := dialer.Dial("tcp", args[0])
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	return report(exchange(conn.(*net.TCPConn), size))
})

// connect ADDR... connects, one after the other, and prints what came of it.
var _ = testenv.Probe("connect", func(args []string) int {
	for _, addr := range args {
		conn, err := dialer.Dial("tcp", addr)
		fmt.Println(addr, outcome(err))
		if err == nil {
			conn.Close()
		}
	}
	return 0
})

// read ADDR greets a server with one byte, and prints what it sends and how that
// ends.
var _ = testenv.Probe("read", func(args []string) int {
	conn, err := dialer.Dial("tcp", args[0])
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		return report(err)
	}
	got, err := io.ReadAll(conn)
	fmt.Println(string(got), outcome(err))
	return 0
})

// reset ADDR reads a byte and resets the connection.
var _ = testenv.Probe("reset", func(args []string) int {
	conn, err := dialer.Dial("tcp", args[0])
	if err != nil {
		return report(err)
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return report(errors.Join(err, conn.(*net.TCPConn).SetLinger(0), conn.Close()))
})

// pending COUNT ADDR... begins COUNT connections to each address, says so, and
// when its stdin ends prints what has come of them.
var _ = testenv.Probe("pending", func(args []string) int {
	count, _ := strconv.Atoi(args[0])
	var polls []unix.PollFd
	for _, addr := range args[1:] {
		for range count {
			fd, err := connectNonblock(netip.MustParseAddrPort(addr))
			if err != nil {
				return report(fmt.Errorf("%s: %w", addr, err))
			}
			polls = append(polls, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
		}
	}
	fmt.Println("begun")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if _, err := unix.Poll(polls, 0); err != nil {
		return report(err)
	}
	connected, failed := 0, 0
	for _, p := range polls {
		switch _, err := unix.Getpeername(int(p.Fd)); {
		case p.Revents == 0:
		case err == nil:
			connected++
		default:
			failed++
		}
	}
	fmt.Printf("%d connected, %d failed\n", connected, failed)
	return 0
})

// connectNonblock sends a SYN and does not wait.
func connectNonblock(to netip.AddrPort) (int, error) {
	domain, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sa); err != unix.EINPROGRESS {
		return -1, fmt.Errorf("connect: %w, want it to be in progress", err)
	}
	return fd, nil
}

// payloads are the sizes of datagrams that are tried: none, small, the edge of
// an Ethernet frame, several fragments, and the largest.
var payloads = []int{0, 1, 1400, 1472, 1473, 9000, 65507}

// pathMTU is what any datagram may hold on its way to another host of the tests,
// and narrow how long to wait before one that is larger is sent again: the first
// may be lost where its sender learns of the narrower path (RFC 1191, 3).
const (
	pathMTU = 1500 - 40 - 8 // Ethernet less the headers of IPv6 and UDP
	narrow  = time.Second
)

// echo sends a datagram from a socket and expects it back from where it went.
func echo(conn *net.UDPConn, to netip.AddrPort, payload []byte) error {
	end := time.Now().Add(testenv.Patience)
	wait := testenv.Patience
	if len(payload) > pathMTU {
		wait = narrow
	}
	for {
		if _, err := conn.WriteToUDPAddrPort(payload, to); err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		buf := make([]byte, 65535)
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end):
			continue
		case err != nil:
			return fmt.Errorf("%d bytes to %v: %w", len(payload), to, err)
		case from != to || !bytes.Equal(buf[:n], payload):
			return fmt.Errorf("%d bytes to %v: got %d bytes from %v", len(payload), to, n, from)
		}
		return nil
	}
}

// echoConnected does the same on a connected socket, which gets nothing but what
// comes from where it sends to.
func echoConnected(conn *net.UDPConn, payload []byte) error {
	if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
		return err
	}
	if _, err := conn.Write(payload); err != nil {
		return err
	}
	buf := make([]byte, 65535)
	n, err := conn.Read(buf)
	if err == nil && !bytes.Equal(buf[:n], payload) {
		err = fmt.Errorf("%d bytes came back for %d, or others", n, len(payload))
	}
	return err
}

// echo ADDR... exchanges datagrams of all sizes with each of several servers, in
// turn, from one socket.
var _ = testenv.Probe("echo", func(args []string) int {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	for _, size := range payloads {
		for _, addr := range args {
			if err := echo(conn, netip.MustParseAddrPort(addr), pattern(size)); err != nil {
				return report(err)
			}
		}
	}
	return report(nil)
})

// segments ADDR sends a batch of datagrams that the kernel cuts from one write
// (UDP_SEGMENT in udp(7)), and expects each back.
var _ = testenv.Probe("segments", func(args []string) int {
	const size, count = 1000, 20
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return report(err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	if err := errors.Join(err, optErr, conn.SetDeadline(time.Now().Add(testenv.Patience))); err != nil {
		return report(err)
	}
	want := pattern(size * count)
	if _, err := conn.WriteToUDPAddrPort(want, netip.MustParseAddrPort(args[0])); err != nil {
		return report(err)
	}
	var got []byte
	for range count {
		buf := make([]byte, 65535)
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil || n != size {
			return report(fmt.Errorf("a datagram of %d bytes, want %d; %w", n, size, err))
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, want) {
		return report(errors.New("other bytes came back, or in another order"))
	}
	return report(nil)
})

// send ADDR... sends a datagram to each, with the address as its payload. All
// are of one family.
var _ = testenv.Probe("send", func(args []string) int {
	// Without ::1, Go thinks that there is no IPv6, unless it is asked for.
	network := "udp4"
	if netip.MustParseAddrPort(args[0]).Addr().Is6() {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	for _, addr := range args {
		if _, err := conn.WriteToUDPAddrPort([]byte(addr), netip.MustParseAddrPort(addr)); err != nil {
			return report(fmt.Errorf("send to %s: %w", addr, err))
		}
	}
	return report(nil)
})

// hear ADDR greets a server, and prints the datagrams that come, with their
// sources, until one says "end".
var _ = testenv.Probe("hear", func(args []string) int {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
		return report(err)
	}
	if _, err := conn.WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort(args[0])); err != nil {
		return report(err)
	}
	for buf := make([]byte, 65535); ; {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return report(err)
		}
		fmt.Println(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), string(buf[:n]))
		if string(buf[:n]) == "end" {
			return 0
		}
	}
})

// service NETWORK ADDR... echoes on each address, tcp or udp, until it is killed.
var _ = testenv.Probe("service", func(args []string) int {
	failed := make(chan error)
	for _, addr := range args[1:] {
		var serve func() error
		switch args[0] {
		case "tcp":
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
			if err != nil {
				return report(err)
			}
			serve = func() error { return acceptAll(l, echoTCP) }
		case "udp":
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
			if err != nil {
				return report(err)
			}
			serve = func() error { return echoAll(c) }
		}
		go func() { failed <- serve() }()
	}
	fmt.Println("serving", slices.Clone(args[1:]))
	return report(<-failed)
})

// parting ADDR says goodbye to a client and ends its own side first; it then
// prints how many bytes still come, and how that ends.
var _ = testenv.Probe("parting", func(args []string) int {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return report(err)
	}
	fmt.Println("serving", args)
	return report(acceptAll(l.(*net.TCPListener), func(conn *net.TCPConn) {
		_, _ = conn.Write([]byte("goodbye"))
		_ = conn.CloseWrite()
		n, err := io.Copy(io.Discard, conn)
		fmt.Println("then", n, outcome(err))
	}))
})

// breaking ADDR resets each connection after one byte; "h" is told to hang
// until the client resets, and how that ended is printed.
var _ = testenv.Probe("breaking", func(args []string) int {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return report(err)
	}
	fmt.Println("serving", args)
	return report(acceptAll(l.(*net.TCPListener), func(conn *net.TCPConn) {
		var b [1]byte
		_, _ = conn.Write([]byte("x"))
		_, err := io.ReadFull(conn, b[:])
		if err == nil && b[0] == 'h' {
			fmt.Println("hanging")
			_, err = conn.Read(b[:])
			fmt.Println("hung until", outcome(err))
			return
		}
		_ = conn.SetLinger(0)
	}))
})

// acceptAll handles each connection on a goroutine of its own, until accepting
// fails.
func acceptAll(l *net.TCPListener, handle func(*net.TCPConn)) error {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			return err
		}
		go func() {
			handle(conn)
			conn.Close()
		}()
	}
}

// echoAll sends each datagram back, until receiving fails.
func echoAll(c *net.UDPConn) error {
	buf := make([]byte, 65535)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		echoUDP(c, buf[:n], from)
	}
}
