package slirp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/tcp"
	"github.com/gatekit/gatekit/pkg/port"
)

// inbound opens flows into the namespace in the names of clients, for a port
// driver (port.Opener): the service sees the client's own address and port.
//
// We speak for all of the outside, so a client's address is as good as any other. What is
// sent in its name enters the namespace where the service expects it:
//
//	service's address    way in                              way out
//	127.0.0.0/8, ::1     lo, by a packet socket that the     the default route,
//	                     child has opened there              so the TAP
//	of the networks      the TAP                             the TAP
//
// It has to be lo for the loopback, because IPv6 takes ::1 on no other interface,
// and because Docker's rules drop what comes for 127.0.0.1 by another one; those
// that pass it on to a container do take what comes in by lo. The answer leaves
// from the very address that was asked, 127.0.0.1 or ::1, by the default route,
// since the client is outside; setup_inbound.go has the kernel allow that.
//
// A packet from a loopback address is taken off the TAP only where it belongs to
// such a flow (answers). Nothing else changes in what the namespace reaches: where
// a packet may go is decided by its destination, and an answer's is a client that
// has asked.
//
// A connection that the namespace opened itself and one of ours cannot be told
// apart when they have both addresses and ports in common: the second is not
// opened.
type inbound struct {
	stack   *stack.Stack
	subnets [2]subnet
	mac     macAddr // the child's
	tcp     *tcpForwarder
	udp     inboundUDP

	lo      atomic.Pointer[loopback] // nil where the loopback is not reached
	opening sync.Once                // of lo

	routes atomic.Pointer[linux.Routes] // of the namespace; nil where they are not known
	tally  atomic.Pointer[tally]        // of the namespace; nil where it is not known
	asking sync.Once                    // for the socket of routes and the files of tally

	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex // guards closed and the start of running
	closed  bool
	running sync.WaitGroup
}

var _ port.Opener = (*Network)(nil)

// newInbound returns the way into the namespace behind s, whose interface there has an
// Ethernet address. close and wait end it.
func newInbound(s *stack.Stack, subnets [2]subnet, mac macAddr, t *tcpForwarder) *inbound {
	in := &inbound{stack: s, subnets: subnets, mac: mac, tcp: t}
	in.udp.flows, in.udp.clients = map[inboundKey]*inboundFlow{}, map[netip.Addr]int{}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	return in
}

// loopback is the way into the namespace by its loopback interface.
type loopback struct {
	dev    *device
	writer *datagramWriter
}

// UseSockets says how the network gets a socket in the namespace, which it needs
// once, for services on the namespace's loopback. It is called before the first
// flow is opened, by parent.Run; without it only services on the interface see
// their clients.
func (n *Network) UseSockets(s port.Sockets) { n.sockets = s }

// openTimeout bounds the wait for the packet socket.
const openTimeout = 5 * time.Second

// openLoopback opens the way by lo, if it is not open yet. A gate without forwards
// does without it: the kernel takes 20 ms to close a packet socket.
func (n *Network) openLoopback(in *inbound) {
	if n.sockets == nil || !in.begin() {
		return
	}
	defer in.running.Done()
	in.opening.Do(func() {
		ctx, cancel := context.WithTimeout(in.ctx, openTimeout)
		defer cancel()
		files, err := n.sockets.Sockets(ctx, unix.AF_PACKET, unix.SOCK_RAW, 1)
		if err == nil {
			err = in.enter(files[0])
		}
		if err != nil && in.ctx.Err() == nil {
			n.log.Warn("services on the namespace's loopback do not see their clients' addresses: this host allows no packet socket there, or /proc/sys is read-only; slirp.Options.SourceIP=false says that this is meant", "reason", err)
		}
	})
}

// enter opens the way by a packet socket, which it owns, on lo.
func (in *inbound) enter(file *os.File) error {
	dev, err := newDevice(file, true)
	if err != nil {
		file.Close()
		return err
	}
	in.lo.Store(&loopback{dev, &datagramWriter{dev: dev, mtu: loopbackMTU}})
	return nil
}

// leave closes what was opened in the namespace, after wait.
func (in *inbound) leave() error {
	var errs []error
	if lo := in.lo.Swap(nil); lo != nil {
		errs = append(errs, lo.dev.close())
	}
	if routes := in.routes.Swap(nil); routes != nil {
		errs = append(errs, routes.Close())
	}
	if t := in.tally.Swap(nil); t != nil {
		errs = append(errs, t.close())
	}
	return errors.Join(errs...)
}

// Keeps implements port.Opener.
func (n *Network) Keeps(client, service netip.Addr) bool {
	in := n.inbound.Load()
	return n.plan.SourceIP && in != nil && in.keeps(client, service)
}

// keeps says whether answers to the client come to us, and whether the service can
// be reached. A client in the namespace's own network would be looked for
// there.
func (in *inbound) keeps(client, service netip.Addr) bool {
	if client.Is4() != service.Is4() || client.Zone() != "" || !plausibleSource(client) || reservedIPv6(client) {
		return false
	}
	for _, s := range in.subnets {
		if s.enabled() && s.prefix.Contains(client) {
			return false
		}
	}
	return in.reaches(service) && in.answered(client, service)
}

// Reaches implements port.Opener.
func (n *Network) Reaches(service netip.Addr) bool {
	in := n.inbound.Load()
	if !n.plan.SourceIP || in == nil {
		return false
	}
	n.openRoutes(in)
	if service.IsLoopback() {
		n.openLoopback(in)
	}
	return in.reaches(service)
}

// reaches says whether there is a way to the service.
func (in *inbound) reaches(service netip.Addr) bool {
	for _, s := range in.subnets {
		if s.enabled() && (s.holds(service) || in.lo.Load() != nil && service.IsLoopback() && s.child.Is4() == service.Is4()) {
			return true
		}
	}
	return false
}

// Connect implements port.Opener.
func (n *Network) Connect(ctx context.Context, client, service netip.AddrPort, fd int, over func()) (cut func(), err error) {
	in := n.inbound.Load()
	if in == nil || !in.begin() {
		return nil, fmt.Errorf("connect to %v as %v: %w", service, client, errStopped)
	}
	defer in.running.Done()
	r, err := in.open(ctx, client, service, fd, over)
	if err != nil {
		return nil, fmt.Errorf("connect to %v as %v: %w", service, client, err)
	}
	return func() { r.tcp.loop.call(r.abort) }, nil
}

// begin counts a dial; it is false when the engine stops.
func (in *inbound) begin() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	in.running.Add(1)
	return true
}

// open connects to a service as a client, and joins the connection to fd, which it owns
// once that has come about. The error is ECONNREFUSED when the service refuses, and
// ETIMEDOUT when nothing answers.
func (in *inbound) open(ctx context.Context, client, service netip.AddrPort, fd int, over func()) (*relay, error) {
	writer, mac, err := in.way(ctx, service.Addr())
	if err != nil {
		return nil, err
	}
	r := in.tcp.newRelay(flowKey{guest: service, remote: client}, mac)
	r.envelope = newEnvelope(writer, mac, client, service)
	outcome := make(chan error, 1)
	r.opening = func(err error) { outcome <- err }
	r.fd, r.over = fd, over
	if !in.tcp.loop.call(r.open) {
		return nil, errStopped
	}
	select {
	case err = <-outcome:
		return r, err
	case <-ctx.Done():
	}
	// It may have come about in the meantime, or end with the loop.
	in.tcp.loop.call(r.giveUpOpening)
	if err = <-outcome; err == nil {
		return r, nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, unix.ETIMEDOUT
	}
	return nil, ctx.Err()
}

// way is how packets reach a service: by which device, and to which Ethernet address.
func (in *inbound) way(ctx context.Context, service netip.Addr) (*datagramWriter, macAddr, error) {
	s := in.subnets[family(service)]
	switch {
	case service == s.child:
		return in.tcp.writer, in.mac, nil
	case service.IsLoopback():
		if lo := in.lo.Load(); lo != nil {
			return lo.writer, macAddr{}, nil
		}
		return nil, macAddr{}, unix.EHOSTUNREACH
	}
	mac, err := in.resolve(ctx, service, s.gateway)
	return in.tcp.writer, mac, err
}

// resolve asks who on the link has an address, behind a bridge of the namespace.
func (in *inbound) resolve(ctx context.Context, addr, asker netip.Addr) (macAddr, error) {
	found := make(chan stack.LinkResolutionResult, 1)
	terr := in.stack.GetLinkAddress(nicID, toAddress(addr), toAddress(asker), protocolOf(addr), func(r stack.LinkResolutionResult) { found <- r })
	if _, waits := terr.(*tcpip.ErrWouldBlock); terr != nil && !waits {
		return macAddr{}, stackError("look for the service", terr)
	}
	select {
	case r := <-found:
		if r.Err != nil || len(r.LinkAddress) != header.EthernetAddressSize {
			return macAddr{}, unix.ETIMEDOUT // nobody on the link has the address
		}
		return macAddr([]byte(r.LinkAddress)), nil
	case <-ctx.Done():
		return macAddr{}, unix.ETIMEDOUT
	case <-in.ctx.Done():
		return macAddr{}, errStopped
	}
}

// open begins the guest's side of a connection that is opened into the namespace.
func (r *relay) open() {
	t := r.tcp
	if old := t.relays[r.key]; old != nil && !old.closed {
		r.endOpening(unix.EADDRINUSE) // the client's port is in use already
		return
	} else if old != nil {
		old.abort() // of which the end is not known there yet
	}
	r.conn.Open(t.options(r), t.now)
	t.add(r)
	r.settle()
}

// opened takes the outcome of that.
func (r *relay) opened(events tcp.Events) {
	switch {
	case events&tcp.Reset != 0:
		r.fail(unix.ECONNREFUSED)
	case events&tcp.Gone != 0:
		r.fail(unix.ETIMEDOUT)
	default:
		r.join()
		r.endOpening(nil) // also where the loop ends, and the relay with it
	}
}

// endOpening tells of the outcome.
func (r *relay) endOpening(err error) {
	tell := r.opening
	r.opening = nil
	tell(err)
}

// fail ends a connection that has not come about, and leaves the host's side to who has
// asked for it.
func (r *relay) fail(err error) {
	r.conn.Abort()
	r.conn.Drop()
	r.conn.Release()
	r.closed = true
	r.tcp.forget(r)
	r.endOpening(err)
}

// giveUpOpening ends a connection for which nobody waits any more, unless it has come
// about.
func (r *relay) giveUpOpening() {
	if r.opening != nil {
		r.fail(unix.ETIMEDOUT)
	}
}

// answers says whether a packet from a loopback address of the namespace is part
// of a flow that was opened from here. p is what follows the IP header. It is for the loop
// that reads frames.
func (in *inbound) answers(proto tcpip.TransportProtocolNumber, p []byte, src, dst netip.Addr) bool {
	if in == nil || in.lo.Load() == nil || !src.IsLoopback() {
		return false
	}
	switch proto {
	case header.TCPProtocolNumber:
	case udp.ProtocolNumber:
		return in.udp.hasClient(dst) // of which flow, deliver finds out
	case tcpip.TransportProtocolNumber(header.IPv6FragmentExtHdrIdentifier):
		return len(p) > 0 && p[0] == uint8(udp.ProtocolNumber) && in.udp.hasClient(dst)
	default:
		return false
	}
	if len(p) < header.TCPMinimumSize {
		return false
	}
	segment := header.TCP(p)
	return in.tcp.relays[flowKey{
		guest:  netip.AddrPortFrom(src, segment.SourcePort()),
		remote: netip.AddrPortFrom(dst, segment.DestinationPort()),
	}] != nil
}

// close refuses what is new and cancels what is being dialled.
func (in *inbound) close() {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	in.udp.close()
	in.cancel()
}

// wait returns when the dials have ended.
func (in *inbound) wait() { in.running.Wait() }

// protocolOf is the network protocol of an address.
func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}
