package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// serve answers every request at a socket with handler.
func serve(t *testing.T, handler http.HandlerFunc) (socket string, conns *atomic.Int32) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "api.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	conns = new(atomic.Int32)
	s := &http.Server{Handler: handler, ConnState: func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed:
			conns.Add(-1)
		}
	}}
	ended := make(chan struct{})
	go func() { defer close(ended); s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		<-ended
		testenv.Until(t, "connections to close", func() bool { return conns.Load() == 0 })
	})
	return socket, conns
}

func open(t *testing.T, o client.Options) *client.Client {
	c := client.New(o)
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func TestWhatIsSent(t *testing.T) {
	var got string
	socket, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = r.Method + " " + r.URL.RequestURI() + " " + r.Header.Get("Content-Type") + " " + string(body)
		if r.Method == "POST" {
			w.WriteHeader(http.StatusCreated)
		}
		switch r.Method + r.URL.Path {
		case "GET/v1/info", "POST/v1/ports":
			io.WriteString(w, `{"id":5,"future":true}`)
		case "GET/v1/policy", "PUT/v1/policy":
			io.WriteString(w, `{"default":"deny","allow":["a","b"],"deny":[]}`)
		case "GET/v1/connections":
			io.WriteString(w, `[{"proto":"tcp","childIP":"10.0.2.100"},{"proto":"udp"}]`)
		case "GET/v1/ports", "POST/v1/ports/batch":
			io.WriteString(w, `[{"id":5},{"id":6}]`)
		}
	})
	c, ctx := open(t, client.Options{Socket: socket}), t.Context()
	spec := api.PortSpec{Proto: "tcp", ParentIP: "::1", ParentPort: 1, ChildPort: 2}
	const sent = `{"proto":"tcp","parentIP":"::1","parentPort":1,"childPort":2}`
	for _, tc := range []struct {
		want string
		call func() (int, error)
	}{
		{"GET /v1/info  ", func() (int, error) { _, err := c.Info(ctx); return 0, err }},
		{"GET /v1/ports  ", func() (int, error) { l, err := c.ListPorts(ctx); return len(l), err }},
		{"POST /v1/ports application/json " + sent, func() (int, error) { s, err := c.AddPort(ctx, spec); return s.ID, err }},
		{"POST /v1/ports/batch application/json [" + sent + "]", func() (int, error) { l, err := c.AddPorts(ctx, []api.PortSpec{spec}); return len(l), err }},
		{"POST /v1/ports/batch application/json []", func() (int, error) { l, err := c.AddPorts(ctx, nil); return len(l), err }},
		{"DELETE /v1/ports/7  ", func() (int, error) { return 0, c.RemovePort(ctx, 7) }},
		{"DELETE /v1/ports/7?drain=1m30s  ", func() (int, error) { return 0, c.DrainPort(ctx, 7, 90*time.Second) }},
		{"GET /v1/connections  ", func() (int, error) { l, err := c.Connections(ctx); return len(l), err }},
		{"GET /v1/policy  ", func() (int, error) { p, err := c.Policy(ctx); return len(p.Allow), err }},
		{`PUT /v1/policy application/json {"default":"deny","allow":["tcp://*"],"deny":[]}`, func() (int, error) {
			p, err := c.SetPolicy(ctx, api.Policy{Default: "deny", Allow: []string{"tcp://*"}})
			return len(p.Allow), err
		}},
		{"PUT /v1/ports/auto  ", func() (int, error) { return 0, c.AutoPorts(ctx, true) }},
		{"DELETE /v1/ports/auto  ", func() (int, error) { return 0, c.AutoPorts(ctx, false) }},
	} {
		n, err := tc.call()
		if err != nil || got != tc.want {
			t.Errorf("sent %q, error %v, want %q", got, err, tc.want)
		}
		if want := map[bool]int{true: 5, false: 2}[strings.HasPrefix(tc.want, "POST /v1/ports a")]; n != 0 && n != want {
			t.Errorf("%s: the answer is read as %d, want %d", tc.want, n, want)
		}
	}
}

// Somebody else changes the policy each time between our two calls, for a while.
func TestAChangeOfThePolicyIsTriedAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		changes int // by somebody else
		want    error
	}{
		"nobody else":    {0, nil},
		"some others":    {5, nil},
		"without an end": {1 << 30, api.ErrChanged},
	} {
		t.Run(name, func(t *testing.T) {
			version, puts := 0, 0
			var got string
			socket, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				tag := fmt.Sprintf("%q", strconv.Itoa(version))
				w.Header().Set("ETag", tag)
				switch {
				case r.Method == "GET":
					fmt.Fprintf(w, `{"default":"deny","allow":["v%d"],"deny":[]}`, version)
					if version < tc.changes {
						version++
					}
				case r.Header.Get("If-Match") != tag:
					puts++
					w.WriteHeader(http.StatusPreconditionFailed)
					io.WriteString(w, `{"message":"no","code":"changed"}`)
				default:
					body, _ := io.ReadAll(r.Body)
					got = string(body)
					io.WriteString(w, got)
				}
			})
			p, err := open(t, client.Options{Socket: socket}).ChangePolicy(t.Context(), func(p *api.Policy) { p.Allow = append(p.Allow, "mine") })
			if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
				t.Fatalf("error is %v, want %v", err, tc.want)
			}
			if tc.want != nil {
				if puts > 1000 {
					t.Errorf("%d tries", puts)
				}
				return
			}
			want := fmt.Sprintf(`{"default":"deny","allow":["v%d","mine"],"deny":[]}`, tc.changes)
			if got != want || len(p.Allow) != 2 {
				t.Errorf("the gate got %s, and we %v, want %s", got, p, want)
			}
		})
	}
}

func TestARefusalIsAnErrorWithItsCode(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		body   string
		want   error
		text   string
	}{
		"the API's own":            {409, `{"message":"port taken","code":"conflict"}`, api.ErrConflict, "port taken"},
		"the code, not the status": {400, `{"message":"gone","code":"not_found"}`, api.ErrNotFound, "gone"},
		"a code of the future":     {422, `{"message":"odd","code":"odd"}`, api.ErrInternal, "odd"},
		"plain text":               {431, "431 Request Header Fields Too Large", api.ErrBadRequest, "431"},
		"another API's":            {404, `{"error":"x"}`, api.ErrNotFound, `error`},
		"nothing":                  {502, "", api.ErrInternal, "502"},
		"very much":                {500, strings.Repeat("x", 1<<20), api.ErrInternal, "xxx"},
	} {
		t.Run(name, func(t *testing.T) {
			socket, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tc.status)
				io.WriteString(w, tc.body)
			})
			_, err := open(t, client.Options{Socket: socket}).Info(t.Context())
			var e *api.Error
			if !errors.As(err, &e) || !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) || len(err.Error()) > 300 {
				t.Errorf("error is %.300v, want %v with %q", err, tc.want, tc.text)
			}
		})
	}
}

func TestAnAnswerThatIsNotJSONIsAnError(t *testing.T) {
	socket, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	if _, err := open(t, client.Options{Socket: socket}).ListPorts(t.Context()); err == nil || !strings.Contains(err.Error(), socket) {
		t.Errorf("error is %v", err)
	}
}

func TestAGateThatDoesNotAnswer(t *testing.T) {
	release := make(chan struct{})
	socket, _ := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	_, err := open(t, client.Options{Socket: socket, Timeout: 20 * time.Millisecond}).Info(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not answer") || !strings.Contains(err.Error(), socket) {
		t.Errorf("by the timeout: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := open(t, client.Options{Socket: socket, Timeout: -1}).Info(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("by the context's deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := open(t, client.Options{Socket: socket}).Info(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("by a cancelled context: %v", err)
	}
}

func TestNoGateAtTheSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "api.sock")
	if _, err := open(t, client.Options{Socket: socket}).Info(t.Context()); !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), socket) {
		t.Errorf("no socket: %v", err)
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	if _, err := open(t, client.Options{Socket: socket}).Info(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a stale socket: %v", err)
	}
}

func TestAGateIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	late := filepath.Join(dir, "late.sock")
	c := open(t, client.Options{Socket: late})
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error, 1)
	go func() { waited <- c.Wait(ctx) }()
	socket, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") })
	if err := os.Symlink(socket, late); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("a gate that comes late: %v", err)
	}
	go func() { waited <- open(t, client.Options{Socket: filepath.Join(dir, "none")}).Wait(ctx) }()
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("no gate, and the caller gives up: %v", err)
	}
	brief := open(t, client.Options{Socket: filepath.Join(dir, "none"), Timeout: 50 * time.Millisecond})
	if err := brief.Wait(t.Context()); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no gate in the client's time: %v", err)
	}
	refuses, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) })
	if err := open(t, client.Options{Socket: refuses}).Wait(t.Context()); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("a gate that refuses: %v", err)
	}
}

func TestConnectionsAreKeptAndClosed(t *testing.T) {
	socket, conns := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "[]") })
	c := client.New(client.Options{Socket: socket})
	for range 5 {
		if _, err := c.ListPorts(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for calls one after another", n)
	}
	c.CloseIdleConnections()
	testenv.Until(t, "the connection to close", func() bool { return conns.Load() == 0 })
	if _, err := c.ListPorts(t.Context()); err != nil {
		t.Errorf("after CloseIdleConnections: %v", err)
	}
	// One that no call uses is closed before the server does that, which here it
	// never does.
	began := time.Now()
	testenv.Until(t, "the unused connection to close", func() bool { return conns.Load() == 0 })
	if kept := time.Since(began); kept >= api.IdleTimeout {
		t.Errorf("it was kept for %v, and by a server for %v", kept, api.IdleTimeout)
	}
}
