package slirp

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/gatekit/gatekit/pkg/network/slirp/tcp"
)

// tcpFragments is TCP as the stack knows it: where the ports are in a segment that it
// has put together from fragments, or found behind extension headers, and no more. What
// becomes of the segment is its handler's (engine.handleTCP).
type tcpFragments struct{}

func newTCPFragments(*stack.Stack) stack.TransportProtocol { return tcpFragments{} }

func (tcpFragments) Number() tcpip.TransportProtocolNumber { return header.TCPProtocolNumber }

func (tcpFragments) MinimumPacketSize() int { return tcp.HeaderSize }

func (tcpFragments) ParsePorts(b []byte) (src, dst uint16, err tcpip.Error) {
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), nil
}

func (tcpFragments) Parse(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.TransportHeader().Consume(tcp.HeaderSize)
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	return ok
}

// There are no endpoints, no options, and nothing that goes on.

func (tcpFragments) NewEndpoint(tcpip.NetworkProtocolNumber, *waiter.Queue) (tcpip.Endpoint, tcpip.Error) {
	return nil, &tcpip.ErrNotSupported{}
}

func (tcpFragments) NewRawEndpoint(tcpip.NetworkProtocolNumber, *waiter.Queue) (tcpip.Endpoint, tcpip.Error) {
	return nil, &tcpip.ErrNotSupported{}
}

func (tcpFragments) HandleUnknownDestinationPacket(stack.TransportEndpointID, *stack.PacketBuffer) stack.UnknownDestinationPacketDisposition {
	return stack.UnknownDestinationPacketHandled
}

func (tcpFragments) SetOption(tcpip.SettableTransportProtocolOption) tcpip.Error {
	return &tcpip.ErrUnknownProtocolOption{}
}

func (tcpFragments) Option(tcpip.GettableTransportProtocolOption) tcpip.Error {
	return &tcpip.ErrUnknownProtocolOption{}
}

func (tcpFragments) Close()   {}
func (tcpFragments) Wait()    {}
func (tcpFragments) Pause()   {}
func (tcpFragments) Resume()  {}
func (tcpFragments) Restore() {}
