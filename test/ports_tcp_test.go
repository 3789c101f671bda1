package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
)

func TestBytesGoBothWaysThroughAForward(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "--publish=8080:80/tcp", "sleep", "infinity")
	g.serve(t, "tcp", "127.0.0.1:80", "[::1]:80")
	for name, e := range s.ends() {
		t.Run(name, func(t *testing.T) {
			if err := tryTCP(t, e.from, at(e.addr, 8080), large); err != nil {
				t.Error(err)
			}
		})
	}
	g.stop(t)
}

func TestAServiceMayEndItsHalfFirst(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/tcp", "sleep", "infinity")
	service := g.startService(t, g.in("probe", "parting", "127.0.0.1:80"))
	conn, err := dialTCP(t, s.outside, at(s.outside.HostAddr4, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); string(got) != "goodbye" || err != nil {
		t.Errorf("the client reads %q, %v", got, err)
	}
	if _, err := conn.Write(pattern(100_000)); err != nil {
		t.Error(err)
	}
	conn.Close()
	awaitLine(t, service, "then 100000 ok\n")
}

// A client that asks for the end of its connection has all of the answer before that,
// whether it ends its own half after the request or waits for the server's.
func TestClientsThatCloseHaveAllOfTheAnswer(t *testing.T) {
	s := newSite(t)
	s.WriteFile(t, "/srv/page", string(pattern(1_000_000)), 0o644)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/tcp", "sleep", "infinity")
	server := s.Start(t, g.in("/usr/bin/python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/srv", "80"))
	awaitLine(t, server, "(Serving HTTP)")
	for name, e := range s.ends() {
		for _, half := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, its half ended is %v", name, half), func(t *testing.T) {
				for range 10 {
					conn, err := dialTCP(t, e.from, at(e.addr, 8080))
					if err != nil {
						t.Fatal(err)
					}
					_, err = io.WriteString(conn, "GET /page HTTP/1.1\r\nHost: page\r\nConnection: close\r\n\r\n")
					if half {
						err = errors.Join(err, conn.CloseWrite())
					}
					answer, rerr := io.ReadAll(conn)
					conn.Close()
					_, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
					if err = errors.Join(err, rerr); err != nil || !bytes.Equal(body, pattern(1_000_000)) {
						t.Fatalf("%d bytes of the page come, %v", len(body), err)
					}
				}
			})
		}
	}
	g.stop(t)
}

// deaf is a service in Python that never accepts what its queue takes.
const deaf = `
import signal, socket
listener = socket.create_server(("127.0.0.1", 80))
print("serving", flush=True)
signal.pause()
`

// A client of a service that does not accept waits with it, and is reset at its end.
func TestClientsWaitForAServiceThatNeverAccepts(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/tcp", "sleep", "infinity")
	service := s.Start(t, g.in("/usr/bin/python3", "-c", deaf))
	awaitLine(t, service, "(serving)")
	clients := map[string]net.Conn{}
	for name, e := range s.ends() {
		conn, err := dialTCP(t, e.from, at(e.addr, 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		clients[name] = conn
	}
	c := g.client(t)
	testenv.Until(t, "all to be connected inside", func() bool {
		list, err := c.Connections(t.Context())
		open := slices.DeleteFunc(list, func(c api.Connection) bool { return c.State != "open" })
		return err == nil && len(open) == len(clients)
	})
	for name, conn := range clients {
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: while the service is there, a client sees %v", name, err)
		}
	}
	service.Kill()
	service.Wait(t)
	for name, conn := range clients {
		_ = conn.SetReadDeadline(time.Now().Add(testenv.Patience))
		if _, err := conn.Read(make([]byte, 1)); outcome(err) != "connection reset by peer" {
			t.Errorf("%s: at its end, a client sees %v", name, err)
		}
	}
	g.stop(t)
}

func TestResetsGoThroughAForward(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/tcp", "sleep", "infinity")
	service := g.startService(t, g.in("probe", "breaking", "127.0.0.1:80"))
	connect := func(say string) *net.TCPConn {
		t.Helper()
		conn, err := dialTCP(t, s.outside, at(s.outside.HostAddr4, 8080))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(say)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	t.Run("from the service", func(t *testing.T) {
		if _, err := connect("b").Read(make([]byte, 1)); outcome(err) != "connection reset by peer" {
			t.Errorf("the client sees %v", err)
		}
	})
	t.Run("from the client", func(t *testing.T) {
		conn := connect("h")
		awaitLine(t, service, "hanging\n")
		if err := conn.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		awaitLine(t, service, "hung until connection reset by peer\n")
	})
}

// A client of a forward without a service is turned away, and the next one finds
// the service that has come in the meantime.
func TestServicesComeAndGo(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "127.0.0.1:8080:80/tcp", "-p", "127.0.0.1:8080:80/udp", "sleep", "infinity")
	turnedAway := func() {
		t.Helper()
		conn, err := dialTCP(t, s.Host, "127.0.0.1:8080")
		if err == nil {
			defer conn.Close()
			_, err = conn.Read(make([]byte, 1))
		}
		if got := outcome(err); got != "connection reset by peer" {
			t.Errorf("without a service, the client sees %q", got)
		}
	}
	turnedAway()
	for range 3 {
		tcp, udp := g.serve(t, "tcp", "127.0.0.1:80"), g.serve(t, "udp", "127.0.0.1:80")
		if err := tryTCP(t, s.Host, "127.0.0.1:8080", 100_000); err != nil {
			t.Error(err)
		}
		if err := tryUDP(t, s.Host, "127.0.0.1:8080"); err != nil {
			t.Error(err)
		}
		for _, p := range []*testenv.Process{tcp, udp} {
			p.Kill()
			p.Wait(t)
		}
		turnedAway()
	}
}

// The forward's own side of a connection ends with the client's: a hundred
// connections one after the other, and then as many at once.
func TestManyConnectionsShareAForward(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "127.0.0.1:8080:80/tcp", "sleep", "infinity")
	g.serve(t, "tcp", "127.0.0.1:80")
	for range 100 {
		if err := tryTCP(t, s.Host, "127.0.0.1:8080", 1000); err != nil {
			t.Fatal(err)
		}
	}
	var conns []*net.TCPConn
	for range 100 {
		conn, err := dialTCP(t, s.Host, "127.0.0.1:8080")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	for i, conn := range conns {
		if err := exchange(conn, 1000+i); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

// urging is a service in Python that takes urgent data in line, and answers with
// some of its own.
const urging = `
import socket
s = socket.create_server(("127.0.0.1", 80))
print("serving", flush=True)
while True:
    c, _ = s.accept()
    c.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    text = b""
    while not text.endswith(b"."):
        text += c.recv(100)
    c.sendall(text)
    c.send(b"!", socket.MSG_OOB)
    c.sendall(b"end")
    c.close()
`

func TestUrgentDataKeepsItsPlaceInTheStream(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/tcp4", "sleep", "infinity")
	awaitLine(t, g.host.Start(t, g.in("/usr/bin/python3", "-c", urging)), "(serving)")
	for name, from := range map[string]machine{"by the fast path": s.Host, "in the client's name": s.outside} {
		t.Run(name, func(t *testing.T) {
			conn, err := dialTCP(t, from, at(s.outside.HostAddr4, 8080))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(testenv.Patience))
			raw, err := conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_OOBINLINE, 1)
				if err == nil {
					err = syscall.Sendto(int(fd), []byte("abc!"), syscall.MSG_OOB, nil)
				}
			}); err != nil {
				t.Fatal(err)
			}
			if _, werr := conn.Write([]byte("def.")); err != nil || werr != nil {
				t.Fatal(err, werr)
			}
			if got, err := io.ReadAll(conn); string(got) != "abc!def.!end" || err != nil {
				t.Errorf("the client reads %q, %v", got, err)
			}
		})
	}
}
