package builtin

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
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
	d := start(t, Options{FlowTimeout: time.Second})
	add(t, d, "127.0.0.1:0:80/tcp", "127.0.0.1:0:80/udp") // these have the pool filled
	service, _ := serveUDP(t, "127.0.0.1:0", same)
	client := dialUDP(t, forwardTo(t, d, "udp", "127.0.0.1", service))
	idle := func() bool { return d.Counters().Flows == 0 && !holdsBatch(d) }
	if !idle() {
		t.Error("there is a flow, or a buffer for datagrams, before the first")
	}
	before := runtime.NumGoroutine()
	batch := make([]string, 500)
	for i := range batch {
		batch[i] = "127.0.0.1:0:80/" + []string{"tcp", "udp"}[i%2]
	}
	add(t, d, batch...)
	if got := runtime.NumGoroutine() - before; got > 0 {
		t.Errorf("%d goroutines came with %d forwards", got, len(batch))
	}
	exchangeUDP(t, client, []byte("hello"))
	if !holdsBatch(d) {
		t.Error("there is no buffer for the datagrams of a flow")
	}
	testenv.Until(t, "the forwards to be idle again", idle)
	testenv.Until(t, "the goroutines to be gone", func() bool { return runtime.NumGoroutine() <= before })
}

// holdsBatch says whether there is a buffer for datagrams.
func holdsBatch(d *Driver) (holds bool) {
	d.udp.loop.do(func() { holds = d.udp.batch != nil })
	return holds
}
