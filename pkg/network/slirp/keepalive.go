package slirp

import (
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A program that sets TCP_KEEPIDLE wants an idle connection to be seen: by a NAT
// or a firewall that forgets it otherwise, and by itself when the peer is gone. Its
// kernel's probes end at the stack, which answers them. So the peer on the host's
// side is probed as often, by the host's kernel.
//
// How often is not said; it is seen. A probe is a segment from before what is
// expected (RFC 1122, 4.2.3.6), and the stack's answer an acknowledgement that says
// what the last segment has said. That is cheap to see where the stack's
// segments pass anyway (heldACKs), without a look at those of the namespace: each
// names its relay, as its owner. Other reasons to say the same again, a segment
// that came twice or a window that opens, come while data flows. So the relay asks
// the socket for how long none has.
//
// The kernel of the namespace counts from the last data, and from its last
// probe where that was answered; so does the host's. The pace is only ever raised,
// from what the host is set to: a program that changes its mind is no reason to
// lose the connection that another relies on.

// spoken is how far the stack's segments on a connection have come. heldACKs.mu
// guards it.
type spoken struct {
	begun bool   // there was one
	next  uint32 // the sequence number after all of them
	ack   uint32 // what the last has acknowledged; before the first 0 is not known
}

// says notes a segment with size bytes of data. It is true for one that is plain,
// an acknowledgement and nothing else, and says again what was said. Probes of the
// stack's own are from before next.
func (s *spoken) says(segment header.TCP, size int, plain bool) (again bool) {
	seq, ack := segment.SequenceNumber(), segment.AckNumber()
	end := seq + uint32(size)
	if segment.Flags()&header.TCPFlagFin != 0 {
		end++
	}
	if s.begun {
		again = plain && seq == s.next && ack == s.ack
	} else {
		again = plain && (ack == s.ack || s.ack == 0)
	}
	if !s.begun || int32(end-s.next) > 0 {
		s.next = end
	}
	s.begun, s.ack = true, ack
	return again
}

// speaker is the relay of the connection that a packet of the stack belongs to, or
// nil.
func speaker(pkt *stack.PacketBuffer) *relay {
	r, _ := pkt.Owner.(*relay)
	return r
}

// own has the stack name the relay on all that it sends on the connection.
func (r *relay) own() {
	ep := r.ep.(*tcp.Endpoint)
	ep.LockUser() // which SetOwner leaves to its caller
	if ep.Readiness(waiter.ReadableEvents) != 0 {
		r.spoken.ack = 0 // for what has come it may have spoken
	}
	ep.SetOwner(r)
	ep.UnlockUser()
}

// KUID and KGID implement tcpip.PacketOwner, for filters that the stack does not
// have here.

func (r *relay) KUID() uint32 { return 0 }
func (r *relay) KGID() uint32 { return 0 }

// carryProbe has the peer on the host's side probed as the namespace probes, which
// it may just have done.
func (r *relay) carryProbe() {
	if r.hostBlocked {
		return // the namespace asks for room
	}
	info, err := unix.GetsockoptTCPInfo(r.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return
	}
	silence := time.Duration(min(info.Last_data_sent, info.Last_data_recv)) * time.Millisecond
	// The two kernels do not see the same data at the same moment.
	if silence.Round(time.Second) == 0 {
		return
	}
	now := time.Now()
	pace := min(silence, now.Sub(r.probed))
	r.probed = now
	r.probeHost(pace.Round(time.Second))
}

// probeHost has the peer on the host's side probed after a silence, where it is not
// sooner already.
func (r *relay) probeHost(silence time.Duration) {
	seconds := max(1, int(silence/time.Second))
	// Linux counts from a probe by the interval, also when it was answered. That is
	// first, because the other begins to count.
	for _, option := range []int{unix.TCP_KEEPINTVL, unix.TCP_KEEPIDLE} {
		if current, err := unix.GetsockoptInt(r.fd, unix.IPPROTO_TCP, option); err == nil && current > seconds {
			_ = unix.SetsockoptInt(r.fd, unix.IPPROTO_TCP, option, seconds) // the value is in range
		}
	}
}
