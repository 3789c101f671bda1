package slirp

import (
	"time"

	"golang.org/x/sys/unix"
)

// A program that sets TCP_KEEPIDLE wants an idle connection to be seen: by a NAT
// or a firewall that forgets it otherwise, and by itself when the peer is gone. Its
// kernel's probes end here, with an answer. So the peer on the host's side is probed as
// often, by the host's kernel.
//
// How often is not said; it is seen (tcp.Probed). Another segment that looks like a
// probe, one that came twice, comes while data flows. So the relay asks the socket for
// how long none has.
//
// The kernel of the namespace counts from the last data, and from its last
// probe where that was answered; so does the host's. The pace is only ever raised,
// from what the host is set to: a program that changes its mind is no reason to
// lose the connection that another relies on.

// carryProbe has the peer on the host's side probed as the namespace probes, which
// it has just done.
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
	pace := silence
	if r.probed != 0 {
		pace = min(silence, r.tcp.now-r.probed)
	}
	r.probed = r.tcp.now
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
