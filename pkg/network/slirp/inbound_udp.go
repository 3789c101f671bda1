package slirp

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/gatekit/gatekit/pkg/port"
)

// inboundUDP holds the UDP flows that were opened in the names of clients. What a
// client sends is written to lo as a frame, or given to the stack where the
// service is on the TAP, whose neighbour the stack has to ask for. What the
// service sends is a datagram from the TAP that deliver finds to belong to a flow,
// before the relay for what the namespace sends itself sees it. When both have all
// addresses and ports in common, it belongs to the flow of the client.
//
// A service on every address answers, unless it takes care, from the address that
// the namespace has towards the client: the interface's, also where it was asked at
// its loopback. So a flow to the loopback is known by that one too. And a service that
// connects its socket to the client (nc, iperf3, DTLS) has that address from then on,
// and takes nothing for the loopback any more. So a flow goes to where its service
// answers from, and where that refuses, to the other of the two:
//
//	an answer from either                   the flow goes there
//	one refuses, for the first time         the flow goes to the other, and the
//	in a while                              datagram with it, if ICMP has all of it
//	the other refuses too                   there is no service: refused
//
// The port driver caps the flows, and ends them.
type inboundUDP struct {
	// flows and clients are guarded by mu. It is held while a datagram is written,
	// which does not wait, so that the devices are there.
	mu      sync.RWMutex
	flows   map[inboundKey]*inboundFlow
	clients map[netip.Addr]int // flows of a client
	closed  bool

	// open is the number of flows, so that without any a datagram costs nothing.
	open atomic.Int32
}

// inboundKey is a flow as the namespace sees it.
type inboundKey struct{ service, client netip.AddrPort }

// inboundFlow implements port.Datagrams.
type inboundFlow struct {
	in      *inbound
	key     inboundKey
	alias   inboundKey   // by the interface's address; key, unless that is to the loopback
	route   *stack.Route // nil for lo
	receive func(payload []byte)
	refused func(payload []byte)

	moved  atomic.Bool // it goes to the alias
	mu     sync.Mutex  // guards turned
	turned time.Time   // when a refusal last had it go elsewhere
}

// turnSpan is the time in which a flow turns to each address of its service once.
const turnSpan = time.Second

// loopbackMTU is that of lo in Linux.
const loopbackMTU = 65536

// OpenDatagrams implements port.Opener.
func (n *Network) OpenDatagrams(client, service netip.AddrPort, receive, refused func(payload []byte)) (port.Datagrams, error) {
	in := n.inbound.Load()
	if in == nil {
		return nil, fmt.Errorf("open a flow to %v as %v: %w", service, client, errStopped)
	}
	f := &inboundFlow{in: in, key: inboundKey{service, client}, receive: receive, refused: refused}
	f.alias = in.aliasOf(f.key)
	if err := in.udp.add(f); err != nil {
		return nil, fmt.Errorf("open a flow to %v as %v: %w", service, client, err)
	}
	return f, nil
}

// add puts a flow into the table.
func (u *inboundUDP) add(f *inboundFlow) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return errStopped
	}
	if other := u.flows[f.key]; other != nil && other.key == f.key {
		return port.ErrConflict // by way of another forward
	}
	if !f.key.service.Addr().IsLoopback() {
		service := f.key.service.Addr()
		route, terr := f.in.stack.FindRoute(nicID, toAddress(f.key.client.Addr()), toAddress(service), protocolOf(service), false)
		if terr != nil {
			return stackError("find a route", terr)
		}
		f.route = route
	}
	u.flows[f.key] = f
	if u.flows[f.alias] == nil {
		u.flows[f.alias] = f
	}
	u.clients[f.key.client.Addr()]++
	u.open.Add(1)
	return nil
}

// aliasOf is the other key of a flow to the loopback; any other has the same once
// more.
func (in *inbound) aliasOf(key inboundKey) inboundKey {
	service := key.service
	for _, s := range in.subnets {
		if s.enabled() && service.Addr().IsLoopback() && s.child.Is4() == service.Addr().Is4() {
			key.service = netip.AddrPortFrom(s.child, service.Port())
		}
	}
	return key
}

// Close implements port.Datagrams.
func (f *inboundFlow) Close() {
	u := &f.in.udp
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.flows[f.key] == f {
		u.remove(f)
	}
}

// remove takes a flow out of the table. The caller holds mu.
func (u *inboundUDP) remove(f *inboundFlow) {
	if f.route != nil {
		f.route.Release()
	}
	delete(u.flows, f.key)
	if u.flows[f.alias] == f {
		delete(u.flows, f.alias)
	}
	client := f.key.client.Addr()
	if u.clients[client]--; u.clients[client] == 0 {
		delete(u.clients, client)
	}
	u.open.Add(-1)
}

// close ends all flows, and what is sent from here on is lost.
func (u *inboundUDP) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	for _, f := range u.flows {
		u.remove(f)
	}
}

// Send implements port.Datagrams.
func (f *inboundFlow) Send(payload []byte) {
	u := &f.in.udp
	u.mu.RLock()
	defer u.mu.RUnlock()
	switch {
	case u.flows[f.key] != f:
	case f.route == nil:
		if lo := f.in.lo.Load(); lo != nil {
			lo.writer.write(macAddr{}, f.key.client, f.service(), payload)
		}
	default:
		f.sendOnTAP(payload)
	}
}

// service is where the flow goes.
func (f *inboundFlow) service() netip.AddrPort {
	if f.moved.Load() {
		return f.alias.service
	}
	return f.key.service
}

// answer passes on what the service has sent, and has the flow go to where that came
// from.
func (f *inboundFlow) answer(from netip.AddrPort, payload []byte) {
	if moved := from != f.key.service; f.moved.Load() != moved {
		f.moved.Store(moved)
	}
	f.receive(payload)
}

// refuse turns the flow from an address of its service to the other one, with the
// payload that was refused there; nil is one that is not known. When it has just done
// so, nobody is there.
func (f *inboundFlow) refuse(at netip.AddrPort, payload []byte) {
	f.mu.Lock()
	now := time.Now()
	switch {
	case at != f.service(): // it was on its way when the flow turned
	case f.alias != f.key && now.Sub(f.turned) >= turnSpan:
		f.turned = now
		f.moved.Store(!f.moved.Load())
	default:
		f.moved.Store(false)
		f.mu.Unlock()
		f.refused(payload)
		return
	}
	f.mu.Unlock()
	if payload != nil {
		f.Send(payload)
	}
}

// sendOnTAP has the stack send a datagram, in fragments where it must.
func (f *inboundFlow) sendOnTAP(payload []byte) {
	largest := maxPayloadIPv4
	if f.key.client.Addr().Is6() {
		largest = maxPayloadIPv6
	}
	if len(payload) > largest {
		return // the kernel has none that are larger
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(f.route.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(payload),
	})
	defer pkt.DecRef()
	putUDP(pkt.TransportHeader().Push(header.UDPMinimumSize), f.key.client, f.key.service, payload, false)
	pkt.TransportProtocolNumber = udp.ProtocolNumber
	params := stack.NetworkHeaderParams{Protocol: udp.ProtocolNumber, TTL: f.route.DefaultTTL()}
	_ = f.route.WritePacket(params, pkt) // what is lost is lost, as on any network
}

// find returns the flow of what the service has sent to the client; nil when it is
// none of ours.
func (u *inboundUDP) find(service, client netip.AddrPort) *inboundFlow {
	if u.open.Load() == 0 {
		return nil
	}
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.flows[inboundKey{service, client}]
}

// hasClient says whether a client has flows.
func (u *inboundUDP) hasClient(client netip.Addr) bool {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.clients[client] > 0
}

// deliver passes a datagram of the namespace on, if it belongs to a flow. One from
// a loopback address goes no further in any case.
func (u *inboundUDP) deliver(d *datagram) bool {
	f := u.find(d.src, d.dst)
	if f == nil {
		return d.src.Addr().IsLoopback()
	}
	if d.segment == 0 || len(d.payload) == 0 {
		f.answer(d.src, d.payload)
		return true
	}
	for segment := range slices.Chunk(d.payload, int(d.segment)) {
		f.answer(d.src, segment)
	}
	return true
}

// refuse tells a flow that the namespace has refused a datagram; it is false when that
// is no flow's.
func (u *inboundUDP) refuse(r *refusal) bool {
	f := u.find(r.at, r.sender)
	if f == nil {
		return false
	}
	f.refuse(r.at, r.payload)
	return true
}
