package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
)

// socket is the path of the gate's API.
func (g *gate) socket() string { return g.stateDir + "/api.sock" }

// ctl runs gatectl as the Host's user, for this gate.
func (g *gate) ctl(t *testing.T, args ...string) testenv.Result {
	t.Helper()
	return g.host.Run(t, g.host.Command("gatectl", append([]string{"--socket", g.socket()}, args...)...))
}

// ctlOutput is ctl that expects success, and nothing on stderr, and returns
// what gatectl prints.
func (g *gate) ctlOutput(t *testing.T, args ...string) string {
	t.Helper()
	r := g.ctl(t, args...)
	if r.Code != 0 || r.Stderr != "" {
		t.Fatalf("gatectl %s: %v", strings.Join(args, " "), r)
	}
	return r.Stdout
}

// table splits what gatectl prints for people into its fields.
func table(text string) [][]string {
	var rows [][]string
	for line := range strings.Lines(text) {
		rows = append(rows, strings.Fields(line))
	}
	return rows
}

// keys are the names in a JSON object, sorted.
func keys(t *testing.T, text string) []string {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return slices.Sorted(maps.Keys(object))
}

func TestGatectlPublishesAndTakesAway(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	g.serve(t, "tcp", "127.0.0.1:80")
	if got := g.ctlOutput(t, "add-ports", "127.0.0.1:8080:80/tcp", "[::1]:8090-8091:10.0.2.100:90-91/udp6", "0.0.0.0:8100:80/tcp"); got != "1\n2\n3\n4\n" {
		t.Errorf("add-ports prints %q", got)
	}
	if err := tryTCP(t, s.Host, "127.0.0.1:8080", 100_000); err != nil {
		t.Error(err)
	}
	want := [][]string{
		{"ID", "PROTO", "PARENTIP", "PARENTPORT", "CHILDIP", "CHILDPORT", "SOURCEIP", "DIRECTION"},
		{"1", "tcp", "127.0.0.1", "8080", "-", "80", "off", "in"},
		{"2", "udp6", "::1", "8090", "10.0.2.100", "90", "off", "in"},
		{"3", "udp6", "::1", "8091", "10.0.2.100", "91", "off", "in"},
		{"4", "tcp", "0.0.0.0", "8100", "-", "80", "preserve", "in"},
	}
	if got := table(g.ctlOutput(t, "list-ports")); !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("list-ports prints %q\nwant %q", got, want)
	}
	listed, err := g.client(t).ListPorts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var fromJSON []api.PortStatus
	if text := g.ctlOutput(t, "list-ports", "--json"); json.Unmarshal([]byte(text), &fromJSON) != nil || !slices.Equal(fromJSON, listed) {
		t.Errorf("list-ports --json prints %s\nwant %+v", text, listed)
	}
	if got := g.ctlOutput(t, "remove-ports", "1", "3"); got != "1\n3\n" {
		t.Errorf("remove-ports prints %q", got)
	}
	if _, err := dialTCP(t, s.Host, "127.0.0.1:8080"); !refused(err) {
		t.Errorf("after remove-ports: %v", err)
	}
	// What is gone is gone, whatever else fails.
	if r := g.ctl(t, "remove-ports", "2", "99", "4"); r.Code != 1 || r.Stdout != "2\n4\n" || len(lacks(r.Stderr, "no such forward", "99")) > 0 {
		t.Error(r)
	}
	if got := g.ctlOutput(t, "list-ports", "--json"); got != "[]\n" {
		t.Errorf("at last, list-ports --json prints %q", got)
	}
}

func TestGatectlExplainsWhatItCannotPublish(t *testing.T) {
	s := newSite(t)
	serveTCP(t, s.Host, "127.0.0.1:8080", echoTCP)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for name, c := range map[string]struct {
		args []string
		code int
		line []string
	}{
		"a conflict":           {[]string{"add-ports", "127.0.0.1:8081:80/tcp", "8080:80/tcp"}, 1, []string{"8080", "bind: address already in use"}},
		"a privileged port":    {[]string{"add-ports", "127.0.0.1:80:80/tcp"}, 1, []string{"permission denied", "net.ipv4.ip_unprivileged_port_start"}},
		"no spec":              {[]string{"add-ports"}, 2, []string{"missing"}},
		"a bad spec":           {[]string{"add-ports", "127.0.0.1:8081:80/tcp", "8082"}, 2, []string{`"8082"`, "PARENTPORT"}},
		"ranges that differ":   {[]string{"add-ports", "8082-8083:80/tcp"}, 2, []string{"2 parent ports", "1 child port"}},
		"an id that is none":   {[]string{"remove-ports", "one"}, 2, []string{`"one"`}},
		"an id that is not in": {[]string{"remove-ports", "7"}, 1, []string{"no such forward", "7"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := g.ctl(t, c.args...)
			if missing := lacks(r.Stderr, c.line...); r.Code != c.code || r.Stdout != "" || missing != nil || strings.Count(r.Stderr, "\n") != 1 {
				t.Errorf("%v\nwant exit code %d and one line on stderr; it lacks %q", r, c.code, missing)
			}
		})
	}
	if got := g.ctlOutput(t, "list-ports", "--json"); got != "[]\n" {
		t.Errorf("something is left: %s", got)
	}
}

// curl asks the API as any program can, and returns status and body.
func (g *gate) curl(t *testing.T, method, path, body string) string {
	t.Helper()
	r := g.host.Run(t, g.curlCommand(g.host.Command, method, path, body))
	if r.Code != 0 {
		t.Fatal(r)
	}
	return r.Stdout
}

func (g *gate) curlCommand(command func(string, ...string) *exec.Cmd, method, path, body string) *exec.Cmd {
	cmd := command("curl", "-sS", "--unix-socket", g.socket(), "-X", method, "--data-binary", "@-", "-w", " %{http_code}", "http://gate"+path)
	cmd.Stdin = strings.NewReader(body)
	return cmd
}

func TestTheAPISpeaksToCurl(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	spec := func(port int) string {
		return fmt.Sprintf(`{"proto":"tcp","parentIP":"127.0.0.1","parentPort":%d,"childPort":80}`, port)
	}
	status := func(id, port int) string {
		return fmt.Sprintf(`{"id":%d,"spec":%s,"sourceIP":"off"}`, id, spec(port))
	}
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", "/v1/ports", "", "[]\n 200"},
		{"POST", "/v1/ports", spec(8080), status(1, 8080) + "\n 201"},
		{"POST", "/v1/ports/batch", "[" + spec(8081) + "," + spec(8082) + "]", "[" + status(2, 8081) + "," + status(3, 8082) + "]\n 201"},
		{"DELETE", "/v1/ports/2", "", " 200"},
		{"DELETE", "/v1/ports/1", "", " 200"},
		{"GET", "/v1/ports", "", "[" + status(3, 8082) + "]\n 200"},
	} {
		if got := g.curl(t, c.method, c.path, c.body); got != c.want {
			t.Errorf("%s %s: %s\nwant %s", c.method, c.path, got, c.want)
		}
	}
	for _, c := range []struct{ method, path, body, code, status string }{
		{"POST", "/v1/ports", spec(8082), "conflict", "409"},
		{"POST", "/v1/ports", `{"proto":"tcp"`, "bad_request", "400"},
		{"POST", "/v1/ports", spec(-1), "bad_request", "400"},
		{"POST", "/v1/ports", strings.Repeat(" ", 1<<20) + spec(8083), "too_large", "413"},
		{"DELETE", "/v1/ports/1", "", "not_found", "404"},
		{"DELETE", "/v1/ports/x", "", "bad_request", "400"},
		{"GET", "/v1/nothing", "", "not_found", "404"},
		{"PUT", "/v1/ports", "", "method_not_allowed", "405"},
	} {
		got := g.curl(t, c.method, c.path, c.body)
		body, status, _ := strings.Cut(got, "\n ")
		var e api.Error
		if err := json.Unmarshal([]byte(body), &e); err != nil || status != c.status || string(e.Code) != c.code || e.Message == "" {
			t.Errorf("%s %s: %s\nwant %s with the code %s", c.method, c.path, got, c.status, c.code)
		}
	}
}

// RootlessKit's own program knows nothing of us.
func TestRootlessctlSteersAGate(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	g.serve(t, "tcp", "127.0.0.1:80")
	rootlessctl := func(args ...string) testenv.Result {
		t.Helper()
		return s.Run(t, s.Command("rootlessctl", append([]string{"--socket", g.socket()}, args...)...))
	}
	if r := rootlessctl("add-ports", "127.0.0.1:8080:80/tcp", "0.0.0.0:8090:90/udp"); r.Stdout != "1\n2\n" {
		t.Error(r)
	}
	if err := tryTCP(t, s.Host, "127.0.0.1:8080", 100_000); err != nil {
		t.Error(err)
	}
	r := rootlessctl("list-ports")
	if got := table(r.Stdout); len(got) != 3 || !slices.Equal(got[1][:4], []string{"1", "tcp", "127.0.0.1", "8080"}) {
		t.Error(r)
	}
	if r := rootlessctl("list-ports", "--json"); !strings.Contains(r.Stdout, `"parentPort":8090`) {
		t.Error(r)
	}
	if r := rootlessctl("add-ports", "127.0.0.1:8080:80/tcp"); r.Code == 0 || !strings.Contains(r.Stderr, "bind: address already in use") {
		t.Errorf("a conflict: %v", r)
	}
	if r := rootlessctl("remove-ports", "1"); r.Stdout != "1\n" {
		t.Error(r)
	}
	if _, err := dialTCP(t, s.Host, "127.0.0.1:8080"); !refused(err) {
		t.Errorf("after remove-ports: %v", err)
	}
	r = rootlessctl("info")
	if missing := lacks(r.Stdout, g.stateDir, fmt.Sprint(g.childPID), "slirp", "10.0.2.3", "builtin"); r.Code != 0 || missing != nil {
		t.Errorf("%v\nlacks %q", r, missing)
	}
}
