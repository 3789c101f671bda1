package slirp

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// heldACKs delays acknowledgements that carry nothing else (RFC 1122, 4.2.3.2;
// gVisor sends one for whatever has come). An answer that soon follows has the
// acknowledgement with it, and the namespace is spared a frame: of a question and
// its answer, one of three.
//
// There is no timer. An acknowledgement waits while the loop that reads the TAP
// is at work or spins, for maxHeldRounds at most, and goes before the loop sleeps.
// Those that a sender may be waiting for are not held: of segments larger than
// smallFrame, and those that say more than how far the stream has come.
//
// As all segments of the stack pass here, it is here as well that the answers to the
// namespace's keepalive probes are seen (keepalive.go).
type heldACKs struct {
	write func(*stack.PacketBuffer) error
	due   []*stack.PacketBuffer // flush's own

	mu      sync.Mutex // guards all below
	asleep  bool       // nothing is held
	large   bool       // a large segment has come in this round
	rounds  int
	packets map[connection]*stack.PacketBuffer
}

// connection is a TCP connection as the stack sees it.
type connection struct {
	local, remote         tcpip.Address
	localPort, remotePort uint16
}

const (
	// smallFrame is the size up to which a frame's segment is taken for a part of a
	// conversation, and not of a stream.
	smallFrame = 600

	// maxHeldRounds is how many rounds of the loop an acknowledgement waits.
	maxHeldRounds = 8

	// plainACK is the largest TCP header of an acknowledgement that says nothing
	// else: with a timestamp, but without SACK blocks.
	plainACK = header.TCPMinimumSize + 12
)

func newHeldACKs(write func(*stack.PacketBuffer) error) *heldACKs {
	return &heldACKs{write: write, packets: make(map[connection]*stack.PacketBuffer)}
}

// came is told of the size of each frame for the stack.
func (h *heldACKs) came(size int) {
	if size <= smallFrame {
		return
	}
	h.mu.Lock()
	h.large = true
	h.mu.Unlock()
}

// pass gives a packet of the stack to write, now or later.
func (h *heldACKs) pass(pkt *stack.PacketBuffer) error {
	before, hold, again := h.judge(pkt)
	if again {
		speaker(pkt).NotifyEvent(probeEvent)
	}
	if before != nil {
		_ = h.write(before) // what is lost is counted there
		before.DecRef()
	}
	if hold {
		return nil
	}
	return h.write(pkt)
}

// judge says whether a packet is held, which one of the same connection goes
// before it, and whether it says again, for a relay, what that has said (spoken).
func (h *heldACKs) judge(pkt *stack.PacketBuffer) (before *stack.PacketBuffer, hold, again bool) {
	tcp := header.TCP(pkt.TransportHeader().Slice())
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber || len(tcp) < header.TCPMinimumSize {
		return nil, false, false
	}
	c := connection{pkt.EgressRoute.LocalAddress, pkt.EgressRoute.RemoteAddress, tcp.SourcePort(), tcp.DestinationPort()}
	flags := tcp.Flags()
	size := pkt.Data().Size()
	plain := flags == header.TCPFlagAck && len(tcp) <= plainACK && size == 0
	r := speaker(pkt)
	h.mu.Lock()
	defer h.mu.Unlock()
	if r != nil {
		again = r.spoken.says(tcp, size, plain)
	}
	if held := h.packets[c]; held != nil {
		delete(h.packets, c)
		// The same again may be a second that counts (RFC 5681, 2), or tell of room.
		if flags&header.TCPFlagAck == 0 || plain && acknowledged(held) == tcp.AckNumber() {
			before = held
		} else {
			held.DecRef()
		}
	}
	hold = plain && !h.asleep && !h.large
	if hold {
		h.packets[c] = pkt.IncRef()
	}
	return before, hold, again
}

// acknowledged is how far a packet acknowledges.
func acknowledged(pkt *stack.PacketBuffer) uint32 {
	return header.TCP(pkt.TransportHeader().Slice()).AckNumber()
}

// round is called once in a round of the loop, when the stack has had its frames.
func (h *heldACKs) round() {
	h.mu.Lock()
	h.large = false
	h.rounds++
	due := h.rounds >= maxHeldRounds
	h.mu.Unlock()
	if due {
		h.flush(false)
	}
}

// sleep is called before the loop sleeps: from here on nothing is held.
func (h *heldACKs) sleep() { h.flush(true) }

// awake is called when it no longer sleeps.
func (h *heldACKs) awake() {
	h.mu.Lock()
	h.asleep = false
	h.mu.Unlock()
}

// flush sends all that is held.
func (h *heldACKs) flush(asleep bool) {
	h.mu.Lock()
	h.asleep, h.rounds = asleep, 0
	for c, pkt := range h.packets {
		h.due = append(h.due, pkt)
		delete(h.packets, c)
	}
	h.mu.Unlock()
	for i, pkt := range h.due {
		_ = h.write(pkt)
		pkt.DecRef()
		h.due[i] = nil
	}
	h.due = h.due[:0]
}
