package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/pkg/api"
)

// FuzzCall makes calls of all kinds. Each is answered as the document says, and one that
// is refused changes nothing.
func FuzzCall(f *testing.F) {
	for _, body := range []string{spec, "[" + spec + "]", "null", "{}", "[]", `{"parentPort":1e3}`, `[null]`, "\x00"} {
		f.Add("POST", "/v1/ports", []byte(body))
		f.Add("POST", "/v1/ports/batch", []byte(body))
	}
	for _, path := range []string{"/v1/ports/1", "/v1/ports/1?drain=1h", "/v1/ports/1?drain=%zz", "/v1/ports/-9223372036854775809", "/v1/ports/%31", "/v1/ports/auto", "/v1/ports/", "//"} {
		f.Add("DELETE", path, []byte(nil))
		f.Add("GET", path, []byte(nil))
	}
	f.Add("PUT", "/v1/policy", []byte(`{"default":"deny","allow":["tcp://a:1"],"deny":null}`))
	f.Fuzz(func(t *testing.T, method, target string, body []byte) {
		ctx := context.WithValue(t.Context(), peerKey{}, peer{uid: 1})
		req, err := http.NewRequestWithContext(ctx, method, "http://g"+target, bytes.NewReader(body))
		if err != nil {
			return // net/http answers it
		}
		gate := &fakeGate{policy: api.Policy{Default: "allow"}}
		if _, err := gate.AddPorts(ctx, []api.PortSpec{{Proto: "tcp", ParentPort: 8080, ChildPort: 80}}); err != nil {
			t.Fatal(err)
		}
		before := fmt.Sprint(gate.ports, gate.auto, gate.policy)
		w := &recorder{header: http.Header{}}
		New(Options{Gate: gate, UIDs: []uint32{1}}).handler.ServeHTTP(w, req)
		answer := w.body.String()
		changed := before != fmt.Sprint(gate.ports, gate.auto, gate.policy)
		var e api.Error
		switch {
		case answer == "" && w.status == 200 && (method == "DELETE" || method == "PUT"):
		case !json.Valid([]byte(answer)):
			t.Errorf("%d with a body that is no JSON: %q", w.status, answer)
		case w.status == 200 && (method == "GET" || method == "HEAD") && changed:
			t.Errorf("a look has changed something")
		case w.status == 200 || w.status == 201:
		case json.Unmarshal([]byte(answer), &e) != nil || e.Code.Status() != w.status || w.status == 500 && !strings.HasSuffix(e.Message, " is gone"):
			t.Errorf("%d with %q", w.status, answer)
		case changed:
			t.Errorf("%d, and something has changed", w.status)
		}
	})
}

// recorder is the http.ResponseWriter of FuzzCall.
type recorder struct {
	header http.Header
	status int
	body   strings.Builder
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
