package test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

// Clients of one forward have the answers to their own datagrams, and no
// others.
func TestClientsOfAForwardAreKeptApart(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/udp", "sleep", "infinity")
	g.serve(t, "udp", "127.0.0.1:80", "[::1]:80")
	var clients []*net.UDPConn
	for _, e := range s.ends() {
		for range 5 {
			conn := dialUDP(t, e.from, at(e.addr, 8080))
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, conn)
		}
	}
	// All ask, and then all read.
	const rounds = 3
	for round := range rounds {
		for i, c := range clients {
			if _, err := fmt.Fprintf(c, "%d %d", i, round); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, c := range clients {
		for round := range rounds {
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			if want := fmt.Sprintf("%d %d", i, round); err != nil || string(buf[:n]) != want {
				t.Errorf("client %d reads %q, %v; want %q", i, buf[:n], err, want)
			}
		}
	}
	g.stop(t)
}

// An answer comes from the address that the client has asked, also on a host
// with several: a client's connected socket takes no other.
func TestAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	s := newSite(t)
	s.hasAddress(t, "198.51.100.14/28", s.outside.Interface)
	s.hasAddress(t, "2001:db8::e/64", s.outside.Interface)
	second := s.Host.Outside(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/udp", "sleep", "infinity")
	g.serve(t, "udp", "127.0.0.1:80", "[::1]:80")
	for _, addr := range []string{
		at(s.outside.HostAddr4, 8080), "198.51.100.14:8080", at(second.HostAddr4, 8080),
		at(s.outside.HostAddr6, 8080), "[2001:db8::e]:8080", at(second.HostAddr6, 8080),
	} {
		t.Run(addr, func(t *testing.T) {
			if err := tryUDP(t, s.outside, addr); err != nil {
				t.Error(err)
			}
		})
	}
}

// connecting is a service in Python that connects its socket to the first client, as
// iperf3, nc and DTLS do, and answers with all that it has got so far, from the second
// datagram on.
const connecting = `
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
print("serving", flush=True)
text, peer = s.recvfrom(65536)
s.connect(peer)
print("connected to", peer[0], flush=True)
while True:
    text += s.recv(65536)
    s.send(text)
`

// A socket that is connected has an address of its own: what the client sends has to
// go there, also before the service has answered from it.
func TestAServiceMayConnectItsSocket(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for i, c := range []struct {
		service string
		from    machine
		host    netip.Addr
	}{
		{"0.0.0.0", s.outside, s.outside.HostAddr4},
		{"127.0.0.1", s.outside, s.outside.HostAddr4},
		{"::", s.outside, s.outside.HostAddr6},
		{"::", s.outside, s.outside.HostAddr4},
		{"::1", s.outside, s.outside.HostAddr6},
		{"0.0.0.0", s.Host, s.outside.HostAddr4},
	} {
		t.Run(fmt.Sprintf("on %s, of a client of %v, %d", c.service, c.host, i), func(t *testing.T) {
			service := s.Start(t, g.in("/usr/bin/python3", "-c", connecting, c.service, fmt.Sprint(7000+i)))
			awaitLine(t, service, "(serving)")
			g.add(t, fmt.Sprintf("%d:%d/udp", 8000+i, 7000+i))
			conn := dialUDP(t, c.from, at(c.host, 8000+i))
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(testenv.Patience))
			send := func(text string) {
				t.Helper()
				if _, err := conn.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			send("one ")
			awaitLine(t, service, "(connected to .*)")
			for _, c := range []struct{ text, want string }{{"two ", "one two "}, {"three", "one two three"}} {
				send(c.text)
				answer := make([]byte, 100)
				n, err := conn.Read(answer)
				if err != nil || string(answer[:n]) != c.want {
					t.Errorf("the service answers %q, %v, want %q", answer[:n], err, c.want)
				}
			}
		})
	}
}
