package slirp

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsForwarder answers on port 53 of the DNS address. It understands no more of
// a message than its header: the query goes, byte for byte, from a socket of the
// host to the upstreams in order, and the first good answer comes back, byte for
// byte, whatever its type, extensions or truncation. An upstream on the host's
// loopback (127.0.0.53) is reached like any other, because the sockets are the
// host's.
//
// An upstream that does not answer in time, cannot be reached, or answers that it
// cannot serve (SERVFAIL, REFUSED) is passed over for the next. When all are, the
// namespace gets the first such answer, or a SERVFAIL of our own, so that its
// resolver does not have to wait.
//
// Each query has a goroutine and a socket of its own: the port is a fresh one,
// which makes an answer harder to forge (RFC 5452). TCP is relayed as a stream
// (tcpForwarder.connectDNS).
type dnsForwarder struct {
	servers []netip.AddrPort // our own addresses
	source  *upstreamSource

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	slots   chan struct{} // one for each query under way

	// dropped counts queries that found no slot.
	dropped atomic.Uint64
}

// maxQueries caps the queries under way; one more is dropped, and asked again by
// the resolver.
const maxQueries = 1024

// queryBudget is how long all upstreams together have. The C library's resolver
// waits five seconds for an answer.
const queryBudget = 4500 * time.Millisecond

// maxMessage is the size of the largest DNS message.
const maxMessage = 65535

// attemptTimeout returns how long one upstream of n has.
func attemptTimeout(n int) time.Duration {
	return max(500*time.Millisecond, min(2*time.Second, queryBudget/time.Duration(n)))
}

// newDNSForwarder returns the forwarder for the DNS addresses of the subnets.
// close ends it.
func newDNSForwarder(subnets [2]subnet, source *upstreamSource) *dnsForwarder {
	d := &dnsForwarder{source: source, slots: make(chan struct{}, maxQueries)}
	for _, s := range subnets {
		if s.enabled() {
			d.servers = append(d.servers, netip.AddrPortFrom(s.dns, dnsPort))
		}
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// serves says whether an address is the forwarder's.
func (d *dnsForwarder) serves(a netip.AddrPort) bool {
	return a.Port() == dnsPort && slices.Contains(d.servers, a)
}

// close cancels all queries and waits for them. query must not be called any
// more.
func (d *dnsForwarder) close() {
	d.cancel()
	d.running.Wait()
}

// query answers a query that came by UDP. It does not block, and does not keep
// the datagram.
func (d *dnsForwarder) query(w *datagramWriter, q *datagram) {
	if _, ok := parseDNSHeader(q.payload); !ok {
		return
	}
	select {
	case d.slots <- struct{}{}:
	default:
		d.dropped.Add(1)
		return
	}
	from, to, mac, msg := q.dst, q.src, q.mac, slices.Clone(q.payload)
	d.running.Go(func() {
		defer func() { <-d.slots }()
		if answer := d.exchange(msg); answer != nil {
			w.write(mac, from, to, answer)
		}
	})
}

// exchange returns the answer to a query, nil when the forwarder is closed.
func (d *dnsForwarder) exchange(msg []byte) []byte {
	ctx, cancel := context.WithTimeout(d.ctx, queryBudget)
	defer cancel()
	upstreams := d.source.upstreams()
	timeout := attemptTimeout(len(upstreams))
	var second []byte // best
	for _, u := range upstreams {
		answer, err := ask(ctx, u, msg, timeout)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if h, _ := parseDNSHeader(answer); h.code != dnsmessage.RCodeServerFailure && h.code != dnsmessage.RCodeRefused {
			return answer
		}
		if second == nil {
			second = answer
		}
	}
	if d.ctx.Err() != nil {
		return nil
	}
	if second == nil {
		second = serverFailure(msg)
	}
	return second
}

// ask sends a query to one upstream and returns the answer.
func ask(ctx context.Context, upstream netip.AddrPort, msg []byte, timeout time.Duration) ([]byte, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", upstream.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	asked, _ := parseDNSHeader(msg)
	buf := answerBuffers.Get().(*[maxMessage]byte)
	defer answerBuffers.Put(buf)
	for {
		n, err := conn.Read(buf[:])
		if err != nil {
			return nil, err
		}
		// Anything else is an answer to an older query, or forged.
		if h, ok := parseDNSHeader(buf[:n]); ok && h.response && h.id == asked.id {
			return slices.Clone(buf[:n]), nil
		}
	}
}

// answerBuffers holds the memory that answers are read into.
var answerBuffers = sync.Pool{New: func() any { return new([maxMessage]byte) }}

// dnsHeaderSize is the size of the header of a message (RFC 1035, 4.1.1).
const dnsHeaderSize = 12

// dnsHeader is what we look at in a message.
type dnsHeader struct {
	id       uint16
	response bool
	code     dnsmessage.RCode
}

// parseDNSHeader is false for what is too short to be a message.
func parseDNSHeader(msg []byte) (dnsHeader, bool) {
	if len(msg) < dnsHeaderSize {
		return dnsHeader{}, false
	}
	return dnsHeader{
		id:       binary.BigEndian.Uint16(msg),
		response: msg[2]&0x80 != 0,
		code:     dnsmessage.RCode(msg[3] & 0x0f),
	}, true
}

// serverFailure answers a query with SERVFAIL and its own question, or with none
// where that cannot be read.
func serverFailure(msg []byte) []byte {
	asked, _ := parseDNSHeader(msg)
	answer := dnsmessage.Message{Header: dnsmessage.Header{
		ID:                 asked.id,
		Response:           true,
		OpCode:             dnsmessage.OpCode(msg[2] >> 3 & 0x0f),
		RecursionDesired:   msg[2]&1 != 0,
		RecursionAvailable: true,
		RCode:              dnsmessage.RCodeServerFailure,
	}}
	var p dnsmessage.Parser
	if _, err := p.Start(msg); err == nil {
		if q, err := p.Question(); err == nil {
			answer.Questions = []dnsmessage.Question{q}
		}
	}
	packed, err := answer.Pack()
	if err != nil {
		return nil
	}
	return packed
}
