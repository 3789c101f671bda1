package builtin

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// A carrier takes bytes from one socket to another: a pipe for splice(2), so
// that they stay in the kernel, or memory of ours when the process has no
// descriptors left for a pipe. A direction of a connection holds a carrier only
// while there are bytes in it.

// Sizes in bytes: of a pipe, of one splice, and of the memory instead of a pipe;
// and how many unused pipes are kept.
const (
	pipeSize   = 1 << 20
	chunk      = 1 << 20
	memorySize = 64 << 10
	keptPipes  = 32
)

type carrier interface {
	// Fill takes up to max bytes from the socket, Drain gives up to max to it,
	// both without waiting. Fill returns 0 and no error at the end of the stream.
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
	buf  []byte
	from int // what is in it starts here
}

func (m *memory) Fill(fd, max int) (int, error) {
	m.from = 0
	n, err := unix.Read(fd, m.buf[:min(max, len(m.buf))])
	return n, os.NewSyscallError("read", err)
}

func (m *memory) Drain(fd, max int) (int, error) {
	n, err := unix.Write(fd, m.buf[m.from:][:max])
	m.from += n
	return n, os.NewSyscallError("write", err)
}

func (m *memory) Close() {}

// stream carries bytes from one end of a connection to the other.
type stream struct {
	carriers *carriers
	held     carrier // nil when nothing is under way
}

// receive waits for bytes from e and takes them. 0 and no error mean the end.
func (s *stream) receive(e *end) (n int, err error) {
	rerr := e.raw.Read(func(fd uintptr) bool {
		if s.held == nil {
			s.held = s.carriers.get()
		}
		n, err = s.held.Fill(int(fd), chunk)
		if errors.Is(err, unix.EAGAIN) {
			s.release()
			return false
		}
		return true
	})
	if rerr != nil {
		return 0, rerr
	}
	return n, err
}

// send gives n bytes to e, and waits while it takes none.
func (s *stream) send(e *end, n int) error {
	var err error
	werr := e.raw.Write(func(fd uintptr) bool {
		for n > 0 {
			var sent int
			sent, err = s.held.Drain(int(fd), n)
			if errors.Is(err, unix.EAGAIN) {
				err = nil
				return false
			}
			if err != nil {
				return true
			}
			n -= sent
		}
		return true
	})
	if werr != nil {
		return werr
	}
	return err
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
