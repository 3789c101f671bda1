package slirp

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/gatekit/gatekit/pkg/network/slirp/tcp"
)

// gatewayMAC is the gateway's Ethernet address, locally administered.
var gatewayMAC = macAddr{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}

// link reads frames, and joins the device to gVisor's stack.
//
// Inbound, a loop reads frames. Those with a TCP segment, a whole UDP datagram or an echo
// request go straight to its relay, in the buffer they were read into. All others are
// copied into a packet buffer and given to the stack inline: questions for neighbours,
// what is said to the gateway itself, and fragments, which it puts together.
//
// Outbound, the stack calls WritePackets on whatever goroutine made it send. Where the
// device has a virtio-net header, so do the relays' segments of up to 64 KiB
// (segment.go); the stack itself sends nothing that is large.
type link struct {
	dev        *device
	mtu        uint32
	inspector  inspector
	onDatagram func(*datagram) bool // false when it is refused
	onEmpty    func()               // all frames that had come were passed on
	onEcho     func(*datagram)
	tcp        *tcpForwarder
	writer     *datagramWriter // of ICMP errors
	guests     *guests
	dispatcher stack.NetworkDispatcher

	// The loop's own: the memory for the next frame, what was found about the last,
	// and where a device that has failed is told of.
	frame *tcp.Buffer
	found finding
	fail  func(error)

	// A timer of the stack may be at work when the stack has ended, and would write to a
	// device that is closed.
	writing sync.RWMutex // guards ended, and is held while the stack writes
	ended   bool

	// unverified says of the frame that is given to the stack that its transport
	// checksum is the stack's to verify.
	unverified atomic.Bool

	// refused counts the frames from the namespace that were dropped, accepted
	// those that were not.
	refused, accepted atomic.Uint64
}

var _ stack.LinkEndpoint = (*link)(nil)

// fairFrames is how many frames are read before host sockets get their turn. The
// device is watched level-triggered.
const fairFrames = 64

// start has l read frames, and fail called when the device no longer works.
func (l *link) start(on *loop, fail func(error)) error {
	l.frame, l.fail = l.tcp.pool.Get(maxFrame), fail
	on.tcp = l.tcp
	return on.watch(l.dev.fd, unix.EPOLLIN, l)
}

// hostEvent implements watcher: it reads frames.
func (l *link) hostEvent(on *loop, _ uint32) {
	defer l.onEmpty()
	for range fairFrames {
		h, n, err := l.dev.read(l.frame.Bytes())
		switch {
		case err == nil:
			l.receive(h, n)
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
func (l *link) abort() {}

// receive passes on the frame of n bytes that was read.
func (l *link) receive(h vnetHeader, n int) {
	frame := l.frame.Bytes()[:n]
	f := &l.found
	v := l.inspector.inspect(frame, h, f)
	defer l.count(v)
	switch v {
	case toTCP:
		if l.tcp.input(&f.datagram, l.frame) {
			l.frame = l.tcp.pool.Get(maxFrame)
		}
	case toUDP:
		if l.onDatagram(&f.datagram) {
			break
		}
		// The stack's answer is an ICMP error.
		l.deliver(frame, f.proto)
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
		if unverified := !h.checksumTrusted(); unverified != l.unverified.Load() {
			l.unverified.Store(unverified)
		}
		l.deliver(frame, f.proto)
	}
}

// count counts a frame that was dealt with.
func (l *link) count(v verdict) {
	if v == drop {
		l.refused.Add(1)
		return
	}
	l.accepted.Add(1)
}

// deliver gives the stack a copy of a frame.
func (l *link) deliver(frame []byte, proto tcpip.NetworkProtocolNumber) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(buffer.NewViewWithData(frame))})
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
	l.writing.RLock()
	defer l.writing.RUnlock()
	if l.ended {
		return 0, &tcpip.ErrClosedForSend{}
	}
	sent := 0
	for _, pkt := range pkts.AsSlice() {
		if err := l.writePacket(pkt); err != nil {
			return sent, &tcpip.ErrNoBufferSpace{}
		}
		sent++
	}
	return sent, nil
}

// writePacket writes one packet with its header.
func (l *link) writePacket(pkt *stack.PacketBuffer) error {
	l.writer.putAsker(pkt)
	f := l.dev.frame()
	l.dev.begin(f, vnetHeader{})
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		if n := v.Size(); n <= skip {
			skip -= n
			continue
		}
		f.append(v.AsSlice()[skip:])
		skip = 0
	}
	return l.dev.send(f)
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

// MTU implements stack.NetworkLinkEndpoint: the largest IP packet, in bytes.
func (l *link) MTU() uint32 { return l.mtu }

// MaxHeaderLength implements stack.NetworkLinkEndpoint.
func (l *link) MaxHeaderLength() uint16 { return ethernetSize }

// LinkAddress implements stack.NetworkLinkEndpoint.
func (l *link) LinkAddress() tcpip.LinkAddress { return tcpip.LinkAddress(l.inspector.mac[:]) }

// ARPHardwareType implements stack.NetworkLinkEndpoint.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// Attach implements stack.NetworkLinkEndpoint. It is called when the NIC is made
// and, with nil, when it goes; frames are read only in between.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		l.dispatcher = d
		return
	}
	l.writing.Lock()
	l.ended = true
	l.writing.Unlock()
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
