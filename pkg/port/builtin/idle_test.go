package builtin

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// openPipes counts the pipe descriptors of this process.
func openPipes(t *testing.T) int {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	pipes := 0
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, "pipe:") {
			pipes++
		}
	}
	return pipes
}

func TestIdleConnectionsHoldNoPipe(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
		buf := make([]byte, 64) // io.Copy, as in echo, would hold a pipe too
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			_, _ = c.Write(buf[:n])
		}
	})
	address := forwardTo(t, d, "tcp", "127.0.0.1", service)
	before := openPipes(t)
	const many = 200
	var conns []*net.TCPConn
	for i := range many {
		c := dialTCP(t, address)
		roundTrip(t, c, fmt.Sprint(i))
		conns = append(conns, c)
	}
	for i, c := range conns {
		roundTrip(t, c, fmt.Sprint("again ", i))
	}
	if got := openPipes(t) - before; got > 2*keptPipes {
		t.Errorf("%d pipe descriptors for %d idle connections", got, many)
	}
}

func TestIdleForwardsHoldNoGoroutine(t *testing.T) {
	d := start(t, Options{})
	add(t, d, "127.0.0.1:0:80/tcp", "127.0.0.1:0:80/udp") // these have the pool filled
	before := runtime.NumGoroutine()
	batch := make([]string, 500)
	for i := range batch {
		batch[i] = "127.0.0.1:0:80/" + []string{"tcp", "udp"}[i%2]
	}
	add(t, d, batch...)
	if got := runtime.NumGoroutine() - before; got > 0 {
		t.Errorf("%d goroutines came with %d forwards", got, len(batch))
	}
	d.udp.loop.do(func() {
		if d.udp.batch != nil {
			t.Error("there is a buffer for datagrams, and no flow")
		}
	})
}
