package builtin

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// A carrier takes bytes from one socket to another: a pipe for splice(2), so
// that they stay in the kernel, or memory of ours when the process has no
// descriptors left for a pipe. A direction of a connection holds a carrier only
// while there are bytes in it.
//
// Urgent data (tcp(7)) is a mark in the stream, which telnet and ftp use. splice
// stops at it, so the urgent byte is read and sent on by itself, as urgent.

// Sizes in bytes: of a pipe, of one splice, and of the memory instead of a pipe;
// and how many unused pipes are kept.
const (
	pipeSize   = 1 << 18
	chunk      = 1 << 20
	memorySize = 64 << 10
	keptPipes  = 32
)

type carrier interface {
	// Fill takes up to max bytes from the socket, Drain gives up to max to it,
	// both without waiting; n means nothing on errors. Fill returns 0 and no error at the end of the stream.
	Fill(fd, max int) (int, error)
	Drain(fd, max int) (int, error)
	Close()
}

// carriers keeps pipes for reuse. The zero value is ready.
type carriers struct {
	mu   sync.Mutex // guards free
	free []*linux.Pipe
}

// get returns an empty carrier.
func (c *carriers) get() carrier {
	c.mu.Lock()
	if last := len(c.free) - 1; last >= 0 {
		p := c.free[last]
		c.free = c.free[:last]
		c.mu.Unlock()
		return p
	}
	c.mu.Unlock()
	p, err := linux.NewPipe(pipeSize)
	if err != nil {
		return &memory{buf: make([]byte, memorySize)}
	}
	return p
}

// put takes back a carrier that is empty.
func (c *carriers) put(used carrier) {
	if p, ok := used.(*linux.Pipe); ok {
		c.mu.Lock()
		if len(c.free) < keptPipes {
			c.free = append(c.free, p)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
	used.Close()
}

func (c *carriers) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.free {
		p.Close()
	}
	c.free = nil
}

// memory is a carrier that needs no descriptor.
type memory struct {
	buf    []byte
	from   int  // what is in it starts here
	urgent bool // it is one byte, and urgent
}

func (m *memory) Fill(fd, limit int) (int, error) {
	m.from, m.urgent = 0, linux.AtMark(fd)
	if m.urgent {
		limit = 1
	}
	n, err := unix.Read(fd, m.buf[:min(limit, len(m.buf))]) // ends before a mark
	return n, err
}

func (m *memory) Drain(fd, limit int) (int, error) {
	flags := unix.MSG_NOSIGNAL | unix.MSG_DONTWAIT
	if m.urgent {
		flags |= unix.MSG_OOB
	}
	n, err := unix.SendmsgN(fd, m.buf[m.from:][:limit], nil, nil, flags)
	m.from += max(n, 0)
	return n, err
}

func (m *memory) Close() {}

// stream carries bytes from one end of a connection to the other. It is for one
// goroutine, and allocates nothing on the way.
type stream struct {
	carriers *carriers
	from, to *end
	held     carrier // nil when nothing is under way

	fill, drain func(fd uintptr) (done bool)
	n           int   // bytes that were taken, less those that were given
	err         error // of the last fill or drain
}

func newStream(c *carriers, from, to *end) *stream {
	s := &stream{carriers: c, from: from, to: to}
	s.fill, s.drain = s.tryFill, s.tryDrain
	return s
}

// receive waits for bytes and takes them. No bytes and no error mean the end.
func (s *stream) receive() (some bool, err error) {
	if err := s.from.raw.Read(s.fill); err != nil {
		return false, err
	}
	return s.n > 0, s.err
}

func (s *stream) tryFill(fd uintptr) (done bool) {
	if s.held == nil {
		s.held = s.carriers.get()
	}
	s.n, s.err = s.held.Fill(int(fd), chunk)
	if (s.err == unix.EAGAIN || s.err == nil && s.n == 0) && linux.AtMark(int(fd)) {
		s.release()
		s.held = &memory{buf: make([]byte, 1)}
		s.n, s.err = s.held.Fill(int(fd), 1)
	}
	if s.err == unix.EAGAIN {
		s.release()
		return false
	}
	return true
}

// send gives what was received, and waits while the socket takes none.
func (s *stream) send() error {
	if err := s.to.raw.Write(s.drain); err != nil {
		return err
	}
	if m, ok := s.held.(*memory); ok && m.urgent {
		s.release() // it holds no more than that byte
	}
	return s.err
}

func (s *stream) tryDrain(fd uintptr) (done bool) {
	for s.n > 0 {
		var given int
		given, s.err = s.held.Drain(int(fd), s.n)
		if s.err == unix.EAGAIN {
			return false
		}
		if s.err != nil {
			return true
		}
		s.n -= given
	}
	return true
}

// release gives the empty carrier back.
func (s *stream) release() {
	if s.held != nil {
		s.carriers.put(s.held)
		s.held = nil
	}
}

// drop ends the carrier, whatever is in it.
func (s *stream) drop() {
	if s.held != nil {
		s.held.Close()
		s.held = nil
	}
}
