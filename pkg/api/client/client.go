// Package client calls the REST API of a running gate. gatectl is built on it;
// so are programs that embed a gate or steer one.
package client

// Requests go over a unix socket and so are quick, but a gate may hang: every
// call has a timeout, besides the caller's context. Connections are kept for
// the next call, for less time than the server keeps them, so that a call does
// not meet a connection that is just being closed.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/api"
)

const (
	// idleTimeout is less than the server's: there are seconds between the two for a
	// machine that is busy.
	idleTimeout = api.IdleTimeout / 5

	// maxAnswer is the size of the largest answer that is read, in bytes: more
	// than a forward for each port takes.
	maxAnswer = 64 << 20

	// maxExcerpt is how much of an answer that is not the API's own an error
	// shows, in bytes.
	maxExcerpt = 200
)

// Options for New.
type Options struct {
	// Socket is the path of the gate's api.sock. It may be longer than a socket
	// address.
	Socket string

	// Timeout limits each call, and how long Wait waits. Zero means 30 seconds; a
	// negative one leaves it to the context.
	Timeout time.Duration
}

// Client calls one gate. It may be used concurrently.
//
// Calls that the gate refuses return an *api.Error, which errors.Is compares
// with the sentinels of pkg/api: api.ErrForbidden for another user's gate,
// api.ErrBadRequest for what the gate cannot do, and what the call says. Where there is
// no gate the error wraps syscall.ENOENT or syscall.ECONNREFUSED; one that takes longer
// than Options.Timeout or the context allows wraps context.DeadlineExceeded.
type Client struct {
	http   http.Client
	socket string
}

// New returns a client. It does not connect yet.
func New(o Options) *Client {
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	return &Client{
		socket: o.Socket,
		http: http.Client{
			Timeout: max(o.Timeout, 0),
			Transport: &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return linux.DialUnix(ctx, o.Socket)
				},
				IdleConnTimeout: idleTimeout,
				MaxIdleConns:    2,
			},
		},
	}
}

// CloseIdleConnections closes connections that no call uses. The client may be
// used again.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// Info describes the gate.
func (c *Client) Info(ctx context.Context) (api.Info, error) {
	var info api.Info
	err := c.call(ctx, http.MethodGet, "/v1/info", nil, &info)
	return info, err
}

// waitInterval is how often Wait looks.
const waitInterval = 20 * time.Millisecond

// Wait waits until a gate answers at the socket, which need not be there yet. It
// gives up after Options.Timeout and when ctx is done, with an error that wraps the
// context's and says what the last try came to, and at once where waiting mends
// nothing.
func (c *Client) Wait(ctx context.Context) error {
	if c.http.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.http.Timeout)
		defer cancel()
	}
	tick := time.NewTicker(waitInterval)
	defer tick.Stop()
	for {
		_, err := c.Info(ctx)
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// ListPorts returns the forwards in place, ordered by id.
func (c *Client) ListPorts(ctx context.Context) ([]api.PortStatus, error) {
	var list []api.PortStatus
	err := c.call(ctx, http.MethodGet, "/v1/ports", nil, &list)
	return list, err
}

// AddPort puts a forward in place. A port of 0 in the spec is filled in. The error is
// api.ErrConflict where the address is taken, and api.ErrBadRequest for a bad spec, and
// from a gate without a port driver.
func (c *Client) AddPort(ctx context.Context, spec api.PortSpec) (api.PortStatus, error) {
	var status api.PortStatus
	err := c.call(ctx, http.MethodPost, "/v1/ports", spec, &status)
	return status, err
}

// AddPorts puts all forwards in place, or none. The statuses come in the order
// of the specs. Errors are AddPort's.
func (c *Client) AddPorts(ctx context.Context, specs []api.PortSpec) ([]api.PortStatus, error) {
	if specs == nil {
		specs = []api.PortSpec{} // null is no list
	}
	var list []api.PortStatus
	err := c.call(ctx, http.MethodPost, "/v1/ports/batch", specs, &list)
	return list, err
}

// RemovePort takes the forward with this id away, and its TCP connections after
// 2 seconds. The error is api.ErrNotFound for an unknown id.
func (c *Client) RemovePort(ctx context.Context, id int) error {
	return c.call(ctx, http.MethodDelete, fmt.Sprintf("/v1/ports/%d", id), nil, nil)
}

// DrainPort takes the forward with this id away, and its TCP connections after
// the given time, which is not negative. It does not wait for their end. The error is
// api.ErrNotFound for an unknown id.
func (c *Client) DrainPort(ctx context.Context, id int, drain time.Duration) error {
	return c.call(ctx, http.MethodDelete, fmt.Sprintf("/v1/ports/%d?drain=%s", id, drain), nil, nil)
}

// AutoPorts turns automatic forwards on: what starts to listen inside is
// published on 127.0.0.1, until it stops. Or it turns them off, and they go.
func (c *Client) AutoPorts(ctx context.Context, on bool) error {
	method := http.MethodDelete
	if on {
		method = http.MethodPut
	}
	return c.call(ctx, method, "/v1/ports/auto", nil, nil)
}

// Connections returns the flows now, ordered by forward, protocol and addresses; those
// of no forward come first.
func (c *Client) Connections(ctx context.Context) ([]api.Connection, error) {
	var list []api.Connection
	err := c.call(ctx, http.MethodGet, "/v1/connections", nil, &list)
	return list, err
}

// Policy says what the namespace may reach. The error is api.ErrBadRequest where the
// network takes no policy.
func (c *Client) Policy(ctx context.Context) (api.Policy, error) {
	var p api.Policy
	err := c.call(ctx, http.MethodGet, "/v1/policy", nil, &p)
	return p, err
}

// maxChanges is how often ChangePolicy tries: each time, somebody else was faster.
const maxChanges = 100

// ChangePolicy has change make another policy of the one in force, puts that in
// force, and returns it as it was understood. Of several who do so at once, nobody
// overwrites what another has changed: change is called again, on what is in force
// by then. After 100 times it gives up, with an error that wraps api.ErrChanged.
func (c *Client) ChangePolicy(ctx context.Context, change func(*api.Policy)) (api.Policy, error) {
	for try := 1; ; try++ {
		var p, now api.Policy
		header, err := c.do(ctx, http.MethodGet, "/v1/policy", nil, nil, &p)
		if err != nil {
			return now, err
		}
		change(&p)
		condition := http.Header{}
		if etag := header.Get("ETag"); etag != "" { // a gate of an older version has none
			condition.Set("If-Match", etag)
		}
		_, err = c.do(ctx, http.MethodPut, "/v1/policy", condition, withLists(p), &now)
		if try == maxChanges || !errors.Is(err, api.ErrChanged) {
			return now, err
		}
	}
}

// SetPolicy changes what the namespace may reach, as a whole, and returns it as it
// was understood. Flows that are no longer allowed end. The error is api.ErrBadRequest
// for a bad rule, and nothing has changed then.
func (c *Client) SetPolicy(ctx context.Context, p api.Policy) (api.Policy, error) {
	var now api.Policy
	err := c.call(ctx, http.MethodPut, "/v1/policy", withLists(p), &now)
	return now, err
}

// withLists is a policy without null.
func withLists(p api.Policy) api.Policy {
	if p.Allow == nil {
		p.Allow = []string{}
	}
	if p.Deny == nil {
		p.Deny = []string{}
	}
	return p
}

// call is do without headers.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	_, err := c.do(ctx, method, path, nil, in, out)
	return err
}

// do sends in, where it is not nil, and decodes the answer into out, where that is
// not nil. It returns the answer's header.
func (c *Client) do(ctx context.Context, method, path string, header http.Header, in, out any) (http.Header, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	// The host is there because HTTP wants one.
	req, err := http.NewRequestWithContext(ctx, method, "http://gatekit"+path, body)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, header)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(method, path, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, c.transportError(method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, refusal(resp, answer)
	}
	if len(answer) > maxAnswer {
		return nil, fmt.Errorf("%s %s: the answer is larger than %d bytes", method, path, maxAnswer)
	}
	if out == nil {
		return resp.Header, nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return nil, fmt.Errorf("%s %s: answer of %s: %w", method, path, c.socket, err)
	}
	return resp.Header, nil
}

// transportError names the socket; net/url's error names a URL that does not
// exist.
func (c *Client) transportError(method, path string, err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%s %s: the gate at %s does not answer: %w", method, path, c.socket, errors.Unwrap(err))
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner
	}
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("no gate is running there: %w", err)
	}
	return fmt.Errorf("%s %s: %w", method, path, err)
}

// refusal makes an error of an answer that is not a success. An answer without
// the API's own body, of net/http or of another program, gets a code by its
// status.
func refusal(resp *http.Response, answer []byte) error {
	var e api.Error
	if json.Unmarshal(answer, &e) == nil && e.Message != "" && e.Code != "" {
		return &e
	}
	excerpt := strings.TrimSpace(string(answer[:min(len(answer), maxExcerpt)]))
	return &api.Error{
		Code:    api.CodeOf(resp.StatusCode),
		Message: fmt.Sprintf("the gate answered %s: %q", resp.Status, excerpt),
	}
}
