// Package flows is what the drivers tell of the flows that they carry. A flow is a
// tracked UDP or TCP conversation, or an exchange of echo messages (ping).
//
// What belongs here is the shape of that; the flows themselves are their drivers'.
package flows

import (
	"net/netip"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
)

// Direction says who has begun a flow, and by which way it goes.
type Direction string

// The directions of a flow.
const (
	// Outbound: the namespace has begun it.
	Outbound Direction = "outbound"

	// Forward: a client outside has begun it, by a forward.
	Forward Direction = "forward"

	// Reverse: a client in the namespace has begun it, by a reverse forward.
	Reverse Direction = "reverse"
)

// State is how far a flow is.
type State string

// The states of a flow. UDP knows of no end: its flows are open until they are
// over.
const (
	// Connecting: the other side has not answered yet, or is not asked.
	Connecting State = "connecting"

	// Open: bytes and datagrams go both ways.
	Open State = "open"

	// HalfClosed: one side at least has said that it sends no more.
	HalfClosed State = "half-closed"
)

// Flow is a flow at one moment.
type Flow struct {
	Proto     string // "tcp", "udp" or "icmp"
	Direction Direction
	State     State

	// Child is the end in the namespace, Remote the other one, as the namespace
	// knows it. So a client is the Remote of a forward and the Child of a reverse
	// one. For "icmp" the port of Child is the identifier of the messages, and that
	// of Remote is 0.
	Child, Remote netip.AddrPort

	// Forward is the id of the forward that the flow came by. 0 is none, or that
	// the one who tells does not know.
	Forward int

	// Kept says, for a Forward, that the service sees the client's own address and
	// port.
	Kept bool

	// Since is when it began, and Used when there were bytes or a datagram last. The
	// zero values are unknown.
	Since, Used time.Time

	// In is how many bytes of payload have come into the namespace and Out how many
	// have left it, as the kernel has counted them on the socket of the host. They
	// mean nothing unless Counted.
	In, Out uint64
	Counted bool
}

// Count puts in what the kernel knows of the TCP connection fd, a socket of which the
// peer is outside. On an error the flow is as it was.
func (f *Flow) Count(fd int) error {
	s, err := linux.StreamOf(fd)
	if err != nil {
		return err
	}
	f.In, f.Out, f.Counted = s.Received, s.Sent, true
	f.Used = time.Now().Add(-s.Idle)
	f.State = Open
	if s.HalfClosed {
		f.State = HalfClosed
	}
	return nil
}
