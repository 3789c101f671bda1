package slirp

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// engine is what Run makes on a device. It is taken apart from both ends towards
// the middle, so that nobody is called who has gone:
//
//  1. the way in: no more connections from there
//  2. the loops: no more frames, and so no new flows, and no more bytes
//  3. the relays, and with them who waits for a connection
//  4. the stack, the UDP relay and the DNS forwarder: no more host sockets
//  5. the device, by run, which made none of the others
type engine struct {
	dev   *device
	loops []*loop
	link  *link
	stack *stack.Stack
	dns   *dnsForwarder
	tcp   *tcpForwarder
	udp   *udpRelay
	echo  *echoRelay

	guests  *guests
	inbound *inbound
	egress  *egress
	memory  reclaimer

	malformed atomic.Uint64 // datagrams in packets of the stack
}

// run serves a device, which it owns, until ctx is done or it fails.
func (n *Network) run(ctx context.Context, dev *device, ready func()) (err error) {
	defer func() { err = errors.Join(err, dev.close()) }()
	log.SetTarget(stackLog{n.log})
	e, err := n.newEngine(dev)
	if err != nil {
		return err
	}
	n.inbound.Store(e.inbound)
	defer func() {
		n.inbound.Store(nil)
		err = errors.Join(err, e.inbound.leave())
	}()
	n.engine.Store(e)
	defer func() {
		last := e.counters()
		n.last.Store(&last)
		n.engine.Store(nil)
		n.log.Debug("the network has ended", "counters", last)
	}()
	following, stop := context.WithCancel(ctx)
	var follower sync.WaitGroup
	follower.Go(func() { n.source.follow(following, n.log) })
	defer follower.Wait()
	defer stop()
	return e.serve(ctx, ready)
}

// newEngine makes the parts. serve runs them and takes them apart.
func (n *Network) newEngine(dev *device) (*engine, error) {
	e := &engine{dev: dev}
	// One reads frames and has all of TCP; UDP and echo are spread over half of the
	// processors.
	for range max(1, runtime.GOMAXPROCS(0)/2) {
		l, err := newLoop(&e.memory)
		if err != nil {
			e.stopLoops()
			return nil, err
		}
		e.loops = append(e.loops, l)
	}
	e.egress = &egress{subnets: n.subnets, loopback: n.hostLoopback, leads: &n.leads, policy: n.policy, out: n.outbound, descriptors: newDescriptors()}
	writer := &datagramWriter{dev: dev, mac: gatewayMAC, mtu: n.plan.Interface.MTU}
	for i, s := range n.subnets {
		writer.gateways[i] = s.gateway
	}
	e.dns = newDNSForwarder(n.subnets, n.source, e.egress)
	e.udp = newUDPRelay(e.egress, e.dns, e.loops, writer, n.filtering)
	e.echo = newEchoRelay(e.egress, e.loops, writer)
	e.guests = newGuests(n, writer)
	e.link = &link{
		dev:        dev,
		mtu:        uint32(n.plan.Interface.MTU),
		inspector:  inspector{mac: gatewayMAC, subnets: n.subnets},
		onDatagram: e.handleDatagram,
		onEmpty:    e.udp.flush,
		onEcho:     e.echo.send,
		writer:     writer,
		guests:     e.guests,
	}
	e.tcp = newTCPForwarder(e.egress, e.dns, e.loops[0], writer, n.clock)
	e.memory.spare = e.tcp.clearPool
	e.link.tcp = e.tcp
	e.watchLimits(n.log)
	s, err := newStack(e.link, n.subnets)
	if err != nil {
		e.stopLoops()
		return nil, err
	}
	e.stack = s
	e.inbound = newInbound(s, n.subnets, n.childMAC, e.tcp)
	e.link.inspector.inbound = e.inbound
	e.link.inspector.onComplaint = e.tcp.refused
	e.link.inspector.onRefusal = func(r *refusal) bool { return e.inbound.udp.refuse(r) || e.udp.refuse(r) }
	s.SetTransportProtocolHandler(header.TCPProtocolNumber, e.handleTCP)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, e.handleUDP)
	s.SetTransportProtocolHandler(icmp.ProtocolNumber4, e.echo.handlePacket)
	s.SetTransportProtocolHandler(icmp.ProtocolNumber6, e.echo.handlePacket)
	return e, nil
}

// watchLimits has the limits on what the namespace has under way be told of.
func (e *engine) watchLimits(log *slog.Logger) {
	const starved = "no descriptors are left, so flows that were used least recently end; ulimit -n allows more"
	e.tcp.full.say(log, "too many connections are being set up; those of programs inside may wait for seconds", maxDials)
	e.tcp.starved.say(log, "no descriptors are left for connections; those of programs inside wait until others end; ulimit -n allows more", 0)
	e.tcp.crowded.say(log, "too much waits for programs inside that acknowledge nothing, after the other side has ended; some of their connections are reset", maxOrphaned)
	e.udp.full.say(log, "too many UDP flows; those that were used least recently end", e.udp.limit)
	e.udp.starved.say(log, starved, 0)
	e.echo.full.say(log, "too many flows of echo requests; those that were used least recently end", e.echo.limit)
	e.echo.starved.say(log, starved, 0)
	e.dns.full.say(log, "too many DNS queries are under way; some are dropped", maxQueries)
	e.guests.full.say(log, "no address is left for a guest of the namespace until a lease of others ends; a larger slirp.Options.IPv4 or slirp.Options.IPv6 has more", 0)
	e.dns.starved.say(log, "no descriptors are left for DNS queries; some are dropped; ulimit -n allows more", 0)
	e.dns.fullStreams.say(log, "too many TCP connections to the DNS server; some are closed", maxStreams)
}

// handleDatagram takes a datagram of the namespace: an answer to a client, or one
// that goes its own way.
func (e *engine) handleDatagram(d *datagram) bool { return e.inbound.udp.deliver(d) || e.udp.send(d) }

// handleUDP takes what the stack has: datagrams put together from fragments or behind
// extension headers, and whole ones that handleDatagram has refused. It is false for
// what is refused, which the stack answers with an ICMP error (port unreachable).
func (e *engine) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	d := datagram{
		src: netip.AddrPortFrom(fromAddress(id.RemoteAddress), id.RemotePort),
		dst: netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort),
		ttl: packetTTL(pkt),
	}
	if !d.src.Addr().IsLoopback() && e.udp.refuses(d.dst) {
		return false
	}
	if !d.take(pkt) {
		e.malformed.Add(1)
		return true
	}
	return e.handleDatagram(&d)
}

// handleTCP takes a segment that the stack has put together from fragments, or found
// behind extension headers.
func (e *engine) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	d := datagram{
		src: netip.AddrPortFrom(fromAddress(id.RemoteAddress), id.RemotePort),
		dst: netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort),
		ttl: packetTTL(pkt),
	}
	eth := pkt.LinkHeader().Slice()
	data := pkt.Data().ToBuffer()
	defer data.Release()
	segment := append(slices.Clone(pkt.TransportHeader().Slice()), data.Flatten()...)
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, id.RemoteAddress, id.LocalAddress, uint16(len(segment)))
	if len(eth) < ethernetSize || inspectTCP(segment, vnetHeader{}, sum, d.src.Addr(), d.dst.Addr(), &d) != toTCP {
		e.malformed.Add(1)
		return true
	}
	d.mac = macAddr(eth[6:12])
	e.tcp.input(&d, nil)
	return true
}

// serve runs the engine until ctx is done or a part fails, and returns when all
// its goroutines and descriptors, but the device's, are gone.
func (e *engine) serve(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	started := e.link.start(e.loops[0], cancel)
	if started != nil {
		cancel(started)
	}
	var loops sync.WaitGroup
	for _, l := range e.loops {
		loops.Go(func() {
			if err := l.run(); err != nil {
				cancel(err)
			}
		})
	}
	if started == nil {
		ready()
	}
	<-ctx.Done()

	e.inbound.close()
	e.stopLoops()
	loops.Wait()
	for _, l := range e.loops {
		l.abort()
	}
	e.tcp.close()
	e.stack.Close()
	e.inbound.wait()
	e.udp.close()
	e.echo.close()
	e.guests.close()
	e.dns.close()
	e.memory.stop()
	e.stack.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// revoke ends the flows that the policy, which has changed, no longer allows.
func (e *engine) revoke() {
	e.tcp.revoke()
	e.udp.revoke()
	e.echo.revoke()
}

func (e *engine) stopLoops() {
	for _, l := range e.loops {
		l.stop()
	}
}
