package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/port"
)

// fakeGate keeps forwards in memory.
type fakeGate struct {
	mu    sync.Mutex // guards all below
	next  int
	ports []api.PortStatus
	drain time.Duration // of the last RemovePort
	auto  bool

	block chan struct{} // when not nil, AddPorts waits for it or its context
	stuck bool          // AddPorts does not look at its context
	began chan struct{} // when not nil, gets a value when AddPorts begins
	panic bool          // Info and ListPorts panic

	policy  api.Policy
	lawless bool // there is no policy
}

func (g *fakeGate) Info() api.Info {
	if g.panic {
		panic("no info")
	}
	return api.Info{
		APIVersion: api.Version, Version: "1.2.3", PID: 10, ChildPID: 11, StateDir: "/state",
		NetworkDriver: api.NetworkDriver{Driver: "slirp", ChildIP: new(netip.MustParseAddr("10.0.2.100"))},
		PortDriver:    api.PortDriver{Driver: "builtin", Protos: []string{"tcp", "udp"}},
	}
}

func (g *fakeGate) ListPorts() []api.PortStatus {
	if g.panic {
		panic("no ports")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.ports)
}

func (g *fakeGate) AddPorts(ctx context.Context, specs []api.PortSpec) ([]api.PortStatus, error) {
	if g.began != nil {
		g.began <- struct{}{}
	}
	if g.block != nil {
		if g.stuck {
			<-g.block
		}
		select {
		case <-g.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var added []api.PortStatus
	for _, spec := range specs {
		if spec.ChildPort == 0 {
			return nil, fmt.Errorf("%w: child port 0", port.ErrInvalid)
		}
		if spec.ParentPort == 666 {
			return nil, errors.New("the child is gone")
		}
		for _, p := range append(slices.Clone(g.ports), added...) {
			if p.Spec.ParentPort == spec.ParentPort {
				return nil, fmt.Errorf("%w: listen tcp 0.0.0.0:%d: bind: address already in use", port.ErrConflict, spec.ParentPort)
			}
		}
		added = append(added, api.PortStatus{ID: g.next + len(added) + 1, Spec: spec})
	}
	g.next += len(added)
	g.ports = append(g.ports, added...)
	return added, nil
}

func (g *fakeGate) AutoPorts(_ context.Context, on bool) error {
	if g.panic {
		panic("no automatic ports")
	}
	g.auto = on
	return nil
}

func (g *fakeGate) Connections() []api.Connection {
	if g.panic {
		panic("no connections")
	}
	return nil
}

func (g *fakeGate) Policy() (api.Policy, error) {
	switch {
	case g.panic:
		panic("no policy")
	case g.lawless:
		return api.Policy{}, &api.Error{Code: api.CodeBadRequest, Message: "no policy here"}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.policy, nil
}

func (g *fakeGate) SetPolicy(p api.Policy) error {
	switch {
	case slices.Contains(p.Deny, "bad"):
		return fmt.Errorf("%w: bad rule", network.ErrPolicy)
	case slices.Contains(p.Deny, "broken"):
		return errors.New("the network is gone")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.policy = p
	return nil
}

func (g *fakeGate) RemovePort(_ context.Context, id int, drain time.Duration) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if id == 666 {
		return errors.New("the child is gone")
	}
	i := slices.IndexFunc(g.ports, func(p api.PortStatus) bool { return p.ID == id })
	if i < 0 {
		return fmt.Errorf("forward %d: %w", id, port.ErrNotFound)
	}
	g.ports = slices.Delete(g.ports, i, i+1)
	g.drain = drain
	return nil
}

func TestMain(m *testing.M) {
	if socket, ok := os.LookupEnv(helperEnv); ok {
		callAsHelper(socket)
		return
	}
	testenv.Main(m)
}

// running is a server under test.
type running struct {
	socket string
	stop   func() error // ends Run and returns its error
}

// start runs a server until the test ends.
func start(t testing.TB, o Options) running {
	t.Helper()
	if o.UIDs == nil {
		o.UIDs = []uint32{uint32(os.Geteuid())}
	}
	socket := filepath.Join(t.TempDir(), "api.sock")
	ln, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- New(o).Run(ctx, ln) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return running{socket, stop}
}

func dial(t testing.TB, socket string) net.Conn {
	t.Helper()
	conn, err := linux.DialUnix(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(testenv.Patience))
	return conn
}

// do sends one request on a connection of its own and returns the answer.
func do(t testing.TB, socket, method, path, body string) (*http.Response, string) {
	t.Helper()
	conn := dial(t, socket)
	req, err := http.NewRequest(method, "http://gate"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	// A server that refuses a large body may close while it is being sent.
	go req.Write(conn)
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil && len(answer) == 0 {
		t.Fatal(err)
	}
	return resp, string(answer)
}

const spec = `{"proto":"tcp","parentIP":"127.0.0.1","parentPort":8080,"childPort":80}`

func TestCalls(t *testing.T) {
	s := start(t, Options{Gate: &fakeGate{}})
	for _, tc := range []struct {
		name, method, path, body string
		status                   int
		want                     string // of the body, without white space around it
	}{
		{"ports are [] when there are none", "GET", "/v1/ports", "", 200, `[]`},
		{"HEAD is a GET without a body", "HEAD", "/v1/ports", "", 200, ``},
		{"a port is added", "POST", "/v1/ports", spec, 201, `{"id":1,"spec":` + spec + `}`},
		{"unknown fields are accepted", "POST", "/v1/ports", `{"proto":"udp","parentPort":1,"childPort":2,"colour":"red"}`, 201, `{"id":2,"spec":{"proto":"udp","parentPort":1,"childPort":2}}`},
		{"a batch is added", "POST", "/v1/ports/batch", `[{"proto":"tcp","parentPort":3,"childPort":4},{"proto":"tcp","parentPort":5,"childPort":6}]`, 201,
			`[{"id":3,"spec":{"proto":"tcp","parentPort":3,"childPort":4}},{"id":4,"spec":{"proto":"tcp","parentPort":5,"childPort":6}}]`},
		{"an empty batch adds nothing", "POST", "/v1/ports/batch", ` [] `, 201, `[]`},
		{"a port is removed", "DELETE", "/v1/ports/2", "", 200, ``},
		{"the list follows", "GET", "/v1/ports", "", 200,
			`[{"id":1,"spec":` + spec + `},{"id":3,"spec":{"proto":"tcp","parentPort":3,"childPort":4}},{"id":4,"spec":{"proto":"tcp","parentPort":5,"childPort":6}}]`},
		{"info has both drivers and no null", "GET", "/v1/info", "", 200,
			`{"apiVersion":"1.1.1","version":"1.2.3","pid":10,"stateDir":"/state","childPID":11,"networkDriver":{"driver":"slirp","dns":[],"childIP":"10.0.2.100","dynamicChildIP":false},"portDriver":{"driver":"builtin","protos":["tcp","udp"],"disallowLoopbackChildIP":false}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, body := do(t, s.socket, tc.method, tc.path, tc.body)
			if resp.StatusCode != tc.status || strings.TrimSpace(body) != tc.want {
				t.Errorf("%d %s\nwant %d %s", resp.StatusCode, body, tc.status, tc.want)
			}
			if ct := resp.Header.Get("Content-Type"); tc.want != "" && ct != "application/json" {
				t.Errorf("content type %q", ct)
			}
		})
	}
}

func TestARemovedPortDrainsAsAsked(t *testing.T) {
	gate := &fakeGate{}
	s := start(t, Options{Gate: gate})
	for query, want := range map[string]time.Duration{
		"": port.DefaultDrain, "?drain=": port.DefaultDrain, "?drain=0s": 0, "?drain=1h30m": 90 * time.Minute, "?colour=red&drain=1ms": time.Millisecond,
	} {
		added, err := gate.AddPorts(t.Context(), []api.PortSpec{{Proto: "tcp", ParentPort: 8080, ChildPort: 80}})
		if err != nil {
			t.Fatal(err)
		}
		resp, body := do(t, s.socket, "DELETE", fmt.Sprintf("/v1/ports/%d%s", added[0].ID, query), "")
		if resp.StatusCode != http.StatusOK || gate.drain != want {
			t.Errorf("%q: %d %s, drain %v, want %v", query, resp.StatusCode, body, gate.drain, want)
		}
	}
}

func TestAutomaticPortsAreTurnedOnAndOff(t *testing.T) {
	gate := &fakeGate{}
	s := start(t, Options{Gate: gate})
	for _, method := range []string{"PUT", "DELETE"} {
		if resp, body := do(t, s.socket, method, "/v1/ports/auto", ""); resp.StatusCode != http.StatusOK || body != "" || gate.auto != (method == "PUT") {
			t.Errorf("%s: %d %q, on is %v", method, resp.StatusCode, body, gate.auto)
		}
	}
}

// A change is for the policy that its tag is of, and no other.
func TestThePolicyIsChangedAsItWasRead(t *testing.T) {
	gate := &fakeGate{policy: api.Policy{Default: "allow"}}
	s := start(t, Options{Gate: gate})
	ask := func(method, match, body string) (int, string) {
		t.Helper()
		conn := dial(t, s.socket)
		req, err := http.NewRequest(method, "http://gate/v1/policy", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if match != "" {
			req.Header.Set("If-Match", match)
		}
		req.Close = true
		if err := req.Write(conn); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("ETag")
	}
	_, first := ask("GET", "", "")
	if len(first) < 10 || first[0] != '"' || first[len(first)-1] != '"' {
		t.Fatalf("ETag: %s", first)
	}
	const deny, allow = `{"default":"deny"}`, `{"default":"allow"}`
	for _, step := range []struct {
		match, body string
		status      int
	}{
		{`"no"`, deny, 412},
		{"W/" + first, deny, 412},
		{first, deny, 200},
		{first, allow, 412},
		{"", allow, 200}, // in any case
		{`"no", ` + first, deny, 200},
		{"*", allow, 200},
	} {
		status, etag := ask("PUT", step.match, step.body)
		if status != step.status || (status == 200) != (etag != "") {
			t.Errorf("If-Match: %s, with %s: %d, ETag %q, want %d", step.match, step.body, status, etag, step.status)
		}
		if _, now := ask("GET", "", ""); status == 200 && now != etag || status == 200 && (now == first) != (step.body == allow) {
			t.Errorf("after %s, the ETag is %s, was %s in the answer, and %s at first", step.body, now, etag, first)
		}
	}
}

func TestErrorsAreJSONWithACode(t *testing.T) {
	gate := &fakeGate{}
	s := start(t, Options{Gate: gate})
	if _, err := gate.AddPorts(t.Context(), []api.PortSpec{{Proto: "tcp", ParentPort: 8080, ChildPort: 80}}); err != nil {
		t.Fatal(err)
	}
	large := `{"proto":"` + strings.Repeat("x", api.MaxBody) + `"}`
	for _, tc := range []struct {
		name, method, path, body string
		code                     api.Code
		want                     string // in the message
	}{
		{"an empty body", "POST", "/v1/ports", "", api.CodeBadRequest, "port spec"},
		{"null", "POST", "/v1/ports", "null", api.CodeBadRequest, "begin with {"},
		{"a list for a spec", "POST", "/v1/ports", "[" + spec + "]", api.CodeBadRequest, "begin with {"},
		{"a spec for a list", "POST", "/v1/ports/batch", spec, api.CodeBadRequest, "begin with ["},
		{"half of a spec", "POST", "/v1/ports", spec[:20], api.CodeBadRequest, "unexpected end"},
		{"trailing garbage", "POST", "/v1/ports", spec + "{}", api.CodeBadRequest, "after top-level value"},
		{"a string for a port", "POST", "/v1/ports", `{"parentPort":"80"}`, api.CodeBadRequest, "parentPort is a string"},
		{"a fraction for a port", "POST", "/v1/ports", `{"parentPort":80.5}`, api.CodeBadRequest, "parentPort is a number 80.5"},
		{"what the driver calls invalid", "POST", "/v1/ports", `{}`, api.CodeBadRequest, "child port 0"},
		{"an id that is no number", "DELETE", "/v1/ports/x", "", api.CodeBadRequest, `"x"`},
		{"a drain that is no duration", "DELETE", "/v1/ports/1?drain=30", "", api.CodeBadRequest, `bad drain "30"`},
		{"a drain into the past", "DELETE", "/v1/ports/1?drain=-1s", "", api.CodeBadRequest, `bad drain "-1s"`},
		{"an unknown id", "DELETE", "/v1/ports/77", "", api.CodeNotFound, "forward 77"},
		{"a negative id", "DELETE", "/v1/ports/-1", "", api.CodeNotFound, "forward -1"},
		{"an unknown path", "GET", "/v1/nothing", "", api.CodeNotFound, "/v1/nothing"},
		{"a path with a double slash", "GET", "/v1//ports", "", api.CodeNotFound, "/v1//ports"},
		{"a wrong method", "PUT", "/v1/ports", "", api.CodeMethodNotAllowed, "GET, POST"},
		{"a GET on the batch", "GET", "/v1/ports/batch", "", api.CodeMethodNotAllowed, "POST"},
		{"an address that is taken", "POST", "/v1/ports", spec, api.CodeConflict, "bind: address already in use"},
		{"a batch in which one is taken", "POST", "/v1/ports/batch", `[{"parentPort":1,"childPort":1},` + spec + `]`, api.CodeConflict, "bind: address already in use"},
		{"a body of over 1 MiB", "POST", "/v1/ports", large, api.CodeTooLarge, "1048576"},
		{"a failing gate", "POST", "/v1/ports", `{"parentPort":666,"childPort":1}`, api.CodeInternal, "the child is gone"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, body := do(t, s.socket, tc.method, tc.path, tc.body)
			var e api.Error
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Fatalf("%d %q: %v", resp.StatusCode, body, err)
			}
			if e.Code != tc.code || resp.StatusCode != tc.code.Status() || !strings.Contains(e.Message, tc.want) {
				t.Errorf("%d %+v\nwant %s, %q", resp.StatusCode, e, tc.code, tc.want)
			}
			if allow := resp.Header.Get("Allow"); (tc.code == api.CodeMethodNotAllowed) != (allow != "") {
				t.Errorf("Allow: %q", allow)
			}
		})
	}
	if ports := gate.ListPorts(); len(ports) != 1 {
		t.Errorf("failed calls left forwards: %v", ports)
	}
}

func TestAPanicIsAnInternalError(t *testing.T) {
	s := start(t, Options{Gate: &fakeGate{panic: true}})
	resp, body := do(t, s.socket, "GET", "/v1/info", "")
	if resp.StatusCode != 500 || !strings.Contains(body, string(api.CodeInternal)) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestAnotherUserIsRefused(t *testing.T) {
	s := start(t, Options{Gate: &fakeGate{}, UIDs: []uint32{uint32(os.Geteuid()) + 1}})
	c := client.New(client.Options{Socket: s.socket})
	defer c.CloseIdleConnections()
	if _, err := c.Info(t.Context()); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("error is %v, want forbidden", err)
	}
}

func TestParallelCalls(t *testing.T) {
	gate := &fakeGate{}
	s := start(t, Options{Gate: gate, MaxConnections: 4})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			c := client.New(client.Options{Socket: s.socket})
			defer c.CloseIdleConnections()
			for j := range 10 {
				st, err := c.AddPort(t.Context(), api.PortSpec{Proto: "tcp", ParentPort: 1000 + i*10 + j, ChildPort: 1})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := c.ListPorts(t.Context()); err != nil {
					t.Error(err)
				}
				if err := c.RemovePort(t.Context(), st.ID); err != nil {
					t.Error(err)
				}
				c.CloseIdleConnections() // others wait for the slot
			}
		})
	}
	wg.Wait()
	if ports := gate.ListPorts(); len(ports) != 0 {
		t.Errorf("left: %v", ports)
	}
}

// closed waits until the server closes the connection, and returns what it sent.
func closed(t *testing.T, conn net.Conn) string {
	t.Helper()
	sent, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the server does not close the connection: %v", err)
	}
	return string(sent)
}

func TestSlowClientsAreDropped(t *testing.T) {
	const short = 50 * time.Millisecond
	for name, tc := range map[string]struct {
		options    Options
		send, want string
	}{
		"one that says nothing":              {Options{ReadTimeout: short}, "", ""},
		"one that stops in the header":       {Options{ReadTimeout: short}, "GET /v1/info HTTP/1.1\r\nHo", ""},
		"one that stops in the body":         {Options{ReadTimeout: short}, "POST /v1/ports HTTP/1.1\r\nHost: g\r\nContent-Length: 70\r\n\r\n{", string(api.CodeBadRequest)},
		"one that announces a body too huge": {Options{ReadTimeout: short}, "POST /v1/ports HTTP/1.1\r\nHost: g\r\nContent-Length: 9999999999\r\n\r\n" + strings.Repeat(" ", 100), ""},
		"one that keeps an idle connection":  {Options{IdleTimeout: short}, "GET /v1/info HTTP/1.1\r\nHost: g\r\n\r\n", "200 OK"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.options.Gate = &fakeGate{}
			s := start(t, tc.options)
			var sent string
			// On a busy machine the time may be over before the header is read.
			if !testenv.Eventually(testenv.Patience, func() bool {
				conn := dial(t, s.socket)
				go io.WriteString(conn, tc.send)
				sent = closed(t, conn)
				return strings.Contains(sent, tc.want)
			}) {
				t.Errorf("the server said %q, want %q", sent, tc.want)
			}
		})
	}
}

func TestGarbledClientsAreDropped(t *testing.T) {
	s := start(t, Options{Gate: &fakeGate{}})
	for name, tc := range map[string]struct{ send, want string }{
		"one that does not speak HTTP":     {"\x16\x03\x01\x00\xff garbage\r\n\r\n", "400 Bad Request"},
		"one with a header without an end": {"GET / HTTP/1.1\r\nHost: g\r\nX: " + strings.Repeat("x", maxHeader+8192) + "\r\n\r\n", "431"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, s.socket)
			go io.WriteString(conn, tc.send)
			if sent := closed(t, conn); !strings.Contains(sent, tc.want) {
				t.Errorf("the server said %q, want %q", sent, tc.want)
			}
		})
	}
}

func TestRunEnds(t *testing.T) {
	t.Run("with idle and silent connections open", func(t *testing.T) {
		s := start(t, Options{Gate: &fakeGate{}, ShutdownTimeout: 10 * time.Millisecond})
		silent, idle := dial(t, s.socket), dial(t, s.socket)
		if _, err := io.WriteString(idle, "GET /v1/info HTTP/1.1\r\nHost: g\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := idle.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		closed(t, silent)
		closed(t, idle)
		if _, err := os.Lstat(s.socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	t.Run("after a request that is running has been answered", func(t *testing.T) {
		gate := &fakeGate{block: make(chan struct{}), began: make(chan struct{}, 1)}
		s := start(t, Options{Gate: gate, ShutdownTimeout: testenv.Patience})
		c := client.New(client.Options{Socket: s.socket})
		defer c.CloseIdleConnections()
		answered := make(chan error, 1)
		go func() {
			_, err := c.AddPort(context.Background(), api.PortSpec{ParentPort: 1, ChildPort: 1})
			answered <- err
		}()
		<-gate.began
		ended := make(chan error, 1)
		go func() { ended <- s.stop() }()
		testenv.Until(t, "the socket to go", func() bool {
			_, err := os.Lstat(s.socket)
			return errors.Is(err, os.ErrNotExist)
		})
		close(gate.block)
		if err := <-answered; err != nil {
			t.Errorf("the running request got %v", err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Run("by cancelling a request that does not end", func(t *testing.T) {
		gate := &fakeGate{block: make(chan struct{}), began: make(chan struct{}, 1)}
		s := start(t, Options{Gate: gate, ShutdownTimeout: time.Millisecond})
		c := client.New(client.Options{Socket: s.socket})
		defer c.CloseIdleConnections()
		answered := make(chan error, 1)
		go func() {
			_, err := c.AddPort(context.Background(), api.PortSpec{ParentPort: 1, ChildPort: 1})
			answered <- err
		}()
		<-gate.began
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		if err := <-answered; err == nil {
			t.Error("the cancelled request succeeded")
		}
	})
	t.Run("not before a handler has returned", func(t *testing.T) {
		gate := &fakeGate{block: make(chan struct{}), stuck: true, began: make(chan struct{}, 1)}
		s := start(t, Options{Gate: gate, ShutdownTimeout: time.Millisecond})
		c := client.New(client.Options{Socket: s.socket})
		defer c.CloseIdleConnections()
		answered := make(chan error, 1)
		go func() {
			_, err := c.AddPort(context.Background(), api.PortSpec{ParentPort: 1, ChildPort: 1})
			answered <- err
		}()
		<-gate.began
		ended := make(chan struct{})
		go func() { s.stop(); close(ended) }()
		<-answered // the connection is cut
		select {
		case <-ended:
			t.Error("Run returned while a handler ran")
		default:
		}
		close(gate.block)
		<-ended
	})
	t.Run("with an error when the listener fails", func(t *testing.T) {
		ln, err := Listen(filepath.Join(t.TempDir(), "api.sock"))
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		if err := New(Options{Gate: &fakeGate{}}).Run(t.Context(), ln); err == nil {
			t.Error("no error")
		}
	})
}
