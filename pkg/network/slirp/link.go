package slirp

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// gatewayMAC is the gateway's Ethernet address, locally administered.
var gatewayMAC = macAddr{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}

// gsoMaxSize is the largest TCP segment, with its IP header, that the stack
// gives us. With its Ethernet header it stays below 64 KiB, the most that an
// IPv4 header can say.
const gsoMaxSize = 65536 - 256

// copyBelow is the size up to which a frame is copied out of the 64 KiB buffer
// that it was read into, so that acknowledgements and small requests, which may
// wait in a queue for long, do not hold one each.
const copyBelow = 2 << 10

// link joins the device to gVisor's stack.
//
// Inbound, a loop reads frames. Those with a whole UDP datagram or echo request go
// straight to its relay, in the buffer they were read into. All others are wrapped
// in a packet buffer and given to the stack inline, without another goroutine or
// queue in between.
//
// Outbound, the stack calls WritePackets on whatever goroutine made it send. The
// pieces of a packet (headers, and views that its sender's data was read into)
// go to the kernel with one writev.
//
// Where the device has a virtio-net header, the stack is told of host GSO: TCP
// comes in segments of up to gsoMaxSize whose checksums the kernel need not
// finish, since they never leave the machine. Otherwise gVisor segments and sums
// up in software. gVisor's own fdbased endpoint does GSO for sockets only, not
// for a TAP.
type link struct {
	dev        *device
	mtu        uint32
	inspector  inspector
	onDatagram func(*datagram) bool // false when it is refused
	onEmpty    func()               // all frames that had come were passed on
	onEcho     func(*datagram)
	onSYN      func(tcpip.NetworkProtocolNumber, []byte) // with the packet, before the stack
	writer     *datagramWriter                           // of ICMP errors
	guests     *guests
	inbound    *inbound // where frames to the namespace's lo go
	acks       *heldACKs
	dispatcher stack.NetworkDispatcher

	// The loop's own: the memory for the next frame, what was found about the last,
	// and where a device that has failed is told of.
	view  *buffer.View
	found finding
	fail  func(error)

	// unverified says of the frame that is given to the stack that its transport
	// checksum is the stack's to verify.
	unverified atomic.Bool

	// refused counts the frames from the namespace that were dropped, accepted
	// those that were not.
	refused, accepted atomic.Uint64
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// fairFrames is how many frames are read before host sockets get their turn. The
// device is watched level-triggered.
const fairFrames = 64

// start has l read frames, and fail called when the device no longer works.
func (l *link) start(on *loop, fail func(error)) error {
	l.view, l.fail = buffer.NewViewSize(maxFrame), fail
	on.acks = l.acks
	return on.watch(l.dev.fd, unix.EPOLLIN, l)
}

// hostEvent implements watcher: it reads frames.
func (l *link) hostEvent(on *loop, _ uint32) {
	defer l.onEmpty()
	for range fairFrames {
		h, n, err := l.dev.read(l.view.AsSlice())
		switch {
		case err == nil:
			l.view = l.receive(l.view, h, n)
		case err == unix.EAGAIN:
			return
		default:
			on.unwatch(l.dev.fd)
			l.fail(fmt.Errorf("read from the TAP: %w", err))
			return
		}
	}
}

// abort implements watcher. The device is closed by who has opened it.
func (l *link) abort() { l.view.Release() }

// receive passes on the frame of n bytes that was read into a view of maxFrame,
// and returns the view for the next.
func (l *link) receive(view *buffer.View, h vnetHeader, n int) *buffer.View {
	frame := view.AsSlice()[:n]
	f := &l.found
	v := l.inspector.inspect(frame, h, f)
	defer l.count(v)
	switch v {
	case toUDP:
		if l.onDatagram(&f.datagram) {
			break
		}
		// The stack's answer is an ICMP error.
		l.deliver(buffer.MakeWithView(buffer.NewViewWithData(frame)), f.proto)
	case toEcho:
		l.onEcho(&f.datagram)
	case expire:
		packet := quotePacket(frame[ethernetSize:])
		l.writer.writeError(f.datagram.mac, expired(packet.isIPv6), &packet)
	case toDHCP:
		l.guests.ask(&f.datagram)
	case toRouter:
		l.guests.solicit(&f.datagram)
	case toStack:
		if f.opens {
			l.onSYN(f.proto, frame[ethernetSize:])
		}
		l.acks.came(n)
		if unverified := f.headers == 0 && !h.checksumTrusted(); unverified != l.unverified.Load() {
			l.unverified.Store(unverified)
		}
		if n <= copyBelow {
			l.deliver(buffer.MakeWithView(buffer.NewViewWithData(frame)), f.proto)
			break
		}
		view.CapLength(n)
		l.deliver(split(view, f.headers), f.proto)
		return buffer.NewViewSize(maxFrame)
	}
	return view
}

// count counts a frame that was dealt with.
func (l *link) count(v verdict) {
	if v == drop {
		l.refused.Add(1)
		return
	}
	l.accepted.Add(1)
}

// split puts the headers of a frame into a view of their own. The stack looks at
// a header while it holds another reference to its view, upon which the view is
// copied: that is to be a small one.
func split(v *buffer.View, headers int) buffer.Buffer {
	if headers == 0 {
		return buffer.MakeWithView(v)
	}
	b := buffer.MakeWithView(buffer.NewViewWithData(v.AsSlice()[:headers]))
	v.TrimFront(headers)
	data := buffer.MakeWithView(v)
	b.Merge(&data) // Append would fill up the first view
	return b
}

// deliver gives the stack a frame, which it owns.
func (l *link) deliver(frame buffer.Buffer, proto tcpip.NetworkProtocolNumber) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: frame})
	defer pkt.DecRef()
	if !l.ParseHeader(pkt) {
		return
	}
	pkt.PktType = tcpip.PacketHost
	if dst := header.Ethernet(pkt.LinkHeader().Slice()).DestinationAddress(); dst == header.EthernetBroadcastAddress {
		pkt.PktType = tcpip.PacketBroadcast
	} else if header.IsMulticastEthernetAddress(dst) {
		pkt.PktType = tcpip.PacketMulticast
	}
	l.dispatcher.DeliverNetworkPacket(proto, pkt)
}

// WritePackets implements stack.LinkWriter. A packet that the device does not
// take is lost; the sender's retransmission mends it.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	sent := 0
	for _, pkt := range pkts.AsSlice() {
		if err := l.acks.pass(pkt); err != nil {
			return sent, &tcpip.ErrNoBufferSpace{}
		}
		sent++
	}
	return sent, nil
}

// writePacket writes one packet with its header.
func (l *link) writePacket(pkt *stack.PacketBuffer) error {
	l.writer.putAsker(pkt)
	dev := l.dev
	if lo := l.inbound.loopback(pkt); lo != nil {
		dev = lo
	}
	f := dev.frame()
	dev.begin(f, offloadHeader(pkt))
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		if n := v.Size(); n <= skip {
			skip -= n
			continue
		}
		f.append(v.AsSlice()[skip:])
		skip = 0
	}
	return dev.send(f)
}

// offloadHeader says what the stack left undone on a packet.
func offloadHeader(pkt *stack.PacketBuffer) vnetHeader {
	gso := &pkt.GSOOptions
	if gso.Type != stack.GSOTCPv4 && gso.Type != stack.GSOTCPv6 {
		return vnetHeader{}
	}
	h := vnetHeader{headerLen: uint16(pkt.HeaderSize())}
	if gso.NeedsCsum {
		h.flags = vnetNeedsChecksum
		h.checksumStart = ethernetSize + gso.L3HdrLen
		h.checksumOffset = gso.CsumOffset
	}
	if pkt.Data().Size() > int(gso.MSS) {
		h.segmentSize = gso.MSS
		h.segmentType = vnetSegmentTCPv4
		if gso.Type == stack.GSOTCPv6 {
			h.segmentType = vnetSegmentTCPv6
		}
	}
	return h
}

// AddHeader implements stack.NetworkLinkEndpoint.
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(ethernetSize)).Encode(&header.EthernetFields{
		SrcAddr: pkt.EgressRoute.LocalLinkAddress,
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.NetworkLinkEndpoint.
func (l *link) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(ethernetSize)
	return ok
}

// Capabilities implements stack.NetworkLinkEndpoint. The inspector has verified the
// checksums of what comes in whole; the rest is put together by the stack, which asks
// here for each frame.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	if l.unverified.Load() {
		return stack.CapabilityResolutionRequired
	}
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}

// SupportedGSO implements stack.GSOEndpoint.
func (l *link) SupportedGSO() stack.SupportedGSO {
	if l.dev.vnet {
		return stack.HostGSOSupported
	}
	return stack.GVisorGSOSupported
}

// GSOMaxSize implements stack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return gsoMaxSize }

// MTU implements stack.NetworkLinkEndpoint: the largest IP packet, in bytes.
func (l *link) MTU() uint32 { return l.mtu }

// MaxHeaderLength implements stack.NetworkLinkEndpoint.
func (l *link) MaxHeaderLength() uint16 { return ethernetSize }

// LinkAddress implements stack.NetworkLinkEndpoint.
func (l *link) LinkAddress() tcpip.LinkAddress { return tcpip.LinkAddress(l.inspector.mac[:]) }

// ARPHardwareType implements stack.NetworkLinkEndpoint.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// Attach implements stack.NetworkLinkEndpoint. It is called when the NIC is made
// and, with nil, when it goes; run runs only in between.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		l.dispatcher = d
	}
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (l *link) IsAttached() bool { return l.dispatcher != nil }

// The MTU and the address do not change, and the device is closed by its owner,
// so nothing is to be done for these methods of stack.NetworkLinkEndpoint.

func (l *link) SetMTU(uint32)                    {}
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}
func (l *link) Wait()                            {}
func (l *link) Close()                           {}
func (l *link) SetOnCloseAction(func())          {}
