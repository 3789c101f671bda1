package port

import "net/netip"

// Gateway is what a network driver has on the other end of the namespace's
// interface. Its addresses are not the namespace's, so that no socket can listen on
// them; a port driver that is given one has reverse forwards there all the same.
type Gateway interface {
	// IsGateway says whether an address is one of the gateway's.
	IsGateway(addr netip.Addr) bool

	// Lead leads what the namespace sends to a port of the gateway's, by "tcp" or
	// "udp", to an address and port of the host, until the Lead is stopped. What may
	// be sent there is still for the egress policy to say. The error wraps
	// unix.EADDRINUSE where at leads somewhere already, and ErrInvalid where the
	// driver cannot lead to this address.
	Lead(transport string, at, to netip.AddrPort) (Lead, error)
}

// Lead is a port of the gateway's that leads to the host.
type Lead interface {
	// Stop ends it: its port is free, and its datagrams are no longer answered. Its
	// TCP connections go on; over is closed with the last, and nil where there are
	// none.
	Stop() (over <-chan struct{})

	// Cut is Stop, and resets the connections.
	Cut()
}
