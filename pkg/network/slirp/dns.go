package slirp

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// dnsForwarder answers on port 53 of the DNS addresses, over UDP and TCP. It
// understands no more of a message than its header: the query goes, byte for byte,
// from a socket of the host to the upstreams in order, over what it came by, and
// the first good answer comes back, byte for byte, whatever its type, extensions
// or truncation. An upstream on the host's loopback (127.0.0.53) is reached like
// any other, because the sockets are the host's.
//
//	query --- host.gatekit.internal? --- answer of our own
//	  |
//	  +-- for each attempt, for each upstream: --- good answer --- policy learns
//	  |     no answer in time, no way, SERVFAIL or REFUSED: the next one
//	  |
//	  +-- the first SERVFAIL or REFUSED, or a SERVFAIL of our own
//
// All of that ends before the namespace's resolver stops waiting (schedule), also
// over TCP.
//
// Each query has a goroutine and a socket of its own: the port is a fresh one,
// which makes an answer harder to forge (RFC 5452).
type dnsForwarder struct {
	servers []netip.AddrPort // our own addresses
	own     ownNames
	source  *upstreamSource
	egress  *egress

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	slots   chan struct{} // one for each query under way
	streams chan struct{} // one for each TCP connection

	full, fullStreams overflow      // on slots and streams
	starved           overflow      // of descriptors
	malformed         atomic.Uint64 // datagrams that are no messages
}

// maxQueries caps the queries under way; one more is dropped, and asked again by
// the resolver.
const maxQueries = 4096

// maxMessage is the size of the largest DNS message.
const maxMessage = 65535

// newDNSForwarder returns the forwarder for the DNS addresses of the subnets.
// close ends it.
func newDNSForwarder(subnets [2]subnet, source *upstreamSource, e *egress) *dnsForwarder {
	d := &dnsForwarder{
		source:  source,
		egress:  e,
		slots:   make(chan struct{}, maxQueries),
		streams: make(chan struct{}, maxStreams),
	}
	for _, s := range subnets {
		if s.enabled() {
			d.servers = append(d.servers, netip.AddrPortFrom(s.dns, dnsPort))
			d.own.gateways = append(d.own.gateways, s.gateway)
		}
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// serves says whether an address is the forwarder's.
func (d *dnsForwarder) serves(a netip.AddrPort) bool {
	return a.Port() == dnsPort && slices.Contains(d.servers, a)
}

// close cancels all queries and waits for them. query and stream must not be
// called any more.
func (d *dnsForwarder) close() {
	d.cancel()
	d.running.Wait()
}

// query answers a query that came by UDP. It does not block, and does not keep
// the datagram.
func (d *dnsForwarder) query(w *datagramWriter, q *datagram) {
	if _, ok := parseDNSHeader(q.payload); !ok {
		d.malformed.Add(1)
		return
	}
	select {
	case d.slots <- struct{}{}:
	default:
		d.full.add()
		d.full.tell()
		return
	}
	from, to, mac, msg := q.dst, q.src, q.mac, slices.Clone(q.payload)
	d.running.Go(func() {
		defer func() { <-d.slots }()
		answer, _ := d.exchange(msg, d.askUDP)
		if answer != nil {
			w.write(mac, from, to, answer)
		}
	})
}

// asker sends a query to one upstream and returns the answer. more, where it is
// not nil, is the connection that further messages of the answer come by.
type asker func(ctx context.Context, upstream netip.AddrPort, msg []byte) (answer []byte, more net.Conn, err error)

// exchange returns the answer to a query, and what ask has it come by. It is nil when the
// forwarder is closed, or has no descriptor: the query comes again, and may find one.
func (d *dnsForwarder) exchange(msg []byte, ask asker) ([]byte, net.Conn) {
	answer := d.own.answer(msg)
	var more net.Conn
	if answer == nil {
		var err error
		if answer, more, err = d.askAll(msg, ask); err != nil {
			d.starved.add()
			d.starved.tell()
			return nil, nil
		}
	}
	if d.ctx.Err() != nil {
		if more != nil {
			more.Close()
		}
		return nil, nil
	}
	if answer == nil {
		return serverFailure(msg), nil
	}
	d.egress.policy.Learn(msg, answer)
	return answer, more
}

// askAll asks the upstreams until one has a good answer, and returns that, or the
// first that is not good, or nil. The error is that there is no descriptor to ask with.
func (d *dnsForwarder) askAll(msg []byte, ask asker) ([]byte, net.Conn, error) {
	s := d.source.schedule()
	ctx, cancel := context.WithTimeout(d.ctx, s.budget)
	defer cancel()
	var second []byte // best
	for range s.attempts {
		silent := false
		for _, u := range s.upstreams {
			one, cancelOne := context.WithTimeout(ctx, s.timeout)
			answer, more, err := ask(one, u, msg)
			// A failure that is told at once would be told again.
			silent = silent || errors.Is(one.Err(), context.DeadlineExceeded)
			cancelOne()
			switch h, _ := parseDNSHeader(answer); {
			case ctx.Err() != nil && err != nil:
				return second, nil, nil
			case noDescriptors(err):
				return nil, nil, err
			case err != nil:
				continue
			case h.code != dnsmessage.RCodeServerFailure && h.code != dnsmessage.RCodeRefused:
				return answer, more, nil
			}
			if more != nil {
				more.Close()
			}
			if second == nil {
				second = answer
			}
		}
		if !silent {
			break
		}
	}
	return second, nil, nil
}

// dial connects a socket of the host to an upstream. What is done with it ends
// with ctx, until release is called.
func (d *dnsForwarder) dial(ctx context.Context, network string, upstream netip.AddrPort) (conn net.Conn, release func() bool, err error) {
	dialer := net.Dialer{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		err := error(unix.EMFILE)
		cerr := c.Control(func(fd uintptr) {
			if d.egress.descriptors.has(int(fd)) {
				err = d.egress.out.apply(int(fd), upstream.Addr())
			}
		})
		return cmp.Or(cerr, err)
	}}
	if conn, err = dialer.DialContext(ctx, network, upstream.String()); err != nil {
		return nil, nil, err
	}
	return conn, context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }), nil
}

// askUDP is an asker over UDP.
func (d *dnsForwarder) askUDP(ctx context.Context, upstream netip.AddrPort, msg []byte) ([]byte, net.Conn, error) {
	conn, release, err := d.dial(ctx, "udp", upstream)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	defer release()
	if _, err := conn.Write(msg); err != nil {
		return nil, nil, err
	}
	answer, err := receiveAnswer(conn.(*net.UDPConn), msg)
	return answer, nil, err
}

// receiveAnswer waits for the answer to a query. It holds a buffer of the largest
// size only while there is something to read.
func receiveAnswer(conn *net.UDPConn, msg []byte) (answer []byte, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	asked, _ := parseDNSHeader(msg)
	var errno unix.Errno
	err = raw.Read(func(fd uintptr) (done bool) {
		buf := answerBuffers.Get().(*[maxMessage]byte)
		defer answerBuffers.Put(buf)
		for {
			var n int
			if n, errno = linux.ReadNonblock(int(fd), buf[:]); errno != 0 {
				return errno != unix.EAGAIN
			}
			// Anything else is an answer to an older query, or forged.
			if h, ok := parseDNSHeader(buf[:n]); ok && h.response && h.id == asked.id {
				answer = slices.Clone(buf[:n])
				return true
			}
		}
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return answer, err
}

// answerBuffers holds the memory that answers are read into.
var answerBuffers = sync.Pool{New: func() any { return new([maxMessage]byte) }}
