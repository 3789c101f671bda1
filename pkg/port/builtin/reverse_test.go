package builtin

import (
	"errors"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/port"
)

// containerIP is an address inside.
const containerIP = "198.51.100.9"

// reversed is the specs that are written as text, the other way.
func reversed(t testing.TB, texts ...string) []port.Spec {
	t.Helper()
	var all []port.Spec
	for _, text := range texts {
		parsed, err := port.ParseReverse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, parsed...)
	}
	return all
}

func TestReverseForwardsLeadToTheHost(t *testing.T) {
	testenv.UserNS{Flags: unix.CLONE_NEWNET, Inner: func(t *testing.T) {
		inside := newAway(t)
		if err := upLoopback(); err != nil {
			t.Fatal(err)
		}
		var err error
		if inside.do(func() { err = furnish("lo", containerIP+"/32") }); err != nil {
			t.Fatal(err)
		}
		// An opener would take what it can get.
		d := start(t, Options{Sockets: inside, Opener: &teller{}})
		serveTCP(t, "127.0.0.1:80", echo)
		serveUDP(t, "[::1]:80", same)
		serveUDP(t, "127.0.0.1:84", same)
		added, err := d.Add(t.Context(), reversed(t, "80:81/tcp", "80:81/udp", "127.0.0.1:80:0.0.0.0:82/tcp4", "127.0.0.1:84:0.0.0.0:82/udp4"))
		if err != nil {
			t.Fatal(err)
		}
		for _, ip := range []string{"127.0.0.1", "::1"} { // each reaches the service of the other
			var c *net.TCPConn
			var u *net.UDPConn
			inside.do(func() { c, u = dialTCP(t, at(ip, 81)), dialUDP(t, at(ip, 81)) })
			roundTrip(t, c, "hello")
			exchangeUDP(t, u, []byte("hello"))
		}
		// A container inside has an address that is not the host's.
		var c *net.TCPConn
		var u *net.UDPConn
		inside.do(func() { c, u = dialTCP(t, at(containerIP, 82)), dialUDP(t, at(containerIP, 82)) })
		roundTrip(t, c, "hello")
		exchangeUDP(t, u, []byte("hello"))
		if c, err := net.Dial("tcp", "127.0.0.1:81"); err == nil {
			c.Close()
			t.Error("a reverse forward listens on the host")
		}
		for _, s := range d.List() {
			if s.SourceIP != "" {
				t.Errorf("%s is listed with the source address %q", s.Spec, s.SourceIP)
			}
		}
		// What is taken inside, by a forward or by a program, is a conflict, and the
		// host's own ports are none.
		inside.do(func() { serveTCP(t, "127.0.0.1:83", echo) })
		for text, by := range map[string]string{"90:127.0.0.1:81/tcp": " by forward 1 (reverse 80:81/tcp)", "90:83/tcp": ""} {
			_, err := d.Add(t.Context(), append(reversed(t, "90:91/tcp"), reversed(t, text)...))
			if !errors.Is(err, port.ErrConflict) || !strings.HasSuffix(err.Error(), "in the namespace: bind: address already in use"+by) {
				t.Errorf("%s: %v", text, err)
			}
		}
		if _, err := d.Add(t.Context(), append(reversed(t, "90:91/tcp"), specs(t, "81:80/tcp")...)); err != nil {
			t.Errorf("both ways at once: %v", err)
		}
		_, err = d.Add(t.Context(), reversed(t, "90:198.51.100.10:92/tcp"))
		if err == nil || !strings.Contains(err.Error(), "the namespace does not have the address 198.51.100.10") {
			t.Errorf("an address that is not there: %v", err)
		}
		if err := d.Remove(t.Context(), ids(added), 0); err != nil {
			t.Fatal(err)
		}
		inside.do(func() {
			if c, err := net.Dial("tcp", "127.0.0.1:81"); err == nil {
				c.Close()
				t.Error("after it is removed, it listens")
			}
		})
	}}.Run(t)
}

func TestAReverseForwardWithoutSocketsIsRefused(t *testing.T) {
	var failure error = unix.EMFILE
	sockets := &home{}
	sockets.fail.Store(&failure)
	d := start(t, Options{Sockets: sockets})
	_, err := d.Add(t.Context(), reversed(t, "80:81/tcp"))
	if !errors.Is(err, unix.EMFILE) || len(d.List()) != 0 {
		t.Errorf("got %v, and %d forwards", err, len(d.List()))
	}
}
