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
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/port"
)

// inbound opens flows into the namespace in the names of clients, for a port
// driver (port.Opener): the service sees the client's own address and port.
//
// The stack speaks for all of the outside, so an endpoint of it takes a client's
// address as any other. What it sends enters the namespace where the service
// expects it:
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
	loops   []*loop
	udp     inboundUDP

	lo      atomic.Pointer[loopback] // nil where the loopback is not reached
	opening sync.Once                // of lo

	routes atomic.Pointer[linux.Routes] // of the namespace; nil where they are not known
	asking sync.Once                    // for the socket of routes

	ctx    context.Context
	cancel context.CancelFunc

	mu         sync.Mutex // guards closed, neighbours, and the start of running
	closed     bool
	neighbours map[netip.Addr]struct{}
	running    sync.WaitGroup
}

var _ port.Opener = (*Network)(nil)

// newInbound returns the way into the namespace behind s. close and wait end it.
func newInbound(s *stack.Stack, subnets [2]subnet, loops []*loop) *inbound {
	in := &inbound{stack: s, subnets: subnets, loops: loops, neighbours: map[netip.Addr]struct{}{}}
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
	ep, queue, err := in.open(ctx, client, service)
	if err != nil {
		return nil, fmt.Errorf("connect to %v as %v: %w", service, client, err)
	}
	configureEndpoint(ep)
	r := newRelay(in.loops[fd%len(in.loops)], ep, queue, fd)
	r.over = over
	_ = r.start() // on an error, which is that the engine stops, the relay is over
	return r.cut, nil
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

// open connects an endpoint of the stack. The error is ECONNREFUSED when the
// service refuses, and ETIMEDOUT when nothing answers.
func (in *inbound) open(ctx context.Context, client, service netip.AddrPort) (tcpip.Endpoint, *waiter.Queue, error) {
	in.meet(service.Addr())
	queue := new(waiter.Queue)
	ep, terr := in.stack.NewEndpoint(tcp.ProtocolNumber, protocolOf(service.Addr()), queue)
	if terr != nil {
		return nil, nil, stackError("make an endpoint", terr)
	}
	entry, events := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	// The same client may have connections to other services, from one port.
	ep.SocketOptions().SetReuseAddress(true)
	if terr = ep.Bind(stackAddress(client)); terr == nil {
		terr = ep.Connect(stackAddress(service))
	}
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-events:
			terr = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			ep.Close()
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, nil, unix.ETIMEDOUT
			}
			return nil, nil, ctx.Err()
		case <-in.ctx.Done():
			ep.Abort()
			ep.Close()
			return nil, nil, errStopped
		}
	}
	if terr == nil {
		return ep, queue, nil
	}
	ep.Close()
	switch terr.(type) {
	case *tcpip.ErrConnectionRefused:
		return nil, nil, unix.ECONNREFUSED
	case *tcpip.ErrHostUnreachable: // nobody on the link has the address
		return nil, nil, unix.ETIMEDOUT
	}
	return nil, nil, stackError("connect", terr)
}

// loopbackMAC is the Ethernet address of lo, by which the link knows what goes
// there.
const loopbackMAC = tcpip.LinkAddress("\x00\x00\x00\x00\x00\x00")

// meet tells the stack where a loopback address is: nobody answers for it on the
// link. The forwards name the addresses, so there are few.
func (in *inbound) meet(service netip.Addr) {
	if !service.IsLoopback() {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if _, ok := in.neighbours[service]; ok {
		return
	}
	// It fails for a protocol without neighbours only.
	_ = in.stack.AddStaticNeighbor(nicID, protocolOf(service), toAddress(service), loopbackMAC)
	in.neighbours[service] = struct{}{}
}

// loopback returns the device for a packet that goes to the namespace's lo, and
// nil for all others.
func (in *inbound) loopback(pkt *stack.PacketBuffer) *device {
	if pkt.EgressRoute.RemoteLinkAddress != loopbackMAC {
		return nil
	}
	if lo := in.lo.Load(); lo != nil {
		return lo.dev
	}
	return nil
}

// answers says whether a packet from a loopback address of the namespace is part
// of a flow that was opened from here. p is what follows the IP header.
func (in *inbound) answers(proto tcpip.TransportProtocolNumber, p []byte, src, dst netip.Addr) bool {
	if in == nil || in.lo.Load() == nil || !src.IsLoopback() {
		return false
	}
	switch proto {
	case tcp.ProtocolNumber:
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
	return in.stack.FindTransportEndpoint(protocolOf(src), tcp.ProtocolNumber, stack.TransportEndpointID{
		LocalAddress:  toAddress(dst),
		LocalPort:     segment.DestinationPort(),
		RemoteAddress: toAddress(src),
		RemotePort:    segment.SourcePort(),
	}, nicID) != nil
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

// stackAddress turns Go's address into gVisor's, on the one interface.
func stackAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: toAddress(a.Addr()), Port: a.Port()}
}
