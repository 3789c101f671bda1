package slirp

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// nicID is the one interface of the stack.
const nicID tcpip.NICID = 1

// The buffers of a TCP endpoint, in bytes. They are limits, not memory that is
// held: an idle connection has empty ones. Below 1 MiB a stream that the guest
// sends in segments of 64 KiB stalls on the window; above 8 MiB a slow reader on
// the other side only makes the queue longer.
const (
	minTCPBuffer     = 4 << 10
	defaultTCPBuffer = 1 << 20
	maxTCPBuffer     = 8 << 20
)

// newStack makes the stack with its interface on l, which speaks for the gateway
// and for all of the outside. A nil clock is the machine's.
func newStack(l *link, subnets [2]subnet, clock tcpip.Clock) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		Clock: clock,
		NetworkProtocols: []stack.NetworkProtocolFactory{
			// The loopback as a destination on the link is dropped by default. Here
			// it is to be refused like all that the egress does not let out.
			ipv4.NewProtocolWithOptions(ipv4.Options{AllowExternalLoopbackTraffic: true}),
			ipv6.NewProtocolWithOptions(ipv6.Options{AllowExternalLoopbackTraffic: true}),
			arp.NewProtocol,
		},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		// The stack has no applications of its own that talk to each other.
		HandleLocal: false,
	})
	if err := configureStack(s, l, subnets); err != nil {
		s.Destroy()
		return nil, err
	}
	return s, nil
}

// configureStack turns the knobs and makes the interface.
func configureStack(s *stack.Stack, l *link, subnets [2]subnet) error {
	if err := configureTCP(s); err != nil {
		return err
	}
	if err := s.CreateNIC(nicID, l); err != nil {
		return stackError("create the interface", err)
	}
	// Promiscuous: take packets for every address, so that the outside can be
	// spoken for. Spoofing: answer them from that address.
	if err := s.SetPromiscuousMode(nicID, true); err != nil {
		return stackError("set promiscuous mode", err)
	}
	if err := s.SetSpoofing(nicID, true); err != nil {
		return stackError("allow foreign source addresses", err)
	}
	for _, n := range subnets {
		if !n.enabled() {
			continue
		}
		for _, a := range []tcpip.Address{toAddress(n.gateway), toAddress(n.dns)} {
			if err := addAddress(s, a, n.prefix.Bits()); err != nil {
				return err
			}
		}
	}
	// Everything in the namespace, also behind a bridge of its own, is on this
	// link.
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	return nil
}

// addAddress gives the interface an address.
func addAddress(s *stack.Stack, a tcpip.Address, bits int) error {
	proto := header.IPv4ProtocolNumber
	if a.Len() == header.IPv6AddressSize {
		proto = header.IPv6ProtocolNumber
	}
	err := s.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
		Protocol:          proto,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: a, PrefixLen: bits},
	}, stack.AddressProperties{})
	if err != nil {
		return stackError(fmt.Sprintf("add address %v", a), err)
	}
	return nil
}

// configureTCP turns the knobs of TCP.
func configureTCP(s *stack.Stack) error {
	// SACK is off by default; without it one lost frame costs a window.
	sack := tcpip.TCPSACKEnabled(true)
	// RACK arms a timer for every flight, which costs more than it mends on a
	// link that hardly ever loses and never reorders (gVisor's Linux default is
	// to have it on).
	recovery := tcpip.TCPRecovery(0)
	// Let the receive buffer grow with what the host's side drains.
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// A minute, the default, would hold the memory of tens of thousands of
	// connections that the host closed first, and for as long would the namespace
	// wait that uses a port again: a SYN for an endpoint in TIME_WAIT is dropped.
	// No old segment is on its way on a TAP. A FIN of the namespace that is sent
	// again, because our last ACK was lost, is answered by a reset, which means no
	// more to a socket that has closed both halves.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(time.Nanosecond)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: minTCPBuffer, Default: defaultTCPBuffer, Max: maxTCPBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: minTCPBuffer, Default: defaultTCPBuffer, Max: maxTCPBuffer}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &recovery, &moderate, &timeWait, &receive, &send} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return stackError(fmt.Sprintf("set %T", o), err)
		}
	}
	return nil
}

// stackError turns gVisor's error into one of Go's.
func stackError(op string, err tcpip.Error) error {
	return fmt.Errorf("network stack: %s: %w", op, errors.New(err.String()))
}

// stackLog takes what gVisor logs, which would go to stderr otherwise. gVisor has
// one target for the process; all engines of it say the same.
type stackLog struct{ to *slog.Logger }

// Emit implements log.Emitter.
func (s stackLog) Emit(_ int, _ log.Level, _ time.Time, format string, v ...any) {
	s.to.Debug(fmt.Sprintf(format, v...), "part", "network stack")
}
