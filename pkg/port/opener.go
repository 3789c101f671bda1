package port

import (
	"context"
	"net/netip"
)

// Opener opens flows to services in the namespace in the names of clients, so
// that a service sees its client's own address and port. A network driver that
// speaks for all of the outside can do that; a port driver that is given one
// uses it for the clients that are not the host itself.
type Opener interface {
	// Keeps says whether flows from this client to this service can be opened, and
	// what the service answers comes back. It is asked before each of the others, and
	// does not wait.
	Keeps(client, service netip.Addr) bool

	// Reaches says whether flows to this service can be opened from clients of its
	// family, those aside who are in an unusual place. It is asked when a forward is
	// added, before any of the others about its service, and may open what is needed
	// for it.
	Reaches(service netip.Addr) bool

	// Connect connects to a service as client and then joins fd, a connected
	// non-blocking TCP socket: bytes, the ends of both streams and resets are
	// carried across. fd is the opener's from then on. over is called once, when
	// both ends are closed, and may be called before Connect returns; cut resets
	// both ends, unless they are closed.
	//
	// On an error fd is still the caller's, and over is not called. The error wraps
	// unix.ECONNREFUSED when the service refuses, and unix.ETIMEDOUT when nothing
	// has answered by ctx's deadline.
	Connect(ctx context.Context, client, service netip.AddrPort, fd int, over func()) (cut func(), err error)

	// OpenDatagrams opens a UDP flow from client to service. receive is called with
	// each datagram that the service sends, and refused with one that has found no
	// service, or nil where it is not known in whole. They must not wait, nor keep the
	// payload; they are called by other goroutines, and may be once more after Close.
	OpenDatagrams(client, service netip.AddrPort, receive, refused func(payload []byte)) (Datagrams, error)
}

// Datagrams is a UDP flow to a service in the name of a client.
type Datagrams interface {
	// Send sends a datagram to the service. It does not wait, and what is lost is
	// lost. It does nothing after Close, and when the network has ended.
	Send(payload []byte)

	// Try sends as Send does, and tells what has become of the datagram by the time
	// that it returns. It takes the processor some 50 µs, so that it is not for every
	// datagram. One call at a time is answered; others have FateUnknown.
	Try(payload []byte) Fate

	// Close ends the flow.
	Close()
}

// Fate is what has become of a datagram on its way to a service, which itself says
// nothing of it. The zero value is FateUnknown.
type Fate int

const (
	// FateUnknown is that of a datagram which cannot be told from others that came and
	// went at the same time, or where the namespace tells nothing.
	FateUnknown Fate = iota

	// FatePassed is that of one which was delivered, or sent on to somebody else. What
	// lies behind that, such as a container, is not known.
	FatePassed

	// FateDropped is that of one which the namespace has received, and neither
	// delivered nor sent on, nor answered with an error: a firewall has dropped it. It
	// may be wrong for a single datagram.
	FateDropped
)
