package slirp

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/tcp"
)

// dialTimeout bounds the dial to the host's side. It is what Linux gives a SYN by
// default (tcp_syn_retries in tcp(7)).
const dialTimeout = 127 * time.Second

// giveUpGrace is how late a repeated SYN of the namespace may be before we take
// it that nobody waits any more.
const giveUpGrace = 3 * time.Second

// dial is what a relay knows while its host's side is being connected. It ends when the
// namespace gives up: by a reset, or by no longer repeating its SYN.
type dial struct {
	refusedSYN
	first, last time.Duration // SYNs of the namespace
}

// refusedSYN is what an ICMP error quotes of a SYN, and who has sent it.
type refusedSYN struct {
	mac  macAddr
	ttl  uint8
	head transportHeader
	key  flowKey
}

// due is when the dial is given up, where no SYN comes any more. The interval between
// them doubles (RFC 6298, 5.5), so that the next is due after at most the time that has
// passed between the first and the last, and the first interval of a second.
func (d *dial) due() time.Duration {
	return min(d.first+dialTimeout, d.last+(d.last-d.first)+giveUpGrace)
}

// inputDialling takes a segment of the namespace while its connection is set up.
func (r *relay) inputDialling(s *tcp.Segment) {
	switch {
	case s.Flags&tcp.RST != 0:
		r.endDial()
	case s.Opens():
		// It may be another connection's, from the same port.
		r.conn.Accept(r.tcp.options(r), s, r.tcp.now)
		r.dial.last = r.tcp.now
	}
}

// dialled looks what has become of the host's side.
func (r *relay) dialled() {
	// An event does not have to mean that the outcome is there.
	err := linux.Connected(r.fd)
	switch {
	case errors.Is(err, unix.EINPROGRESS):
	case err != nil:
		if r.tcp.refuse(&r.dial.refusedSYN, r, err) {
			r.conn.Abort()
		}
		r.endDial()
	default:
		r.dial.usual(r.fd, r.hostIPv6)
		r.tcp.dials--
		r.setDial(nil)
		r.join()
	}
}

// traceTTL is the time to live below which a SYN is taken for one that is to find the
// hops on its way (traceroute -T): kernels begin with 64 and more.
const traceTTL = 32

// isTrace says whether the SYN is such a one. On the host's side it has one hop less.
func (s *refusedSYN) isTrace() bool { return s.ttl < traceTTL }

// usual has a socket that is connected be as any other: what it sends goes all the way,
// and an ICMP error does not end it, as it would while it is asked for (tcp_v4_err in
// net/ipv4/tcp_ipv4.c). There is no error where the values are in range.
func (s *refusedSYN) usual(fd int, ipv6 bool) {
	_ = linux.NoErrors(fd, ipv6)
	if s.isTrace() {
		_ = linux.SetTTL(fd, ipv6, -1)
	}
}

// passOnError passes on the ICMP error that has ended a dial, from the router that it
// comes from. It is false where there is none, and the errno is all that is known.
func (r *relay) passOnError(syn *refusedSYN) bool {
	var buf [maxErrorIPv6]byte
	for {
		n, errno := linux.ReceiveNotice(r.fd, buf[:])
		switch {
		case errno != 0:
			return false
		case n.ICMP && n.Offender.IsValid() && r.lead == nil: // by a lead, the way ends at the gateway
			from := r.tcp.egress.source(netip.AddrPortFrom(n.Offender, 0)).Addr()
			if e, ok := passedOn(&n, from, r.key.remote.Addr().Is6()); ok {
				r.tcp.tellError(syn, e)
				return true
			}
		}
	}
}

// setDial changes what others may look at.
func (r *relay) setDial(d *dial) {
	r.tcp.mu.Lock()
	r.dial = d
	r.tcp.mu.Unlock()
}

// endDial gives the connection up, of which the namespace has heard all that it is to
// hear.
func (r *relay) endDial() {
	r.tcp.dials--
	r.setDial(nil)
	r.conn.Drop()
	r.lead = nil // which has counted no connection
	r.close(true)
	r.settle()
}

// newStreamSocket makes a TCP socket for an address.
func (e *egress) newStreamSocket(to netip.Addr) (int, error) {
	domain := unix.AF_INET6
	if to.Is4() {
		domain = unix.AF_INET
	}
	fd, err := e.descriptors.take(linux.Socket(domain, unix.SOCK_STREAM, unix.IPPROTO_TCP))
	if err != nil {
		return -1, err
	}
	if to.IsLoopback() {
		_ = linux.Unpace(fd) // if it is not allowed it is only slower
	}
	// The sender in the namespace has decided how to cut its stream, so nothing is
	// held back for more.
	if err := linux.TuneTCP(fd, linux.KeepAlive{}); err != nil {
		linux.Close(fd)
		return -1, err
	}
	return fd, nil
}
