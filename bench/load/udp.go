package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// datagramPatience is how long the answer to a datagram may take: nobody sends a
// lost one again.
const datagramPatience = time.Second

func dialUDP(to netip.AddrPort) (*net.UDPConn, error) {
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
}

// UDPTrips sends a datagram of eight bytes and waits for its echo, over and over,
// for the given time. An answer that takes too long is lost; one that comes later
// is known by its number and ignored.
func UDPTrips(to netip.AddrPort, d time.Duration) (Trips, error) {
	conn, err := dialUDP(to)
	if err != nil {
		return Trips{}, err
	}
	defer conn.Close()
	times := make([]time.Duration, 0, 1<<18)
	lost := 0
	start := time.Now()
	for now := start; now.Sub(start) < d; {
		answered, err := ask(conn, uint64(len(times)+lost+1), now)
		if err != nil {
			return Trips{}, err
		}
		then := now
		now = time.Now()
		if answered {
			times = append(times, now.Sub(then))
		} else {
			lost++
		}
	}
	return Trips{
		Count:   len(times),
		Lost:    lost,
		Elapsed: time.Since(start),
		P50:     percentile(times, 0.50),
		P99:     percentile(times, 0.99),
	}, nil
}

// ask sends a numbered datagram and reports whether its echo came in time.
func ask(conn *net.UDPConn, number uint64, now time.Time) (answered bool, err error) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], number)
	if _, err := conn.Write(b[:]); err != nil {
		return false, fmt.Errorf("datagram %d: %w", number, err)
	}
	if err := conn.SetReadDeadline(now.Add(datagramPatience)); err != nil {
		return false, err
	}
	for {
		n, err := conn.Read(b[:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("answer to datagram %d: %w", number, err)
		}
		if n == len(b) && binary.BigEndian.Uint64(b[:]) == number {
			return true, nil
		}
	}
}

// Flooded says what a flood sent.
type Flooded struct {
	// Sent is how many datagrams the kernel took, Refused how many it did not.
	Sent, Refused int

	Elapsed time.Duration
}

// Rate is datagrams sent per second.
func (f Flooded) Rate() float64 { return rate(f.Sent, f.Elapsed) }

// Flood sends datagrams of the given size as fast as the kernel takes them, for the
// given time: one with each call or, where burst is more than 1, so many, as QUIC's
// senders do (UDP_SEGMENT in udp(7)). That takes a fraction of the time.
func Flood(to netip.AddrPort, size, burst int, d time.Duration) (Flooded, error) {
	conn, err := dialUDP(to)
	if err != nil {
		return Flooded{}, err
	}
	defer conn.Close()
	burst = max(burst, 1)
	if burst > 1 {
		if err := segment(conn, size); err != nil {
			return Flooded{}, err
		}
	}
	payload := make([]byte, size*burst)
	var f Flooded
	start := time.Now()
	for f.Elapsed < d {
		// The clock is not asked for each datagram.
		for range 16 {
			if _, err := conn.Write(payload); err != nil {
				f.Refused += burst
				continue
			}
			f.Sent += burst
		}
		f.Elapsed = time.Since(start)
	}
	return f, nil
}

// segment has the kernel cut what is written into datagrams of the given size.
func segment(conn *net.UDPConn, size int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("setsockopt(UDP_SEGMENT): %w", err)
	}
	return nil
}
