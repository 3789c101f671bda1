package test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

// Clients of one forward have the answers to their own datagrams, and no
// others.
func TestClientsOfAForwardAreKeptApart(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/udp", "sleep", "60")
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
	g := startGate(t, s.Host, "--net=slirp", "-p", "8080:80/udp", "sleep", "60")
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
