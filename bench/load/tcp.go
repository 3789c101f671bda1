package load

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// TCPTrips sends one byte over one connection and waits for its echo, over and
// over, for the given time.
func TCPTrips(to netip.AddrPort, d time.Duration) (Trips, error) {
	conn, err := dialTCP(to)
	if err != nil {
		return Trips{}, err
	}
	defer conn.Close()
	times := make([]time.Duration, 0, 1<<18)
	start := time.Now()
	if err := conn.SetDeadline(start.Add(d + patience)); err != nil {
		return Trips{}, err
	}
	var b [1]byte
	for now := start; now.Sub(start) < d; {
		if err := exchange(conn, b[:]); err != nil {
			return Trips{}, fmt.Errorf("round trip %d: %w", len(times)+1, err)
		}
		then := now
		now = time.Now()
		times = append(times, now.Sub(then))
	}
	return Trips{
		Count:   len(times),
		Elapsed: time.Since(start),
		P50:     percentile(times, 0.50),
		P99:     percentile(times, 0.99),
	}, nil
}

// exchange sends b and waits for its echo.
func exchange(conn net.Conn, b []byte) error {
	if _, err := conn.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, b)
	return err
}

// Connections says how a loop of short connections went.
type Connections struct {
	// Count is how many connections were opened, used and closed, Failed how many
	// failed at any of that.
	Count, Failed int

	Elapsed time.Duration

	// Reason is an error of one that failed.
	Reason string
}

// Rate is connections per second.
func (c Connections) Rate() float64 { return rate(c.Count, c.Elapsed) }

// Connect opens a connection, sends a byte, waits for its echo and closes, over
// and over and in several goroutines, for the given time. The connections go to
// all of the addresses in turn.
func Connect(to []netip.AddrPort, workers int, d time.Duration) (Connections, error) {
	if len(to) == 0 {
		return Connections{}, errors.New("no address to connect to")
	}
	var (
		done, failed atomic.Int64
		reason       atomic.Pointer[error]
		running      sync.WaitGroup
	)
	start := time.Now()
	for w := range workers {
		running.Go(func() {
			for i := w; time.Since(start) < d; i++ {
				if err := once(to[i%len(to)]); err != nil {
					failed.Add(1)
					reason.Store(&err)
					continue
				}
				done.Add(1)
			}
		})
	}
	running.Wait()
	c := Connections{Count: int(done.Load()), Failed: int(failed.Load()), Elapsed: time.Since(start)}
	if err := reason.Load(); err != nil {
		c.Reason = (*err).Error()
	}
	return c, nil
}

// once opens, uses and closes a connection.
func once(to netip.AddrPort) error {
	conn, err := dialTCP(to)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	return exchange(conn, make([]byte, 1))
}

// TCPTripsAtOnce does round trips as TCPTrips does, over n connections at the same
// time. Opening them is not part of the time. Percentiles are not taken.
func TCPTripsAtOnce(to []netip.AddrPort, n int, d time.Duration) (Trips, error) {
	held, err := Hold("tcp", to, n, time.Minute)
	if err != nil {
		return Trips{}, err
	}
	defer held.Close()
	if held.Open < n {
		return Trips{}, fmt.Errorf("%d of %d connections opened: %s", held.Open, n, held.Reason)
	}
	var (
		count, lost atomic.Int64
		running     sync.WaitGroup
	)
	start := time.Now()
	for _, conn := range held.conns {
		running.Go(func() {
			var b [1]byte
			if conn.SetDeadline(start.Add(d+patience)) != nil {
				lost.Add(1)
				return
			}
			for time.Since(start) < d {
				if exchange(conn, b[:]) != nil {
					lost.Add(1)
					return
				}
				count.Add(1)
			}
		})
	}
	running.Wait()
	return Trips{Count: int(count.Load()), Lost: int(lost.Load()), Elapsed: time.Since(start)}, nil
}
