package builtin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// A connection's service is dialled by the goroutine that then carries bytes, on a
// socket of the pool. The socket is one of the connection's ends before it connects,
// so that who cuts the connection ends the dial.

// dial connects to the service, at the first of its addresses that takes the
// connection.
func (c *conn) dial() (*end, error) {
	ctx, cancel := context.WithTimeout(c.driver.ctx, c.driver.opts.DialTimeout)
	defer cancel()
	var failed error
	for _, target := range c.forward.status.Spec.Targets(c.family) {
		service, err := c.dialOne(ctx, target)
		if err == nil {
			return service, nil
		}
		failed = errors.Join(failed, err)
		if ctx.Err() != nil || c.over() {
			break
		}
	}
	return nil, failed
}

func (c *conn) dialOne(ctx context.Context, target netip.AddrPort) (*end, error) {
	file, err := c.driver.serviceSide(ctx, c.forward.status.Spec, kindFor(target.Addr().Is6(), unix.SOCK_STREAM))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", target, err)
	}
	e, err := c.attach(file) // so that cut ends the dial
	if err != nil {
		return nil, err
	}
	if err := e.connect(ctx, target); err != nil {
		c.detach(e)
		return nil, fmt.Errorf("dial %s: %w", target, err)
	}
	return e, nil
}

// detach takes back an end that did not connect.
func (c *conn) detach(e *end) {
	c.mu.Lock()
	if n := len(c.ends); n > 0 && c.ends[n-1] == e {
		c.ends = c.ends[:n-1]
	}
	c.mu.Unlock()
	e.file.Close()
}

// connect connects a fresh socket. To loopback it succeeds or fails at once,
// and nothing is waited for.
func (e *end) connect(ctx context.Context, target netip.AddrPort) error {
	err := control(e.file, func(fd int) error {
		err := linux.Connect(fd, target)
		if errors.Is(err, unix.EINPROGRESS) {
			err = linux.Connected(fd)
		}
		return err
	})
	if !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := e.file.SetWriteDeadline(deadline); err != nil {
			return err
		}
		defer e.file.SetWriteDeadline(time.Time{})
	}
	if werr := e.raw.Write(func(fd uintptr) bool {
		err = linux.Connected(int(fd))
		return !errors.Is(err, unix.EINPROGRESS)
	}); werr != nil {
		return werr
	}
	return err
}
