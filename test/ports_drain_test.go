package test

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

// greet exchanges a byte over a connection to an echo service.
func greet(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

func TestConnectionsOutliveTheirForwardAsAsked(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "60")
	g.serve(t, "tcp", "127.0.0.1:80")
	for _, c := range []struct {
		name  string
		flags []string
		lives bool
	}{
		{"for an hour", []string{"--drain=1h"}, true},
		{"not at all", []string{"--drain=0s"}, false},
		{"for a moment, if nobody says", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := g.ctl(t, "add-ports", "127.0.0.1:8080:80/tcp").Stdout
			conn, err := dialTCP(t, s.Host, "127.0.0.1:8080")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := greet(conn); err != nil {
				t.Fatal(err)
			}
			r := g.ctl(t, append(append([]string{"remove-ports"}, c.flags...), id[:len(id)-1])...)
			if r.Stdout != id || r.Code != 0 {
				t.Error(r)
			}
			if _, err := dialTCP(t, s.Host, "127.0.0.1:8080"); !refused(err) {
				t.Errorf("a new connection: %v", err)
			}
			if c.lives {
				if err := greet(conn); err != nil {
					t.Error(err)
				}
				return
			}
			_ = conn.SetReadDeadline(time.Now().Add(testenv.Patience))
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection ends with %v, want a reset", err)
			}
		})
	}
	g.stop(t)
}
