package test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// manyConns is how many connections are open at once, where there are descriptors
// for them.
const manyConns = 10_000

// frugal is a service in Python that echoes, with one descriptor for each connection.
const frugal = `
import resource, selectors, socket
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
ready = selectors.DefaultSelector()
listener = socket.create_server(("127.0.0.1", 80), backlog=4096)
ready.register(listener, selectors.EVENT_READ)
print("serving", flush=True)
while True:
    for key, _ in ready.select():
        if key.fileobj is listener:
            ready.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        try:
            data = key.fileobj.recv(65536)
            key.fileobj.sendall(data)
        except OSError:
            data = b""
        if not data:
            ready.unregister(key.fileobj)
            key.fileobj.close()
`

// descriptorsOf is how many descriptors a process has open.
func descriptorsOf(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// allowFiles raises the limit of descriptors for the length of the test, also for
// what it starts, and returns it.
func allowFiles(t *testing.T) int {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &before) })
	for _, limit := range []uint64{65536, before.Max} { // some may not raise the hard one
		raised := unix.Rlimit{Cur: limit, Max: max(limit, before.Max)}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err == nil {
			return int(limit)
		}
	}
	return int(before.Cur)
}

// caller is who opens a connection, and where to.
type caller struct {
	from machine
	addr string
}

// echoAtOnce opens a connection for each caller, says something on each while all are
// open, and closes them.
func echoAtOnce(t *testing.T, callers []caller) {
	t.Helper()
	n := len(callers)
	conns := make([]*net.TCPConn, n)
	errs := make(chan error, n)
	each := func(f func(i int) error) {
		t.Helper()
		var workers sync.WaitGroup
		for w := range 16 {
			workers.Go(func() {
				for i := w; i < n; i += 16 {
					if err := f(i); err != nil {
						errs <- fmt.Errorf("connection %d: %w", i, err)
						return
					}
				}
			})
		}
		workers.Wait()
		select {
		case err := <-errs:
			t.Fatal(err)
		default:
		}
	}
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	var turn sync.Mutex // one thread is in the machine's namespace
	each(func(i int) (err error) {
		turn.Lock()
		defer turn.Unlock()
		conns[i], err = dialTCP(t, callers[i].from, callers[i].addr)
		return err
	})
	for range 2 {
		each(func(i int) error {
			want := []byte(fmt.Sprintf("hello %5d", i))
			_ = conns[i].SetDeadline(time.Now().Add(testenv.Patience))
			if _, err := conns[i].Write(want); err != nil {
				return err
			}
			got := make([]byte, len(want))
			for read := 0; read < len(got); {
				k, err := conns[i].Read(got[read:])
				if err != nil {
					return err
				}
				read += k
			}
			if !bytes.Equal(got, want) {
				return fmt.Errorf("got %q", got)
			}
			return nil
		})
	}
}

func TestTenThousandConnectionsAtOnce(t *testing.T) {
	limit := allowFiles(t)
	s := newSite(t)
	// The gate raises the soft limit that it is started with to the hard one.
	g := &gate{host: s.Host, stateDir: s.User.RuntimeDir + "/gate"}
	g.Process = s.Start(t, s.Command("sh", "-c", "ulimit -Sn 256; exec gatekit --state-dir="+g.stateDir+" --net=slirp -p 8080:80/tcp4 sleep 300"))
	g.awaitReady(t)
	awaitLine(t, s.Start(t, g.in("/usr/bin/python3", "-c", frugal)), "(serving)")
	addr := at(s.outside.HostAddr4, 8080)
	// What a first connection opens stays, and what many do: sockets and pipes are kept
	// ready.
	const kept = 2*32 + 64
	for _, from := range []machine{s.Host, s.outside} {
		if err := tryTCP(t, from, addr, 1000); err != nil {
			t.Fatal(err)
		}
	}
	before := descriptorsOf(t, g.PID())
	// One by the fast path has two descriptors in the gate, one in the client's name
	// has one. Where the limit is not 20000 and some more, a few that would be by the
	// fast path are in the client's name.
	most := min(manyConns, limit-before-kept-manyConns)
	for name, fast := range map[string]int{"by the fast path": most, "in the client's name": 0} {
		t.Run(name, func(t *testing.T) {
			callers := make([]caller, manyConns)
			for i := range callers {
				callers[i] = caller{s.outside, addr}
				if i < fast {
					callers[i].from = s.Host
				}
			}
			t.Logf("%d connections, %d of them by the fast path", len(callers), fast)
			echoAtOnce(t, callers)
			testenv.Until(t, "the descriptors to be closed", func() bool { return descriptorsOf(t, g.PID()) <= before+kept })
			for _, from := range []machine{s.Host, s.outside} {
				if err := tryTCP(t, from, addr, 100_000); err != nil {
					t.Error(err)
				}
			}
		})
	}
	if text := g.Stderr(); strings.Contains(text, "level=WARN") {
		t.Errorf("the gate warns:\n%s", text)
	}
}
