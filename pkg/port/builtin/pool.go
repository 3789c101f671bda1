package builtin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/pkg/port"
)

// The pool keeps sockets of the namespace ready, a few of each kind (family and
// type), from the first forward that needs the kind. When half of them are taken
// it asks the child for more, in the background, as many at once as are missing:
// a burst of connections costs one round trip for many. Between refills it has no
// goroutine.

// maxAsk is the most sockets asked for at once; SCM_RIGHTS carries 253.
const maxAsk = 64

// kind is a kind of socket.
type kind struct{ domain, typ int }

// kindFor returns the kind that connects to the family of a target.
func kindFor(v6 bool, typ int) kind {
	if v6 {
		return kind{unix.AF_INET6, typ}
	}
	return kind{unix.AF_INET, typ}
}

type pool struct {
	driver *Driver

	mu     sync.Mutex // guards shelf and what the shelves hold
	shelf  map[kind]*shelf
	closed bool
}

// shelf holds the sockets of one kind.
type shelf struct {
	free    []*os.File
	waiters []chan made // each has room for one and gets one, unless it is taken off
	filling bool
}

// made is a socket, or why there is none.
type made struct {
	file *os.File
	err  error
}

func newPool(d *Driver) *pool { return &pool{driver: d, shelf: map[kind]*shelf{}} }

// want readies the sockets that a spec's first connection will take.
func (p *pool) want(spec port.Spec) {
	typ := unix.SOCK_STREAM
	if spec.Transport() == "udp" {
		typ = unix.SOCK_DGRAM
	}
	for _, addr := range spec.Listens() {
		family := familyOf(addr)
		k := kindFor(spec.Targets(family)[0].Addr().Is6(), typ)
		p.mu.Lock()
		p.refill(k)
		p.mu.Unlock()
	}
}

// try returns a socket if one is ready.
func (p *pool) try(k kind) (*os.File, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.get(k)
	if len(s.free) == 0 {
		return nil, false
	}
	return p.pop(k, s), true
}

// take returns a socket, and waits for one while none is ready.
func (p *pool) take(ctx context.Context, k kind) (*os.File, error) {
	p.mu.Lock()
	s := p.get(k)
	if len(s.free) > 0 {
		defer p.mu.Unlock()
		return p.pop(k, s), nil
	}
	wait := make(chan made, 1)
	s.waiters = append(s.waiters, wait)
	p.refill(k)
	p.mu.Unlock()
	select {
	case m := <-wait:
		return m.file, m.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, w := range s.waiters {
		if w == wait {
			s.waiters = append(s.waiters[:i], s.waiters[i+1:]...)
			return nil, fmt.Errorf("wait for a socket of the namespace: %w", ctx.Err())
		}
	}
	m := <-wait // it came in the meantime
	return m.file, m.err
}

// get returns the shelf for k. The caller holds p.mu, as for pop and refill.
func (p *pool) get(k kind) *shelf {
	s := p.shelf[k]
	if s == nil {
		s = &shelf{}
		p.shelf[k] = s
	}
	return s
}

func (p *pool) pop(k kind, s *shelf) *os.File {
	last := len(s.free) - 1
	file := s.free[last]
	s.free[last] = nil
	s.free = s.free[:last]
	if last <= p.driver.opts.SocketsAhead/2 {
		p.refill(k)
	}
	return file
}

// refill starts to fill the shelf, unless that is under way.
func (p *pool) refill(k kind) {
	s := p.get(k)
	if s.filling || p.closed || p.missing(s) <= 0 {
		return
	}
	s.filling = true
	p.driver.wg.Go(func() { p.fill(k, s) })
}

func (p *pool) missing(s *shelf) int {
	return min(p.driver.opts.SocketsAhead+len(s.waiters)-len(s.free), maxAsk)
}

// fill asks for sockets until none is missing, or that fails: then all who wait
// are told, and the next one who needs a socket has it tried again.
func (p *pool) fill(k kind, s *shelf) {
	for {
		p.mu.Lock()
		n := p.missing(s)
		if n <= 0 {
			s.filling = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()

		files, err := p.ask(k, n)

		p.mu.Lock()
		for _, f := range files {
			if len(s.waiters) > 0 {
				p.serve(s, made{file: f})
			} else {
				s.free = append(s.free, f)
			}
		}
		if err != nil {
			for len(s.waiters) > 0 {
				p.serve(s, made{err: err})
			}
			s.filling = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
}

// serve hands m to the first waiter.
func (p *pool) serve(s *shelf, m made) {
	s.waiters[0] <- m
	s.waiters = s.waiters[1:]
}

// ask gets n sockets from the child and prepares them. It tries again for a
// moment, because a shortage of descriptors or memory on either side passes.
func (p *pool) ask(k kind, n int) ([]*os.File, error) {
	ctx, cancel := context.WithTimeout(p.driver.ctx, p.driver.opts.DialTimeout)
	defer cancel()
	for rest := minRest; ; rest *= 2 {
		files, err := p.askOnce(ctx, k, n)
		if err == nil || rest > maxRest/2 || ctx.Err() != nil || errors.Is(err, unix.EAFNOSUPPORT) {
			return files, err
		}
		timer := time.NewTimer(rest)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (p *pool) askOnce(ctx context.Context, k kind, n int) ([]*os.File, error) {
	files, err := p.driver.opts.Sockets.Sockets(ctx, k.domain, k.typ, n)
	if err != nil {
		return nil, fmt.Errorf("make sockets in the namespace: %w", err)
	}
	for _, f := range files {
		if err := control(f, func(fd int) error { return p.driver.prepare(fd, k) }); err != nil {
			closeAll(files)
			return nil, fmt.Errorf("prepare a socket of the namespace: %w", err)
		}
	}
	return files, nil
}

// close closes the sockets that nobody took. All users are gone.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, s := range p.shelf {
		closeAll(s.free)
		s.free = nil
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// detachFile takes the descriptor out of file, away from Go's poller, which would
// be woken by each datagram for nothing.
func detachFile(file *os.File) (fd int, err error) {
	err = control(file, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	})
	return fd, errors.Join(err, file.Close())
}

// control calls f with the descriptor, which is not closed meanwhile.
func control(conn syscall.Conn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
