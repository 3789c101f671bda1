package load

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Held are connections or flows that were opened and stay open.
type Held struct {
	// Open is how many there are, Failed how many were tried in vain. Elapsed is
	// how long it took until the last of those that are open was.
	Open, Failed int
	Elapsed      time.Duration

	// Reason says why the last one failed, or why no more were tried; it is empty
	// when all were opened.
	Reason string

	conns []net.Conn
}

// Close closes them all.
func (h *Held) Close() {
	for _, conn := range h.conns {
		conn.Close()
	}
	h.conns = nil
}

// Hold opens n connections (network "tcp") or flows ("udp"), one after another and
// to all of the addresses in turn, and exchanges a byte or a datagram over each. It
// stops when the limit of time is over, or when more than one in a hundred has
// failed; what is open then stays open. The caller closes it.
func Hold(network string, to []netip.AddrPort, n int, limit time.Duration) (*Held, error) {
	if len(to) == 0 {
		return nil, errors.New("no address to connect to")
	}
	h := &Held{conns: make([]net.Conn, 0, n)}
	start := time.Now()
	for i := 0; i < n && h.Failed <= n/100; i++ {
		if time.Since(start) > limit {
			h.Reason = fmt.Sprintf("not opened within %v", limit)
			break
		}
		conn, err := open(network, to[i%len(to)])
		if err != nil {
			h.Failed++
			h.Reason = err.Error()
			continue
		}
		h.conns = append(h.conns, conn)
		h.Elapsed = time.Since(start)
	}
	h.Open = len(h.conns)
	return h, nil
}

func open(network string, to netip.AddrPort) (net.Conn, error) {
	if network == "udp" {
		conn, err := dialUDP(to)
		if err != nil {
			return nil, err
		}
		answered, err := ask(conn, 1, time.Now())
		if err == nil && !answered {
			err = errors.New("no answer to the first datagram")
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	}
	conn, err := dialTCP(to)
	if err != nil {
		return nil, err
	}
	err = conn.SetDeadline(time.Now().Add(patience))
	if err == nil {
		err = exchange(conn, make([]byte, 1))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}
