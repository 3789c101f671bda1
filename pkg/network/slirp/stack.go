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
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// nicID is the one interface of the stack.
const nicID tcpip.NICID = 1

// newStack makes the stack with its interface on l, which speaks for the gateway
// and for all of the outside.
func newStack(l *link, subnets [2]subnet) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			// The loopback as a destination on the link is dropped by default. Here
			// it is to be refused like all that the egress does not let out.
			ipv4.NewProtocolWithOptions(ipv4.Options{AllowExternalLoopbackTraffic: true}),
			ipv6.NewProtocolWithOptions(ipv6.Options{AllowExternalLoopbackTraffic: true}),
			arp.NewProtocol,
		},
		TransportProtocols: []stack.TransportProtocolFactory{newTCPFragments, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
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
