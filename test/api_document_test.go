package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
)

// The API of a running gate against pkg/api/openapi.yaml: each call is made to
// give each answer that the document has for it, and the bodies are what their
// schemas say.

// document is what the tests read of openapi.yaml.
type document struct {
	Paths      map[string]map[string]operation `yaml:"paths"`
	Components struct {
		Responses map[string]response `yaml:"responses"`
		Schemas   map[string]schema   `yaml:"schemas"`
	} `yaml:"components"`
}

type operation struct {
	Responses map[string]response `yaml:"responses"`
}

type response struct {
	Ref     string `yaml:"$ref"`
	Content map[string]struct {
		Schema schema `yaml:"schema"`
	} `yaml:"content"`
}

type schema struct {
	Ref        string            `yaml:"$ref"`
	Type       string            `yaml:"type"`
	Required   []string          `yaml:"required"`
	Properties map[string]schema `yaml:"properties"`
	Items      *schema           `yaml:"items"`
	Enum       []string          `yaml:"enum"`
	Minimum    *float64          `yaml:"minimum"`
	Maximum    *float64          `yaml:"maximum"`
}

// named is the last part of a reference.
func named(ref string) string { return ref[strings.LastIndex(ref, "/")+1:] }

// check says how a body is not what the document has for a response.
func (d *document) check(r response, body string) error {
	if r.Ref != "" {
		r = d.Components.Responses[named(r.Ref)]
	}
	content, ok := r.Content["application/json"]
	if !ok {
		if body != "" {
			return fmt.Errorf("there is a body: %s", body)
		}
		return nil
	}
	var value any
	if err := json.Unmarshal([]byte(body), &value); err != nil {
		return err
	}
	return d.fits(content.Schema, value, "the body")
}

// fits checks a value of JSON. A property that is not in the document does not
// fit either: this gate is the newest.
func (d *document) fits(s schema, value any, where string) error {
	if s.Ref != "" {
		s = d.Components.Schemas[named(s.Ref)]
	}
	switch value := value.(type) {
	case map[string]any:
		for _, name := range s.Required {
			if _, ok := value[name]; !ok {
				return fmt.Errorf("%s lacks %s", where, name)
			}
		}
		for name, inner := range value {
			property, ok := s.Properties[name]
			if !ok {
				return fmt.Errorf("%s has %s", where, name)
			}
			if err := d.fits(property, inner, where+"."+name); err != nil {
				return err
			}
		}
		return is("object", s, where)
	case []any:
		for i, inner := range value {
			if err := d.fits(*s.Items, inner, fmt.Sprintf("%s[%d]", where, i)); err != nil {
				return err
			}
		}
		return is("array", s, where)
	case string:
		if s.Enum != nil && !slices.Contains(s.Enum, value) {
			return fmt.Errorf("%s is %q", where, value)
		}
		return is("string", s, where)
	case float64:
		if s.Minimum != nil && value < *s.Minimum || s.Maximum != nil && value > *s.Maximum || value != float64(int64(value)) {
			return fmt.Errorf("%s is %v", where, value)
		}
		return is("integer", s, where)
	case bool:
		return is("boolean", s, where)
	}
	return fmt.Errorf("%s is %v", where, value)
}

func is(kind string, s schema, where string) error {
	if s.Type != kind {
		return fmt.Errorf("%s is of type %s, want %q", where, kind, s.Type)
	}
	return nil
}

// request is one that gives a documented answer.
type request struct{ path, body string }

// provoking has a request for each answer of each call. Which user calls is what
// makes a 403.
func provoking() map[string]map[int]request {
	spec := func(port int) string {
		return fmt.Sprintf(`{"proto":"tcp","parentIP":"127.0.0.1","parentPort":%d,"childPort":80}`, port)
	}
	large := strings.Repeat(" ", api.MaxBody) + spec(8081)
	return map[string]map[int]request{
		"GET /v1/info":  {200: {"/v1/info", ""}, 403: {"/v1/info", ""}},
		"GET /v1/ports": {200: {"/v1/ports", ""}, 403: {"/v1/ports", ""}},
		"POST /v1/ports": {
			201: {"/v1/ports", spec(8081)},
			400: {"/v1/ports", "{}"},
			403: {"/v1/ports", spec(8082)},
			409: {"/v1/ports", spec(8080)},
			413: {"/v1/ports", large},
			500: {"/v1/ports", spec(80)},
		},
		"POST /v1/ports/batch": {
			201: {"/v1/ports/batch", "[" + spec(8083) + "," + spec(8084) + "]"},
			400: {"/v1/ports/batch", "{}"},
			403: {"/v1/ports/batch", "[" + spec(8085) + "]"},
			409: {"/v1/ports/batch", "[" + spec(8086) + "," + spec(8080) + "]"},
			413: {"/v1/ports/batch", large},
			500: {"/v1/ports/batch", "[" + spec(80) + "]"},
		},
		"GET /v1/connections": {200: {"/v1/connections", ""}, 403: {"/v1/connections", ""}},
		"GET /v1/policy":      {200: {"/v1/policy", ""}, 403: {"/v1/policy", ""}},
		"PUT /v1/policy": {
			200: {"/v1/policy", `{"default":"deny","allow":["tcp://*.example.com:443"],"deny":[]}`},
			400: {"/v1/policy", `{"default":"deny","allow":["x"]}`},
			403: {"/v1/policy", `{"default":"allow"}`},
			412: {"/v1/policy", `{"default":"allow"}`},
			413: {"/v1/policy", large},
		},
		"PUT /v1/ports/auto":    {200: {"/v1/ports/auto", ""}, 403: {"/v1/ports/auto", ""}},
		"DELETE /v1/ports/auto": {200: {"/v1/ports/auto", ""}, 403: {"/v1/ports/auto", ""}},
		"DELETE /v1/ports/{id}": {
			200: {"/v1/ports/2?drain=0s", ""},
			400: {"/v1/ports/two", ""},
			403: {"/v1/ports/1", ""},
			404: {"/v1/ports/77", ""},
		},
	}
}

// notProvoked are documented answers of a gate that fails, or that has no such
// network, which this gate cannot be made to give.
func notProvoked(call string, status int) bool {
	return status == 400 && call == "GET /v1/policy" || status == 500 && !strings.HasPrefix(call, "POST ")
}

func TestTheAPIIsWhatTheDocumentSays(t *testing.T) {
	var doc document
	if err := yaml.Unmarshal([]byte(api.OpenAPI()), &doc); err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "127.0.0.1:8080:80/tcp", "-p", "127.0.0.1:8090:80/tcp", "sleep", "infinity")
	for _, path := range []string{s.User.RuntimeDir, g.stateDir, g.socket()} { // so that others get as far as the gate
		if err := os.Chmod(s.Path(path), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	requests := provoking()
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		for _, method := range slices.Sorted(maps.Keys(doc.Paths[path])) {
			call := strings.ToUpper(method) + " " + path
			for text, answer := range doc.Paths[path][method].Responses {
				status, err := strconv.Atoi(text)
				if err != nil {
					t.Fatal(err)
				}
				r, ok := requests[call][status]
				if !ok {
					if !notProvoked(call, status) {
						t.Errorf("no request gives %d of %s", status, call)
					}
					continue
				}
				cmd := g.curlCommand(s.Command, strings.ToUpper(method), r.path, r.body)
				if status == 412 {
					cmd.Args = append(cmd.Args, "-H", `If-Match: "another"`)
				}
				if status == 403 {
					cmd.SysProcAttr.Credential, cmd.Dir = &syscall.Credential{Uid: 65534, Gid: 65534}, "/"
				}
				out := s.Run(t, cmd).Stdout
				end := strings.LastIndex(out, " ")
				if end < 0 || out[end+1:] != text {
					t.Errorf("%s: %s, want %d", call, out, status)
				} else if err := doc.check(answer, strings.TrimSpace(out[:end])); err != nil {
					t.Errorf("%s, %d: %v, in %s", call, status, err, out[:end])
				}
			}
		}
	}
	want := []int{8080, 8081, 8083, 8084}
	got := []int{}
	for _, spec := range specsOf(t, g) {
		got = append(got, spec.ParentPort)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("the forwards are of the ports %v, want %v", got, want)
	}
}

// Of many who want one address at once, one gets it.
func TestAThousandAskForOneAddress(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	c := g.client(t)
	var mu sync.Mutex
	outcomes := map[string]int{}
	var all sync.WaitGroup
	for range 1000 {
		all.Go(func() {
			_, err := c.AddPort(t.Context(), api.PortSpec{Proto: "tcp", ParentPort: 8080, ChildPort: 80})
			code := "added"
			if e, ok := err.(*api.Error); ok {
				code = string(e.Code)
			} else if err != nil {
				code = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			outcomes[code]++
		})
	}
	all.Wait()
	if outcomes["added"] != 1 || outcomes["conflict"] != 999 {
		t.Errorf("the outcomes are %v", outcomes)
	}
	if specs := specsOf(t, g); len(specs) != 1 {
		t.Errorf("the forwards are %v", specs)
	}
}

// What is not HTTP, and what never comes to an end, has the answers that the document
// says, changes nothing and ends. Requests before garbage are answered.
func TestGarbageOnTheSocketChangesNothing(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "127.0.0.1:8080:80/tcp", "sleep", "infinity")
	before := specsOf(t, g)
	taken := `{"proto":"tcp","parentIP":"127.0.0.1","parentPort":8080,"childPort":80}`
	for name, c := range map[string]struct {
		text string
		want []int
	}{
		"zeros":              {strings.Repeat("\x00", 5000), []int{400}},
		"another protocol":   {"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", []int{400}},
		"a huge header":      {"GET /v1/info HTTP/1.1\r\nHost: g\r\nX: " + strings.Repeat("x", 100_000) + "\r\n\r\n", []int{431}},
		"pipelined requests": {strings.Repeat("DELETE /v1/ports/x HTTP/1.1\r\nHost: g\r\n\r\n", 100) + "\x00garbage\r\n\r\n", slices.Repeat([]int{400}, 101)},
		"pipelined bodies":   {strings.Repeat(call("POST", "/v1/ports", taken), 3) + call("POST", "/v1/ports", "{") + "{}\r\n\r\n", []int{409, 409, 409, 400, 400}},
		"calls of all kinds": {call("GET", "/v1/info", "") + call("PATCH", "/v1/ports", "x") + call("GET", "/v2", "") + "GET\r\n\r\n", []int{200, 405, 404, 400}},
		"too large a body":   {call("POST", "/v1/ports", strings.Repeat("{", api.MaxBody+1)) + call("DELETE", "/v1/ports/1", ""), []int{413}},
		"two lengths":        {"POST /v1/ports HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\n{}", []int{400}},
		"a chunk of no size": {"POST /v1/ports HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", []int{400}},
		"half a request":     {"POST /v1/ports HTTP/1.1\r\nHost: g\r\nContent-Length: 500\r\n\r\n{", []int{400}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := s.Command("socat", "-t60", "-", "UNIX-CONNECT:"+g.socket())
			cmd.Stdin = strings.NewReader(c.text)
			p := s.Start(t, cmd)
			testenv.Until(t, "the end of the connection", func() bool { return !p.Running() })
			var got []int
			for _, line := range regexp.MustCompile(`HTTP/1\.1 (\d+) `).FindAllStringSubmatch(p.Stdout(), -1) {
				status, _ := strconv.Atoi(line[1]) // digits
				got = append(got, status)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("the answers are %v, want %v", got, c.want)
			}
			if after := specsOf(t, g); !slices.Equal(before, after) {
				t.Errorf("the forwards are %v", after)
			}
		})
	}
}

// call is a request as it is written.
func call(method, path, body string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
}
