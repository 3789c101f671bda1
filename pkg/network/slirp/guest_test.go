package slirp

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// patience bounds every wait of the tests.
const patience = 10 * time.Second

// rig is an engine whose TAP is one end of a socket pair. On the other end is
// the namespace's side: a second stack of gVisor's (guest), or frames by hand
// (wire).
type rig struct {
	t     testing.TB
	net   *Network
	e     *engine
	wire  *os.File
	vnet  bool
	guest *stack.Stack
	errs  chan error
	stop  context.CancelFunc
	ctx   context.Context // that stop ends

	silent atomic.Bool // the guest hears nothing, and so says nothing
}

// rigOptions are Options and what only the test decides.
type rigOptions struct {
	Options
	plain bool // without virtio-net header
	bare  bool // without a guest
	tweak func(*engine)
	clock tcpip.Clock // of both stacks; nil is the machine's
}

var guestMAC = macAddr{0x52, 0x55, 0, 0, 0, 0x64}

// newRig starts an engine and a guest, which the test's cleanup ends.
func newRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	o.IPv4, o.IPv6 = cmpOr(o.IPv4, defaultIPv4), cmpOr(o.IPv6, defaultIPv6)
	n, err := New(o.Options)
	if err != nil {
		t.Fatal(err)
	}
	n.clock = o.clock
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, net: n, wire: os.NewFile(uintptr(fds[1]), "wire"), vnet: !o.plain, errs: make(chan error, 1)}
	t.Cleanup(func() { r.wire.Close() }) // after all else
	for _, fd := range fds {
		// A frame of 64 KiB has to fit.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 208<<10); err != nil {
			t.Fatal(err)
		}
	}
	dev, err := newDevice(os.NewFile(uintptr(fds[0]), "tap"), !o.plain)
	if err != nil {
		t.Fatal(err)
	}
	r.e, err = n.newEngine(dev)
	if err != nil {
		t.Fatal(err)
	}
	if o.tweak != nil {
		o.tweak(r.e)
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	ready := make(chan struct{})
	go func() { r.errs <- errors.Join(r.e.serve(r.ctx, func() { close(ready) }), dev.close()) }()
	<-ready
	t.Cleanup(func() {
		r.stop()
		if err := <-r.errs; err != nil {
			t.Errorf("engine: %v", err)
		}
	})
	if !o.bare {
		r.startGuest(o.Options.MTU)
	}
	return r
}

func cmpOr(p, other netip.Prefix) netip.Prefix {
	if p.IsValid() {
		return p
	}
	return other
}

// startGuest plays the namespace's kernel.
func (r *rig) startGuest(mtu int) {
	if mtu == 0 {
		mtu = DefaultMTU
	}
	ch := channel.New(4096, uint32(mtu+ethernetSize), tcpip.LinkAddress(guestMAC[:]))
	if r.vnet {
		// As a kernel does with a header that says so.
		ch.LinkEPCapabilities |= stack.CapabilityRXChecksumOffload
	}
	s := stack.New(stack.Options{
		Clock:              r.net.clock,
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	must(r.t, s.CreateNIC(nicID, ethernet.New(ch)))
	var routes []tcpip.Route
	for i, sub := range r.net.subnets {
		if !sub.enabled() {
			continue
		}
		proto, all := header.IPv4ProtocolNumber, header.IPv4EmptySubnet
		if i == 1 {
			proto, all = header.IPv6ProtocolNumber, header.IPv6EmptySubnet
		}
		must(r.t, s.AddProtocolAddress(nicID, tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: toAddress(sub.child), PrefixLen: sub.prefix.Bits(),
		}}, stack.AddressProperties{}))
		local := tcpip.AddressWithPrefix{Address: toAddress(sub.prefix.Addr()), PrefixLen: sub.prefix.Bits()}.Subnet()
		routes = append(routes, tcpip.Route{Destination: local, NIC: nicID}, tcpip.Route{Destination: all, NIC: nicID, Gateway: toAddress(sub.gateway)})
	}
	s.SetRouteTable(routes)
	r.guest = s

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.guestReceive(ch) })
	running.Go(func() { r.guestSend(ctx, ch) })
	r.t.Cleanup(func() {
		s.Destroy()
		cancel()
		r.wire.SetDeadline(time.Unix(1, 0))
		running.Wait()
		ch.Close()
	})
}

// guestReceive brings frames from the engine to the guest.
func (r *rig) guestReceive(ch *channel.Endpoint) {
	buf := make([]byte, vnetHeaderSize+maxFrame)
	for {
		n, err := r.wire.Read(buf)
		if err != nil || n == 0 {
			return
		}
		if r.silent.Load() {
			continue
		}
		frame := buf[:n]
		if r.vnet {
			frame = frame[vnetHeaderSize:]
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
		ch.InjectInbound(0, pkt)
		pkt.DecRef()
	}
}

// guestSend brings frames from the guest to the engine.
func (r *rig) guestSend(ctx context.Context, ch *channel.Endpoint) {
	for {
		pkt := ch.ReadContext(ctx)
		if pkt == nil {
			return
		}
		v := pkt.ToView()
		r.send(v.AsSlice(), vnetHeader{})
		v.Release()
		pkt.DecRef()
	}
}

// send puts a frame on the wire. The engine may be gone already.
func (r *rig) send(frame []byte, h vnetHeader) {
	var b []byte
	if r.vnet {
		var head [vnetHeaderSize]byte
		h.put(&head)
		b = head[:]
	}
	r.wire.Write(append(b, frame...))
}

// dial connects the guest to an address.
func (r *rig) dial(to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	addr, proto := fullAddress(to)
	return gonet.DialContextTCP(ctx, r.guest, addr, proto)
}

// dialUDP makes a connected UDP socket in the guest, or with local an
// unconnected one.
func (r *rig) dialUDP(to netip.AddrPort) *gonet.UDPConn {
	r.t.Helper()
	addr, proto := fullAddress(to)
	c, err := gonet.DialUDP(r.guest, nil, &addr, proto)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func fullAddress(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	proto := header.IPv4ProtocolNumber
	if a.Addr().Is6() {
		proto = header.IPv6ProtocolNumber
	}
	return tcpip.FullAddress{NIC: nicID, Addr: toAddress(a.Addr()), Port: a.Port()}, proto
}

// gateway is the gateway's address in the family of a, with a's port.
func (r *rig) gateway(a netip.AddrPort) netip.AddrPort {
	s := r.net.subnets[0]
	if a.Addr().Is6() {
		s = r.net.subnets[1]
	}
	return netip.AddrPortFrom(s.gateway, a.Port())
}

// resetGuest ends the guest's connections with resets.
func (r *rig) resetGuest() {
	for _, ep := range r.guest.RegisteredEndpoints() {
		ep.Abort()
	}
}

// isTrue asks the engine's first loop, which all of TCP belongs to.
func (r *rig) isTrue(f func() bool) (answer bool) {
	done := make(chan struct{})
	if r.e.loops[0].call(func() { answer = f(); close(done) }) {
		<-done
	}
	return answer
}

// relays are the connections of the engine, in any state.
func (r *rig) relays() (list []*relay) {
	r.e.tcp.mu.Lock()
	defer r.e.tcp.mu.Unlock()
	return slices.Collect(maps.Values(r.e.tcp.relays))
}

func must(t testing.TB, err tcpip.Error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// all opens the host's loopback.
var all = Options{HostLoopback: HostLoopback{All: true}}

// families are the host's loopback addresses that tests listen on.
var families = map[string]string{"IPv4": "127.0.0.1:0", "IPv6": "[::1]:0"}

// listen serves TCP on the host.
func listen(t testing.TB, addr string, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// listenUDP serves UDP on the host.
func listenUDP(t testing.TB, addr string, serve func(c *net.UDPConn, msg []byte, from netip.AddrPort)) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, maxFrame)
		for {
			n, from, err := c.(*net.UDPConn).ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			serve(c.(*net.UDPConn), buf[:n], from)
		}
	})
	t.Cleanup(func() {
		c.Close()
		running.Wait()
	})
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func echoTCP(c *net.TCPConn) { io.Copy(c, c) }

func echoUDP(c *net.UDPConn, msg []byte, from netip.AddrPort) { c.WriteToUDPAddrPort(msg, from) }
