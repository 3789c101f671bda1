package builtin

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/port"
)

// A TCP connection has two ends, the client's and the service's, and two
// directions with a goroutine each. What happens at one end is carried to the
// other, as if the two were connected directly:
//
//	read from X ends           FIN to Y, after all bytes; then X is watched
//	read from X fails          reset Y, after all bytes
//	write to X fails           X is dead; the other direction takes what X has
//	                           still sent, and then resets Y
//	X dies while it is watched reset Y
//	both directions have ended close both
//
// An end is watched after its FIN because its peer may vanish while the other
// peer keeps its own half open, silent: only the keepalive notices that.
//
// "After all bytes": a reset drops what has not been sent yet, so it waits until
// the peer has acknowledged everything, a while at the longest.

// maxFlush is how long a reset waits for the bytes before it.
const maxFlush = 2 * time.Second

// end is one end of a connection.
type end struct {
	file *os.File
	raw  syscall.RawConn

	// Guarded by the conn's mu.
	finished bool // the stream from this end has ended
	dead     bool // a write to this end has failed
}

func newEnd(file *os.File) (*end, error) {
	raw, err := file.SyscallConn()
	return &end{file: file, raw: raw}, err
}

// conn is a connection. run owns it.
type conn struct {
	driver  *Driver
	forward *forward
	family  port.Families // the client's
	since   time.Time     // when it was accepted

	// stranger says that the client is not the host itself. It is run's.
	stranger bool

	mu   sync.Mutex // guards what is below, and fields of the ends
	ends []*end     // the client's, then the service's
	done bool       // cut, or over: ends attached from now on are reset

	passage *passage // in the client's name (preserve.go); nil where that is not tried
}

// admit starts a connection that the acceptor took, unless there are too many.
func (d *Driver) admit(l *listener, fd int) {
	d.count.accepted.Add(1)
	c := &conn{driver: d, forward: l.forward, family: l.family, since: time.Now()}
	fw := l.forward
	fw.mu.Lock()
	full := len(fw.conns) >= d.opts.MaxConnsPerForward || d.count.conns.Load() >= int64(d.opts.MaxConns)
	if !full {
		if fw.conns == nil {
			fw.conns = map[*conn]struct{}{}
		}
		fw.conns[c] = struct{}{}
		d.count.conns.Add(1)
	}
	fw.mu.Unlock()
	if full {
		d.count.connsRefused.Add(1)
		d.log.warn("too many connections; new ones are reset", "forward", fw.status.ID, "spec", fw.status.Spec)
		_ = linux.ResetOnClose(fd)
		unix.Close(fd)
		return
	}
	d.wg.Go(func() { c.run(fd) })
}

// run serves the client behind fd to the end.
func (c *conn) run(fd int) {
	if c.keep(fd) {
		return
	}
	defer c.forget()
	client, err := c.attach(os.NewFile(uintptr(fd), "client"))
	if err != nil {
		return
	}
	service, err := c.dial()
	if err != nil {
		if !c.over() {
			c.driver.count.dialErrors.Add(1)
			c.driver.log.warn("cannot reach the service; its client is reset",
				"forward", c.forward.status.ID, "spec", c.forward.status.Spec, "error", err)
		}
		c.cut()
		return
	}
	if c.stranger {
		c.forward.strays.begin()
		defer c.forward.strays.end()
	}
	var other sync.WaitGroup
	other.Go(func() { c.carry(service, client) })
	c.carry(client, service)
	other.Wait()
}

// forget closes the ends and takes c off the lists.
func (c *conn) forget() {
	c.finish()
	c.forward.forget(c)
	c.driver.count.conns.Add(-1)
}

// attach makes file an end of c.
func (c *conn) attach(file *os.File) (*end, error) {
	e, err := newEnd(file)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.done {
		err = os.ErrClosed
	}
	if err != nil {
		e.reset()
		return nil, err
	}
	c.ends = append(c.ends, e)
	return e, nil
}

// cut resets both ends.
func (c *conn) cut() {
	for _, e := range c.takeEnds() {
		e.reset()
	}
	c.mu.Lock()
	p := c.passage
	c.mu.Unlock()
	if p != nil {
		p.cut()
	}
}

// finish closes both ends, unless that has been done.
func (c *conn) finish() {
	for _, e := range c.takeEnds() {
		e.file.Close()
	}
}

func (c *conn) takeEnds() []*end {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	ends := c.ends
	c.ends = nil
	return ends
}

// over reports whether c was cut or has ended.
func (c *conn) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

// reset closes the end with a reset to its peer.
func (e *end) reset() {
	_ = control(e.file, linux.ResetOnClose) // without it the close still ends it
	e.file.Close()
}

// carry takes the stream of bytes from one end to the other, with its end.
func (c *conn) carry(from, to *end) {
	s := newStream(&c.driver.carriers, from, to)
	for {
		some, err := s.receive()
		if err != nil {
			s.drop()
			c.abort(to)
			return
		}
		if !some {
			s.release()
			c.halfClose(from, to)
			return
		}
		if err := s.send(); err != nil {
			s.drop()
			c.broken(from, to)
			return
		}
	}
}

// halfClose passes the end of the stream on, and watches from until the other
// direction ends too.
func (c *conn) halfClose(from, to *end) {
	c.mu.Lock()
	from.finished = true
	dead, last := from.dead, to.finished
	c.mu.Unlock()
	if dead {
		c.abort(to)
		return
	}
	err := control(to.file, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) })
	if err != nil && !errors.Is(err, unix.ENOTCONN) { // closed by now
		return
	}
	if last {
		c.finish()
		return
	}
	var died error
	if err := from.raw.Read(func(fd uintptr) bool {
		died = linux.SocketError(int(fd))
		return died != nil
	}); err == nil {
		c.abort(to)
	}
}

// broken takes note that a write to an end has failed. What the end has sent
// before it died is still on its way; the direction that brings it does the
// rest, unless it has ended.
func (c *conn) broken(from, to *end) {
	c.mu.Lock()
	to.dead = true
	last := to.finished
	c.mu.Unlock()
	if last {
		c.abort(from)
	}
}

// abort resets e, after what was written to it has arrived, and the other end.
// It does nothing to a connection that is over.
func (c *conn) abort(e *end) {
	deadline := time.Now().Add(maxFlush)
	for wait := time.Millisecond; time.Now().Before(deadline); wait = min(2*wait, 50*time.Millisecond) {
		unsent := 0
		if err := control(e.file, func(fd int) (err error) {
			unsent, err = linux.Unsent(fd)
			return err
		}); err != nil || unsent == 0 {
			break
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-c.driver.ctx.Done():
		}
		timer.Stop()
		if c.driver.ctx.Err() != nil {
			break
		}
	}
	c.cut()
}
