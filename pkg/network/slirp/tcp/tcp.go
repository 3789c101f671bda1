// Package tcp is TCP (RFC 9293) as the engine speaks it to the namespace: the end of a
// connection whose other end is a kernel on the same machine, one hop away, and whose
// bytes come from, and go to, a socket of the host.
//
// A Conn is a machine of states and nothing else. It has no goroutine, takes no lock,
// reads no clock and knows no address: who owns it gives it segments (Input) and the
// time (Tick), takes from it what has come (Peek, Discard), gives it what is to go
// (Send), and writes what it has to say to the wire (Wire). So it can be put to every
// order of events by a test, and costs, on its way from one descriptor to the other,
// two calls.
//
//	      Accept                              Open
//	        |                                   |
//	        v              SYN                  v
//	  +-- SynReceived <------------------- SynSent --+
//	  |     |  ACK                   SYN, ACK  |     |
//	  |     v                                  |     |
//	  |  Established <-------------------------+     |  RST, Abort,
//	  |     |  Both halves, each by itself:          |  no answer
//	  |     |    ours: CloseWrite, FIN sent -> ACK   |
//	  |     |    the peer's: FIN in order            |
//	  v     v                                        v
//	Closed: Over when both have ended, Reset, TimedOut
//
// It differs from a TCP for all the world where the place allows:
//
//   - A segment may carry 64 KiB, whatever the MTU: a virtio-net header has the kernel
//     cut it (Wire is told the size of the pieces).
//   - The network between the ends has no queue to be fair to, so the first flight is
//     as large as any (initialFlight). What is lost all the same, in a queue inside the
//     namespace, halves it (RFC 5681).
//   - Timestamps (RFC 7323) are there for the peer, which measures by them, and uses a
//     port again sooner that is in TIME-WAIT. What they protect from is not on this way:
//     nothing that was sent long ago is still to come.
//   - Nothing overtakes anything, so that what the peer has not got behind what it has
//     is lost (loss.go): SACK (RFC 2018) is told and listened to.
//   - There is no TIME-WAIT. A connection whose both ends are acknowledged is
//     forgotten; should the last ACK be lost, the peer's FIN is answered by a reset,
//     which means no more to a socket that has closed both halves.
//
// Nothing is acknowledged that the window had no room for, and the window has no more
// room than Options.Window less what waits to be taken: a host that does not read stops
// the peer.
package tcp

import "time"

// Limits and times, Linux's where nothing else is said.
const (
	// initialFlight is how much is sent before the first acknowledgement, and maxFlight
	// how much ever waits for one, in bytes: more of it only makes the queue longer, on
	// a way that takes microseconds.
	initialFlight = 256 << 10
	maxFlight     = 1 << 20

	// MaxPayload is the most bytes of one segment. With all headers it stays below 64
	// KiB, the most that an IPv4 packet has.
	MaxPayload = 65535 - 256

	initialRTO = time.Second            // RFC 6298, 2.1
	minRTO     = 200 * time.Millisecond // TCP_RTO_MIN, beside what an answer usually takes, as a peer may keep one so long
	maxRTO     = 2 * time.Minute        // TCP_RTO_MAX

	maxSYNs        = 6  // tcp_syn_retries, as tcp_synack_retries has it, and one
	maxRetransmits = 15 // tcp_retries2
	maxOrphans     = 8  // tcp_orphan_retries, when the host's side is gone

	// tailGrace is how much later than usual an answer may come before the last segment is
	// sent again: as a machine that is busy lets it wait.
	tailGrace = 10 * time.Millisecond

	// delayedACK is for how long an answer waits for company on a way as short as this
	// (TCP_DELACK_MIN).
	delayedACK = 40 * time.Millisecond

	challengeInterval = 500 * time.Millisecond // tcp_invalid_ratelimit

	// defaultMSS is a peer's that names none (RFC 9293, 3.7.1), by the family.
	defaultMSSIPv4 = 536
	defaultMSSIPv6 = 1220

	// minMSS is the least that is believed of a peer (tcp_min_snd_mss).
	minMSS = 48
)

// Wire takes the segments of a connection.
type Wire interface {
	// Transmit sends a segment. Where the payload has more than h.MSS bytes it is to be
	// cut into pieces of that many. The payload is not kept. What is lost is mended.
	Transmit(h *Header, payload []byte)
}

// Options are how a connection is to be.
type Options struct {
	// Wire takes what is sent. It is needed.
	Wire Wire

	// Pool is where memory for bytes that wait comes from. It is needed.
	Pool *Pool

	// MSS is the most bytes that a segment of the peer may have: those of the MTU less
	// the headers of IP and TCP.
	MSS uint16

	// IPv6 says of which family the connection is.
	IPv6 bool

	// Window is how many bytes may wait to be taken.
	Window int

	// KeepAlive says when a peer that says nothing is probed, and given up. The zero value
	// is never.
	KeepAlive KeepAlive
}

// KeepAlive is when a silent peer is probed and given up (RFC 9293, 3.8.4).
type KeepAlive struct {
	Idle     time.Duration // before the first probe
	Interval time.Duration // between probes
	Count    int           // of probes without an answer before the connection is given up
}

// Events are what came of a call. Each is told once.
type Events uint8

const (
	// Opened: the handshake is complete.
	Opened Events = 1 << iota
	// Arrived: there is something to be taken, or the peer has ended its half.
	Arrived
	// Room: there is room to send, where there was none before.
	Room
	// Acknowledged: the peer has all that was sent, the end of our half included.
	Acknowledged
	// Probed: the peer asks whether we are still there (RFC 9293, 3.8.4).
	Probed
	// Over: both halves have ended, and the peer knows. The connection is closed.
	Over
	// Reset: by the peer. The connection is closed.
	Reset
	// TimedOut: the peer no longer answers. The connection is closed.
	TimedOut
)

// Gone are the events after which the connection is no more.
const Gone = Over | Reset | TimedOut

// state is one of the picture above.
type state uint8

const (
	closed state = iota
	synSent
	synReceived
	established
)
