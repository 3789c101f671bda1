package slirp

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
)

// maxDials caps the connections that are being set up. A SYN beyond it is
// dropped, and comes again. It is large because connections to hosts that do not
// answer stay in it for as long as the namespace tries.
const maxDials = 8192

// dialTimeout bounds the dial to the host's side. It is what Linux gives a SYN by
// default (tcp_syn_retries in tcp(7)).
const dialTimeout = 127 * time.Second

// giveUpGrace is how late a repeated SYN of the namespace may be before we take
// it that nobody waits any more.
const giveUpGrace = 3 * time.Second

// maxSpare is how many goroutines that have set up a connection wait for the next.
const maxSpare = 16

// tcpForwarder sets up TCP connections of the namespace. For a SYN that belongs
// to no connection, gVisor's forwarder starts a goroutine. It hands the work to one
// that has done it before, where one waits, because the stack of a new goroutine
// grows by copies, four of them to set up a connection. That one
//
//  1. asks the egress where the connection goes: nowhere, or nowhere by policy, is
//     a reset; to the DNS server, which answers by itself (dns_stream.go);
//  2. connects a socket of the host: refused is a reset, unreachable an ICMP
//     error (unreachable.go), no answer is none; it gives up when the namespace
//     has (a reset, or no more SYNs);
//  3. completes the handshake with the namespace;
//  4. hands both ends to a loop.
type tcpForwarder struct {
	stack     *stack.Stack
	egress    *egress
	dns       *dnsForwarder
	loops     []*loop
	writer    *datagramWriter // of ICMP errors
	forwarder *tcp.Forwarder
	requests  chan *tcp.ForwarderRequest // for those that wait
	spare     atomic.Int32               // how many wait

	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex // guards dials, met and closed
	dials   map[stack.TransportEndpointID]*dial
	met     [2]macAddr // of the child's IPv4 and IPv6 address
	closed  bool
	running sync.WaitGroup
	full    overflow // on dials
	starved overflow // of descriptors
}

// newTCPForwarder makes s hand over its SYNs. close and wait end it.
func newTCPForwarder(s *stack.Stack, e *egress, d *dnsForwarder, loops []*loop, w *datagramWriter) *tcpForwarder {
	t := &tcpForwarder{stack: s, egress: e, dns: d, loops: loops, writer: w, dials: make(map[stack.TransportEndpointID]*dial)}
	t.requests = make(chan *tcp.ForwarderRequest)
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.forwarder = tcp.NewForwarder(s, defaultTCPBuffer, maxDials, t.handle)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, t.handlePacket)
	return t
}

// handlePacket gets the segments that belong to no connection. A SYN begins a
// dial, of which the forwarder calls handle; the dial is told of the SYNs and
// resets of its connection.
func (t *tcpForwarder) handlePacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if tcp := header.TCP(pkt.TransportHeader().Slice()); len(tcp) >= header.TCPMinimumSize {
		flags := tcp.Flags()
		t.mu.Lock()
		d := t.dials[id]
		begins := d == nil && flags&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) == header.TCPFlagSyn
		if begins {
			if full := len(t.dials) >= maxDials; t.closed || full {
				t.mu.Unlock()
				if full {
					t.full.add()
					t.full.tell()
				}
				return true
			}
			d = newDial(t.ctx, tcp, pkt)
			t.dials[id] = d
			t.running.Add(1)
		}
		t.mu.Unlock()
		switch {
		case begins:
			t.meet(id.RemoteAddress, d.mac)
			// The forwarder has no more under way than we have, so it takes every
			// SYN that is sound.
			if !t.forwarder.HandlePacket(id, pkt) {
				t.finish(id, d)
				return false
			}
			return true
		case d == nil && flags.Contains(header.TCPFlagRst):
			// A reset of nothing is passed over (RFC 9293, 3.10.7.2). The forwarder
			// would take one that is a SYN too, and call handle without a dial.
			return true
		case d == nil:
		case flags.Contains(header.TCPFlagRst):
			d.cancel()
			return true
		case flags.Contains(header.TCPFlagSyn):
			// Not for the forwarder, which may have done with this dial when it
			// is still ours: it would call handle without one.
			d.repeated()
			return true
		}
	}
	return t.forwarder.HandlePacket(id, pkt)
}

// meet tells the stack the child's Ethernet address, which its frame has. The
// stack would ask for it in the name of whom the child speaks to, and a kernel
// answers nobody who claims to be its loopback: the question would stay open, and
// with it all others' answers.
func (t *tcpForwarder) meet(child tcpip.Address, mac macAddr) {
	for i, proto := range []tcpip.NetworkProtocolNumber{header.IPv4ProtocolNumber, header.IPv6ProtocolNumber} {
		s := t.egress.subnets[i]
		if !s.enabled() || fromAddress(child) != s.child {
			continue
		}
		t.mu.Lock()
		known := t.met[i] == mac
		t.met[i] = mac
		t.mu.Unlock()
		if !known {
			// It fails on a NIC that is going.
			_ = t.stack.AddStaticNeighbor(nicID, proto, child, tcpip.LinkAddress(mac[:]))
		}
	}
}

// handle is what gVisor starts a goroutine for.
func (t *tcpForwarder) handle(req *tcp.ForwarderRequest) {
	select {
	case t.requests <- req:
		return
	default:
	}
	t.running.Add(1) // its dial still counts
	defer t.running.Done()
	t.setUp(req)
	for t.spare.Add(1) <= maxSpare && t.await() {
	}
	t.spare.Add(-1)
}

// await waits for another connection and sets it up. It is false when the engine
// stops.
func (t *tcpForwarder) await() bool {
	select {
	case req := <-t.requests:
		t.spare.Add(-1)
		t.setUp(req)
		return true
	case <-t.ctx.Done():
		return false
	}
}

// setUp sets up one connection.
func (t *tcpForwarder) setUp(req *tcp.ForwarderRequest) {
	id := req.ID()
	t.mu.Lock()
	d := t.dials[id]
	t.mu.Unlock()
	defer t.finish(id, d)

	asked := askedFor(id)
	if t.dns.serves(asked) {
		if ep, queue := t.shakeHands(req, d); ep != nil {
			t.dns.stream(gonet.NewTCPConn(queue, ep))
		}
		return
	}
	fd, l, via, err := t.connect(d, asked)
	t.answers(d)
	if err != nil {
		req.Complete(t.refuse(d, id, err))
		return
	}
	ep, queue := t.shakeHands(req, d)
	if ep == nil {
		l.forget(fd)
		resetAndClose(fd)
		via.leave()
		return
	}
	r := newRelay(l, ep, queue, fd)
	r.outbound = true
	r.spoken.ack = header.TCP(d.head[:]).SequenceNumber() + 1 // of the SYN
	if via != nil {
		r.lead, r.over = via, via.leave
	}
	_ = r.start() // on an error, which is that the engine stops, both ends are closed
	// Another policy may have come since the egress was asked.
	if !t.egress.policy.AllowsStill(policy.TCP, asked) {
		l.revoke(t.egress)
	}
	if via.wasCut() {
		l.cut(via)
	}
}

// askedFor is the address that the namespace connects to.
func askedFor(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort)
}

// revoke gives up the dials that the policy, as it is now, does not allow. They
// are reset when the namespace repeats its SYN.
func (t *tcpForwarder) revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, d := range t.dials {
		if !t.egress.policy.AllowsStill(policy.TCP, askedFor(id)) {
			d.cancel()
		}
	}
}

// giveUp gives up the dials towards an address, as revoke does.
func (t *tcpForwarder) giveUp(asked netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, d := range t.dials {
		if askedFor(id) == asked {
			d.cancel()
		}
	}
}

// refuse answers for a dial that failed. It is true where a reset is the answer.
// Silence is passed on as silence, and a namespace that gave up needs no answer. Nor
// does one whose SYN may find a descriptor when it comes again.
func (t *tcpForwarder) refuse(d *dial, id stack.TransportEndpointID, err error) bool {
	if noDescriptors(err) {
		t.starved.add()
		t.starved.tell()
		return false
	}
	if errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, context.Canceled) || errors.Is(err, errStopped) {
		return false
	}
	e, ok := unreachable(err, d.ipv6)
	if !ok || errors.Is(err, unix.ECONNREFUSED) {
		return true
	}
	out := outgoing{src: fromAddress(id.RemoteAddress), dst: fromAddress(id.LocalAddress), proto: header.TCPProtocolNumber, ttl: d.ttl}
	q := quoteHeaders(&out, &d.head, nil)
	t.writer.writeError(d.mac, e, &q)
	return false
}

// configureEndpoint sets the options of the namespace's side.
func configureEndpoint(ep tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(keepAlive.Idle), tcpip.KeepaliveIntervalOption(keepAlive.Interval)
	// These values are in range, so there is no error.
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	ep.SocketOptions().SetKeepAlive(true)
	// The sender on the host's side has decided how to cut its stream.
	ep.SocketOptions().SetDelayOption(false)
}

// connect dials the host's side of a connection that was asked for, which has a
// place in the lead that is returned.
func (t *tcpForwarder) connect(d *dial, asked netip.AddrPort) (int, *loop, *lead, error) {
	w, ruling := t.egress.destination(policy.TCP, asked)
	if ruling != letOut {
		return -1, nil, nil, unix.ECONNREFUSED
	}
	fd, l, err := t.dialHost(d, w, dialTimeout)
	if err == nil && !w.lead.enter() {
		l.forget(fd)
		resetAndClose(fd)
		err = unix.ECONNREFUSED
	}
	return fd, l, w.lead, err
}

// shakeHands completes the namespace's handshake, and request with it. It returns
// nil where that fails, or the engine stops.
func (t *tcpForwarder) shakeHands(req *tcp.ForwarderRequest, d *dial) (tcpip.Endpoint, *waiter.Queue) {
	queue := new(waiter.Queue)
	t.mu.Lock()
	stopping := t.closed
	d.queue = queue
	t.mu.Unlock()
	if stopping {
		req.Complete(false)
		return nil, nil
	}
	ep, err := req.CreateEndpoint(queue)
	req.Complete(err != nil)
	if err != nil {
		return nil, nil
	}
	configureEndpoint(ep)
	return ep, queue
}

// dialHost connects a new socket by a way of the host's side. The socket is
// watched by the loop that is returned with it.
func (t *tcpForwarder) dialHost(d *dial, w way, timeout time.Duration) (int, *loop, error) {
	fd, err := newStreamSocket(w.to.Addr())
	if err != nil {
		return -1, nil, err
	}
	if w.lead == nil {
		err = t.egress.out.apply(fd, w.to.Addr())
	}
	if err != nil {
		linux.Close(fd)
		return -1, nil, err
	}
	l := t.loops[fd%len(t.loops)]
	if err := d.connect(l, fd, w.to, timeout); err != nil {
		l.forget(fd)
		linux.Close(fd)
		return -1, nil, err
	}
	return fd, l, nil
}

// finish ends a dial.
func (t *tcpForwarder) finish(id stack.TransportEndpointID, d *dial) {
	d.cancel()
	t.mu.Lock()
	delete(t.dials, id)
	t.mu.Unlock()
	t.running.Done()
}

// close refuses what is new and cancels what is being dialled.
func (t *tcpForwarder) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
}

// wakeInterval is how often wait wakes who waits in a handshake: one may just have
// begun to.
const wakeInterval = 10 * time.Millisecond

// wait returns when the goroutines have ended. It is called when the stack is
// closed, which ends its handshakes without a word to those who wait for them.
func (t *tcpForwarder) wait() {
	ended := make(chan struct{})
	go func() {
		t.running.Wait()
		close(ended)
	}()
	for {
		t.mu.Lock()
		for _, d := range t.dials {
			if d.queue != nil {
				d.queue.Notify(waiter.WritableEvents)
			}
		}
		t.mu.Unlock()
		select {
		case <-ended:
			return
		case <-time.After(wakeInterval):
		}
	}
}
