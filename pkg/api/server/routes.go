package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/port"
)

// handler answers a request with a value, which is sent as JSON under status,
// or with an error. A nil value sends no body, and a tagged one has an ETag.
type handler func(*http.Request) (status int, value any, err error)

// tagged is a value with its entity tag (RFC 9110, 8.8.3).
type tagged struct {
	value any
	etag  string
}

// methods are the methods of one path.
type methods map[string]handler

// routes are the calls of the API.
func (s *Server) routes() map[string]methods {
	return map[string]methods{
		"/v1/info":        {http.MethodGet: s.info},
		"/v1/ports":       {http.MethodGet: s.listPorts, http.MethodPost: s.addPort},
		"/v1/ports/batch": {http.MethodPost: s.addPorts},
		"/v1/ports/auto":  {http.MethodPut: s.autoPorts(true), http.MethodDelete: s.autoPorts(false)},
		"/v1/ports/{id}":  {http.MethodDelete: s.removePort},
		"/v1/connections": {http.MethodGet: s.connections},
		"/v1/policy":      {http.MethodGet: s.policy, http.MethodPut: s.setPolicy},
	}
}

// router puts the routes behind the door. A path with several fitting routes
// takes the one without a variable: "/v1/ports/batch" is no id.
func (s *Server) router() http.Handler {
	r := mux.NewRouter().SkipClean(true) // no redirects
	routes := s.routes()
	for _, path := range slices.SortedFunc(maps.Keys(routes), func(a, b string) int {
		return strings.Count(a, "{") - strings.Count(b, "{")
	}) {
		r.Handle(path, s.dispatch(routes[path]))
	}
	r.NotFoundHandler = s.answer(func(r *http.Request) (int, any, error) {
		return 0, nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no such call: %s", r.URL.Path)}
	})
	return s.recovered(s.door(r))
}

// dispatch picks the handler of a request's method. HEAD is a GET whose body
// net/http drops.
func (s *Server) dispatch(m methods) http.Handler {
	allow := slices.Sorted(maps.Keys(m))
	refuse := s.answer(func(r *http.Request) (int, any, error) {
		return 0, nil, &api.Error{Code: api.CodeMethodNotAllowed, Message: fmt.Sprintf("%s does not take %s, but %s", r.URL.Path, r.Method, strings.Join(allow, ", "))}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		h, ok := m[method]
		if !ok {
			w.Header().Set("Allow", strings.Join(allow, ", "))
			refuse.ServeHTTP(w, r)
			return
		}
		s.answer(h).ServeHTTP(w, r)
	})
}

// door lets those in who may call.
func (s *Server) door(next http.Handler) http.Handler {
	refuse := s.answer(func(r *http.Request) (int, any, error) {
		return 0, nil, &api.Error{Code: api.CodeForbidden, Message: "this gate belongs to another user"}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := r.Context().Value(peerKey{}).(peer)
		if ok && p.err == nil && slices.Contains(s.o.UIDs, p.uid) {
			next.ServeHTTP(w, r)
			return
		}
		if p.err != nil {
			s.o.Logger.Warn("API: caller refused", "error", p.err)
		} else {
			s.o.Logger.Warn("API: caller refused", "uid", p.uid)
		}
		w.Header().Set("Connection", "close")
		refuse.ServeHTTP(w, r)
	})
}

// recovered answers a panic with an internal error.
func (s *Server) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				s.o.Logger.Error("API: panic", "call", r.Method+" "+r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				s.answer(func(*http.Request) (int, any, error) { return 0, nil, fmt.Errorf("panic: %v", p) }).ServeHTTP(w, r)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// answer runs a handler and sends what it returns.
func (s *Server) answer(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// net/http drains what a handler leaves of a small body, and closes the
		// connection on a large one.
		r.Body = http.MaxBytesReader(w, r.Body, api.MaxBody)
		status, value, err := h(r)
		if err != nil {
			e := wireError(err)
			if e.Code == api.CodeInternal {
				s.o.Logger.Info("API: call failed", "call", r.Method+" "+r.URL.Path, "error", err)
			}
			status, value = e.Code.Status(), e
		}
		if v, ok := value.(tagged); ok {
			w.Header().Set("ETag", v.etag)
			value = v.value
		}
		if value == nil {
			w.WriteHeader(status)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		// It fails when the caller is gone.
		if err := encode(w, value); err != nil {
			s.o.Logger.Debug("API: answer", "call", r.Method+" "+r.URL.Path, "error", err)
		}
	})
}

// encode writes a value as JSON.
func encode(w io.Writer, value any) error {
	switch value := value.(type) {
	case []api.PortStatus:
		return encodeList(w, value)
	case []api.Connection:
		return encodeList(w, value)
	}
	return json.NewEncoder(w).Encode(value)
}

// encodeList writes a list, which may be long, one by one, for the encoder would
// keep a buffer of its length.
func encodeList[T any](w io.Writer, list []T) error {
	var one bytes.Buffer
	encoder := json.NewEncoder(&one)
	for i := range list {
		one.Reset()
		one.WriteByte("[,"[min(i, 1)])
		if err := encoder.Encode(&list[i]); err != nil { // a value would be copied to the heap
			return err
		}
		if _, err := w.Write(bytes.TrimSuffix(one.Bytes(), []byte("\n"))); err != nil {
			return err
		}
	}
	end := "]\n"
	if len(list) == 0 {
		end = "[]\n"
	}
	_, err := io.WriteString(w, end)
	return err
}

// wireError gives an error its code.
func wireError(err error) *api.Error {
	var e *api.Error
	var tooLarge *http.MaxBytesError
	code := api.CodeInternal
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &tooLarge):
		return &api.Error{Code: api.CodeTooLarge, Message: fmt.Sprintf("the body is larger than %d bytes; ask for less at a time", tooLarge.Limit)}
	case errors.Is(err, port.ErrInvalid), errors.Is(err, network.ErrPolicy):
		code = api.CodeBadRequest
	case errors.Is(err, port.ErrConflict):
		code = api.CodeConflict
	case errors.Is(err, port.ErrNotFound):
		code = api.CodeNotFound
	}
	return &api.Error{Code: code, Message: err.Error()}
}

func (s *Server) info(*http.Request) (int, any, error) {
	info := s.o.Gate.Info()
	// RootlessKit's clients range over both, and some panic without them.
	info.NetworkDriver.DNS = notNil(info.NetworkDriver.DNS)
	info.PortDriver.Protos = notNil(info.PortDriver.Protos)
	return http.StatusOK, info, nil
}

func (s *Server) listPorts(*http.Request) (int, any, error) {
	return http.StatusOK, notNil(s.o.Gate.ListPorts()), nil
}

func (s *Server) addPort(r *http.Request) (int, any, error) {
	spec, err := decode[api.PortSpec](r, "{", "a port spec")
	if err != nil {
		return 0, nil, err
	}
	added, err := s.o.Gate.AddPorts(r.Context(), []api.PortSpec{spec})
	if err != nil {
		return 0, nil, err
	}
	if len(added) != 1 {
		return 0, nil, fmt.Errorf("one forward was asked for, %d were added", len(added))
	}
	return http.StatusCreated, added[0], nil
}

func (s *Server) addPorts(r *http.Request) (int, any, error) {
	specs, err := decode[[]api.PortSpec](r, "[", "a list of port specs")
	if err != nil {
		return 0, nil, err
	}
	if len(specs) == 0 {
		return http.StatusCreated, []api.PortStatus{}, nil
	}
	added, err := s.o.Gate.AddPorts(r.Context(), specs)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, notNil(added), nil
}

func (s *Server) removePort(r *http.Request) (int, any, error) {
	id, err := strconv.Atoi(mux.Vars(r)["id"])
	if err != nil {
		return 0, nil, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("bad id %q: an id is a number", mux.Vars(r)["id"])}
	}
	drain := port.DefaultDrain
	if text := r.URL.Query().Get("drain"); text != "" {
		if drain, err = time.ParseDuration(text); err != nil || drain < 0 {
			return 0, nil, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("bad drain %q: want a duration such as 30s or 1h", text)}
		}
	}
	return http.StatusOK, nil, s.o.Gate.RemovePort(r.Context(), id, drain)
}

func (s *Server) autoPorts(on bool) handler {
	return func(r *http.Request) (int, any, error) {
		return http.StatusOK, nil, s.o.Gate.AutoPorts(r.Context(), on)
	}
}

func (s *Server) connections(*http.Request) (int, any, error) {
	return http.StatusOK, notNil(s.o.Gate.Connections()), nil
}

func (s *Server) policy(*http.Request) (int, any, error) {
	p, err := s.taggedPolicy()
	return http.StatusOK, p, err
}

// taggedPolicy is the policy with a tag that is made of its content, so that all
// who would say the same have the same.
func (s *Server) taggedPolicy() (tagged, error) {
	p, err := s.o.Gate.Policy()
	if err != nil {
		return tagged{}, err
	}
	p.Allow, p.Deny = notNil(p.Allow), notNil(p.Deny)
	content, err := json.Marshal(p)
	if err != nil {
		return tagged{}, err
	}
	sum := sha256.Sum256(content)
	return tagged{p, `"` + hex.EncodeToString(sum[:16]) + `"`}, nil
}

// setPolicy wants the default to be said: a body that left it out by mistake would
// open everything. One change at a time: nobody comes in between the look at the
// tag and the change.
func (s *Server) setPolicy(r *http.Request) (int, any, error) {
	p, err := decode[api.Policy](r, "{", "a policy")
	if err != nil {
		return 0, nil, err
	}
	if p.Default == "" {
		return 0, nil, badBody("a policy", "default is missing; want allow or deny")
	}
	s.policyChange.Lock()
	defer s.policyChange.Unlock()
	if wanted := r.Header.Values("If-Match"); len(wanted) > 0 {
		now, err := s.taggedPolicy()
		if err != nil {
			return 0, nil, err
		}
		if !matchesTag(wanted, now.etag) {
			return 0, nil, &api.Error{Code: api.CodeChanged, Message: "the policy has changed since it was read"}
		}
	}
	if err := s.o.Gate.SetPolicy(p); err != nil {
		return 0, nil, err
	}
	return s.policy(r)
}

// matchesTag says whether If-Match has a tag, or is "*" (RFC 9110, 13.1.1). Our own
// tags have no comma.
func matchesTag(header []string, etag string) bool {
	for one := range strings.SplitSeq(strings.Join(header, ","), ",") {
		if one = strings.TrimSpace(one); one == etag || one == "*" {
			return true
		}
	}
	return false
}

// decode reads a request's body, which is one JSON value that begins with open.
// The content type is not looked at, and fields that we do not know are
// accepted: the caller may be newer.
func decode[T any](r *http.Request, open, what string) (T, error) {
	var value T
	var text bytes.Buffer
	text.Grow(int(min(max(r.ContentLength, 0), api.MaxBody)) + bytes.MinRead)
	if _, err := text.ReadFrom(r.Body); err != nil {
		var tooLarge *http.MaxBytesError
		if !errors.As(err, &tooLarge) {
			err = badBody(what, err.Error())
		}
		return value, err
	}
	body := text.Bytes()
	if !bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte(open)) {
		return value, badBody(what, "it does not begin with "+open)
	}
	err := json.Unmarshal(body, &value)
	var typeErr *json.UnmarshalTypeError
	switch {
	case errors.As(err, &typeErr) && typeErr.Field != "":
		return value, badBody(what, fmt.Sprintf("%s is a %s, and must fit a Go %s", typeErr.Field, typeErr.Value, typeErr.Type))
	case err != nil:
		return value, badBody(what, strings.TrimPrefix(err.Error(), "json: "))
	}
	return value, nil
}

func badBody(what, why string) error {
	return &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("the body is not %s: %s", what, why)}
}

// notNil makes sure that a list is [] in JSON, never null.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
