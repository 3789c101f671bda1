// Package load makes network load and measures what comes of it. It is both ends
// of every measurement but the bulk streams, which iperf3 makes: a Server echoes
// or counts, and the functions of this package are its clients.
//
// All of it uses Go's ordinary sockets, one goroutine for one conversation, as the
// programs do that live behind a gate. What a client costs is therefore in each
// figure; the same client and server on the host's loopback give the limit that
// figures are to be compared with. Nothing here knows of gates or namespaces.
//
// Every client ends by itself: conversations have deadlines a little behind the
// end of the measurement, so that a gate which loses a byte cannot hang it.
package load

import (
	"net"
	"net/netip"
	"slices"
	"time"
)

// patience is how long an answer may take before it counts as lost: long enough
// for a SYN or a segment that was lost to be sent again, twice.
const patience = 5 * time.Second

// Trips says how a loop of round trips went.
type Trips struct {
	// Count is how many questions were answered, Lost how many were not.
	Count, Lost int

	// Elapsed is how long the loop took.
	Elapsed time.Duration

	// P50 and P99 are percentiles of the time that an answer took.
	P50, P99 time.Duration
}

// Rate is answered questions per second; 0 for a loop that took no time.
func (t Trips) Rate() float64 { return rate(t.Count, t.Elapsed) }

func rate(count int, elapsed time.Duration) float64 {
	if elapsed <= 0 {
		return 0
	}
	return float64(count) / elapsed.Seconds()
}

// percentile is the smallest of the times that a share p, 0 to 1, of all does not
// exceed; 0 without any. It sorts times.
func percentile(times []time.Duration, p float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	i := int(p*float64(len(times))+0.5) - 1
	return times[min(max(i, 0), len(times)-1)]
}

// dialTCP connects with a time limit. Nagle's algorithm is off, as everywhere in
// Go.
func dialTCP(to netip.AddrPort) (*net.TCPConn, error) {
	conn, err := net.DialTimeout("tcp", to.String(), patience)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
