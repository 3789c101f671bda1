package server

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/gatekit/gatekit/pkg/api"
)

// documented reads the calls of openapi.yaml and the status of their answers.
func documented(t *testing.T) map[string][]int {
	t.Helper()
	var document struct {
		Paths map[string]map[string]struct {
			Responses map[string]yaml.Node
		}
	}
	if err := yaml.Unmarshal([]byte(api.OpenAPI()), &document); err != nil {
		t.Fatal(err)
	}
	calls := map[string][]int{}
	for path, operations := range document.Paths {
		for method, operation := range operations {
			call := strings.ToUpper(method) + " " + path
			for status := range operation.Responses {
				n, err := strconv.Atoi(status)
				if err != nil {
					t.Fatal(err)
				}
				calls[call] = append(calls[call], n)
			}
			slices.Sort(calls[call])
		}
	}
	return calls
}

func TestTheRoutesAreThoseOfTheDocument(t *testing.T) {
	var routes []string
	for path, methods := range New(Options{}).routes() {
		for method := range methods {
			routes = append(routes, method+" "+path)
		}
	}
	slices.Sort(routes)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(documented(t))), routes); diff != "" {
		t.Errorf("calls (-openapi.yaml +router):\n%s", diff)
	}
}

// Each way to call, each answer: the two sets of status are the same.
func TestTheAnswersAreThoseOfTheDocument(t *testing.T) {
	const taken = `{"proto":"tcp","parentPort":1,"childPort":1}`
	const broken = `{"proto":"tcp","parentPort":666,"childPort":1}`
	large := strings.Repeat(" ", api.MaxBody+1)
	gate := func() *fakeGate {
		g := &fakeGate{}
		if _, err := g.AddPorts(context.Background(), []api.PortSpec{{Proto: "tcp", ParentPort: 1, ChildPort: 1}}); err != nil {
			t.Fatal(err)
		}
		return g
	}
	bodies := map[string][]string{
		"POST /v1/ports":       {spec, taken, broken, "", large},
		"PUT /v1/policy":       {`{"default":"deny"}`, "{}", `{"default":"deny","deny":["bad"]}`, `{"default":"deny","deny":["broken"]}`, large},
		"POST /v1/ports/batch": {"[" + spec + "]", "[" + taken + "]", "[" + broken + "]", "", large},
	}
	ids := []string{"1", "2", "x", "666"}

	seen := map[string][]int{}
	call := func(s *Server, uid uint32, name, id, body string, match ...string) {
		method, path, _ := strings.Cut(name, " ")
		ctx := context.WithValue(t.Context(), peerKey{}, peer{uid: uid})
		req, err := http.NewRequestWithContext(ctx, method, "http://g"+strings.ReplaceAll(path, "{id}", id), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header["If-Match"] = match
		w := &recorder{header: http.Header{}}
		s.handler.ServeHTTP(w, req)
		if !slices.Contains(seen[name], w.status) {
			seen[name] = append(seen[name], w.status)
			slices.Sort(seen[name])
		}
	}
	for name := range documented(t) {
		tries := bodies[name]
		if tries == nil {
			tries = []string{""}
		}
		for _, body := range tries {
			for _, id := range ids {
				call(New(Options{Gate: gate(), UIDs: []uint32{1}}), 1, name, id, body)
			}
		}
		call(New(Options{Gate: &fakeGate{panic: true}, UIDs: []uint32{1}}), 1, name, "1", "")
		if name == "PUT /v1/policy" {
			call(New(Options{Gate: gate(), UIDs: []uint32{1}}), 1, name, "", `{"default":"deny"}`, `"another"`)
		}
		if name == "GET /v1/policy" {
			call(New(Options{Gate: &fakeGate{lawless: true}, UIDs: []uint32{1}}), 1, name, "", "")
		}
		call(New(Options{Gate: gate(), UIDs: []uint32{1}}), 2, name, "1", spec)
	}
	if diff := cmp.Diff(documented(t), seen); diff != "" {
		t.Errorf("status of the answers (-openapi.yaml +seen):\n%s", diff)
	}
}
