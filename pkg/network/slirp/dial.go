package slirp

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// dial is a connection that is being set up. It ends when the namespace gives
// up: by a reset (cancel), or by no longer repeating its SYN.
type dial struct {
	ctx    context.Context
	cancel context.CancelFunc

	// connected gets a value when the socket has an event.
	connected chan struct{}

	mu          sync.Mutex // guards all below
	first, last time.Time  // SYNs of the namespace
}

// newDial is called when the first SYN has come.
func newDial(parent context.Context) *dial {
	d := &dial{connected: make(chan struct{}, 1), first: time.Now()}
	d.last = d.first
	d.ctx, d.cancel = context.WithCancel(parent)
	return d
}

// repeated notes another SYN.
func (d *dial) repeated() {
	d.mu.Lock()
	d.last = time.Now()
	d.mu.Unlock()
}

// patience returns how long to wait for the next SYN. Its interval doubles
// (RFC 6298, 5.5), so that the next is due after at most the time that has passed
// between the first and the last, and the first interval of a second.
func (d *dial) patience() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last.Sub(d.first) + giveUpGrace - time.Since(d.last)
}

// hostEvent implements watcher.
func (d *dial) hostEvent(*loop, uint32) {
	select {
	case d.connected <- struct{}{}:
	default:
	}
}

// abort implements watcher. The goroutine that dials closes the socket.
func (d *dial) abort() { d.cancel() }

// connect connects fd, which l watches from here on, within timeout. Errors are
// a bare errno, context.Canceled or errStopped.
func (d *dial) connect(l *loop, fd int, to netip.AddrPort, timeout time.Duration) error {
	err := unix.Connect(fd, sockaddr(to))
	if err == nil {
		return selfConnected(fd, to)
	}
	if err != unix.EINPROGRESS {
		return err
	}
	if err := l.watch(fd, hostEvents, d); err != nil {
		return err
	}
	deadline := time.Now().Add(timeout)
	timer := time.NewTimer(min(timeout, d.patience()))
	defer timer.Stop()
	for {
		select {
		case <-d.connected:
		case <-d.ctx.Done():
			return d.ctx.Err()
		case <-timer.C:
			left := min(time.Until(deadline), d.patience())
			if left <= 0 {
				return unix.ETIMEDOUT
			}
			timer.Reset(left)
			continue
		}
		errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			return err
		case errno != 0:
			return unix.Errno(errno)
		}
		// An event does not have to mean that the connection is there.
		if _, err := unix.Getpeername(fd); err == nil {
			return selfConnected(fd, to)
		}
	}
}

// selfConnected refuses a connection of a socket to itself, which TCP makes
// (simultaneous open) when nobody listens on a local port that the kernel then
// picks for the connecting side.
func selfConnected(fd int, to netip.AddrPort) error {
	if !to.Addr().IsLoopback() {
		return nil
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if port := localPort(local); port == int(to.Port()) {
		return unix.ECONNREFUSED
	}
	return nil
}

func localPort(sa unix.Sockaddr) int {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}

// sockaddr turns Go's address into the kernel's. A zone that is no interface's
// name gives none, and the kernel refuses what needs one.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zoneID(a.Addr().Zone())}
}

// newStreamSocket makes a TCP socket for an address.
func newStreamSocket(to netip.Addr) (int, error) {
	domain := unix.AF_INET6
	if to.Is4() {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	if to.IsLoopback() {
		// The loopback neither loses nor has a rate; see setCongestionControl. If
		// it is not allowed it is only slower.
		_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")
	}
	for _, option := range [][2]int{
		// The sender in the namespace has decided how to cut its stream.
		{unix.IPPROTO_TCP, unix.TCP_NODELAY},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE},
	} {
		if err := unix.SetsockoptInt(fd, option[0], option[1], 1); err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	return fd, nil
}
