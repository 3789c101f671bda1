package slirp

import (
	"runtime"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// A program may use a port again, towards the same destination, at the moment when
// the connection that had it has ended: after a reset, for one, or after its own
// end where the other side was first. The stack takes the segments of a connection
// on a goroutine of its own, so the SYN is here while the end of the one before is
// not seen to yet. It would be queued behind that, and be refused or dropped then,
// for gVisor looks for a listener, and not for its forwarder. So a SYN waits for the
// end of what was before it.

// reuseGrace bounds the wait. It is over sooner but for connections that go on, of
// which only the guest has forgotten: there the stack is to challenge the SYN (RFC
// 5961, 4).
const reuseGrace = time.Millisecond

// awaitEnd waits, for a SYN in an IP packet, for the end of the connection or dial
// that has its addresses and ports.
func (t *tcpForwarder) awaitEnd(proto tcpip.NetworkProtocolNumber, packet []byte) {
	var id stack.TransportEndpointID
	var segment header.TCP
	if proto == header.IPv4ProtocolNumber {
		ip := header.IPv4(packet)
		id.LocalAddress, id.RemoteAddress, segment = ip.DestinationAddress(), ip.SourceAddress(), header.TCP(ip.Payload())
	} else {
		ip := header.IPv6(packet)
		id.LocalAddress, id.RemoteAddress, segment = ip.DestinationAddress(), ip.SourceAddress(), header.TCP(ip.Payload())
	}
	id.LocalPort, id.RemotePort = segment.DestinationPort(), segment.SourcePort()
	if !t.ending(proto, id) {
		return
	}
	for over := time.Now().Add(reuseGrace); time.Now().Before(over) && t.ending(proto, id); {
		runtime.Gosched()
	}
}

// ending says whether there is a connection, or a dial that has been answered or
// given up. Another dial is what a repeated SYN is for.
func (t *tcpForwarder) ending(proto tcpip.NetworkProtocolNumber, id stack.TransportEndpointID) bool {
	t.mu.Lock()
	d := t.dials[id]
	over := d != nil && (d.answered || d.ctx.Err() != nil)
	t.mu.Unlock()
	return over || t.stack.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, nicID) != nil
}

// answers notes that the namespace is about to have the answer to its SYN.
func (t *tcpForwarder) answers(d *dial) {
	t.mu.Lock()
	d.answered = true
	t.mu.Unlock()
}
