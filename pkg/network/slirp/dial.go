package slirp

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/gatekit/gatekit/internal/linux"
)

// dial is a connection that is being set up. It ends when the namespace gives
// up: by a reset (cancel), or by no longer repeating its SYN.
type dial struct {
	ctx    context.Context
	cancel context.CancelFunc

	// queue is where the handshake with the namespace waits, once it has begun. It is
	// guarded by the forwarder's mu.
	queue *waiter.Queue

	// connected gets a value when the socket has an event.
	connected chan struct{}

	// What an ICMP error quotes of the SYN, and who has sent it.
	ipv6 bool
	ttl  uint8
	head transportHeader
	mac  macAddr

	// answered says that the namespace has its answer, or soon will, so that a SYN
	// is one for another connection. The forwarder's lock guards it.
	answered bool

	mu          sync.Mutex // guards all below
	first, last time.Time  // SYNs of the namespace
}

// newDial is called when the first SYN has come.
func newDial(parent context.Context, syn header.TCP, pkt *stack.PacketBuffer) *dial {
	d := &dial{
		connected: make(chan struct{}, 1),
		ipv6:      pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber,
		ttl:       packetTTL(pkt),
		head:      transportHeader(syn),
		first:     time.Now(),
	}
	d.last = d.first
	if eth := pkt.LinkHeader().Slice(); len(eth) >= ethernetSize {
		d.mac = macAddr(eth[6:12])
	}
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

// connect connects fd, which l watches from here on, within timeout. Errors wrap
// an errno, context.Canceled or errStopped.
func (d *dial) connect(l *loop, fd int, to netip.AddrPort, timeout time.Duration) error {
	err := linux.Connect(fd, to)
	if err == nil {
		err = linux.Connected(fd)
	}
	if !errors.Is(err, unix.EINPROGRESS) {
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
		// An event does not have to mean that the outcome is there.
		if err := linux.Connected(fd); !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
	}
}

// keepAlive is for the namespace's side of a connection, and Linux's default. The
// host's side has what the host is set to, until the namespace probes more often
// (keepalive.go).
var keepAlive = linux.KeepAlive{Idle: 2 * time.Hour, Interval: 75 * time.Second, Count: 9}

// newStreamSocket makes a TCP socket for an address.
func newStreamSocket(to netip.Addr) (int, error) {
	domain := unix.AF_INET6
	if to.Is4() {
		domain = unix.AF_INET
	}
	fd, err := linux.Socket(domain, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	if to.IsLoopback() {
		_ = linux.Unpace(fd) // if it is not allowed it is only slower
	}
	// The sender in the namespace has decided how to cut its stream, so nothing is
	// held back for more.
	if err := linux.TuneTCP(fd, linux.KeepAlive{}); err != nil {
		linux.Close(fd)
		return -1, err
	}
	return fd, nil
}
