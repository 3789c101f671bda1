package test

import (
	"errors"
	"fmt"
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

// draining is a way by which a connection goes through a gate.
type draining struct {
	add     []string
	connect func(t *testing.T) net.Conn // one to somebody who echoes
	refuses func(t *testing.T) bool     // says whether a new connection is refused
}

// drainings are the ways by a gate with a service at 127.0.0.1:80.
func (s site) drainings(t *testing.T, g *gate) map[string]draining {
	t.Helper()
	by := func(from machine, at string, add ...string) draining {
		return draining{add,
			func(t *testing.T) net.Conn {
				conn, err := dialTCP(t, from, at)
				if err != nil {
					t.Fatal(err)
				}
				return conn
			},
			func(t *testing.T) bool {
				_, err := dialTCP(t, from, at)
				return refused(err)
			},
		}
	}
	accepted, held := make(chan net.Conn, 1), make(chan struct{})
	service := serveTCP(t, s.Host, "127.0.0.1:0", func(c *net.TCPConn) {
		accepted <- c
		<-held // the test's until then
	})
	t.Cleanup(func() { close(held) })
	reverse := func(at string) draining {
		return draining{[]string{"--reverse", fmt.Sprintf("%s:%s/tcp", service, at)},
			func(t *testing.T) net.Conn {
				s.Start(t, g.in("socat", "TCP:"+at, "EXEC:cat"))
				return receive(t, accepted, "a connection")
			},
			func(t *testing.T) bool {
				return g.run(t, "probe", "connect", at) == at+" connection refused\n"
			},
		}
	}
	return map[string]draining{
		"the fast path":           by(s.Host, "127.0.0.1:8080", "127.0.0.1:8080:80/tcp"),
		"the client's name":       by(s.outside, at(s.outside.HostAddr4, 8080), "8080:80/tcp"),
		"a reverse forward":       reverse("127.0.0.1:5432"),
		"a lead of the gateway's": reverse("10.0.2.2:5432"),
	}
}

func TestConnectionsOutliveTheirForwardAsAsked(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	g.serve(t, "tcp", "127.0.0.1:80")
	for by, way := range s.drainings(t, g) {
		for _, c := range []struct {
			name  string
			flags []string
			lives bool
		}{
			{"for an hour", []string{"--drain=1h"}, true},
			{"not at all", []string{"--drain=0s"}, false},
			{"for a moment, if nobody says", nil, false},
		} {
			t.Run("by "+by+", "+c.name, func(t *testing.T) {
				id := g.ctlOutput(t, append([]string{"add-ports"}, way.add...)...)
				conn := way.connect(t)
				defer conn.Close()
				if err := greet(conn); err != nil {
					t.Fatal(err)
				}
				r := g.ctl(t, append(append([]string{"remove-ports"}, c.flags...), id[:len(id)-1])...)
				if r.Stdout != id || r.Code != 0 {
					t.Error(r)
				}
				if !way.refuses(t) {
					t.Error("a new connection is not refused")
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
	}
	g.stop(t)
}
