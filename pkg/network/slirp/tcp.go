package slirp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
	"github.com/gatekit/gatekit/pkg/network/slirp/tcp"
)

// maxDials caps the connections that are being set up. A SYN beyond it is
// dropped, and comes again. It is large because connections to hosts that do not
// answer stay in it for as long as the namespace tries.
const maxDials = 8192

// tcpWindow is how many bytes of a guest wait for a host's side that does not read,
// beside what its socket holds.
const tcpWindow = 1 << 20

// maxOrphaned bounds what is kept, in bytes, for guests that have not acknowledged it yet
// when the host's side has ended, and with it the descriptor by which connections are few.
// A guest takes what was within its window at once, so that there is little of it, unless
// the guest is up to something.
const maxOrphaned = 128 << 20

// orphanSize is about what a relay takes beside the bytes that wait.
const orphanSize = 1 << 10

// keepAlive is for the namespace's side of a connection, and Linux's default. The
// host's side has what the host is set to, until the namespace probes more often
// (keepalive.go).
var keepAlive = tcp.KeepAlive{Idle: 2 * time.Hour, Interval: 75 * time.Second, Count: 9}

// halfOpenIdle is how long a kernel keeps a connection that its program has closed
// and whose other half goes on (tcp_fin_timeout in tcp(7)).
const halfOpenIdle = time.Minute

// tcpForwarder has all connections of the namespace, those that it opens and those
// that are opened into it in the names of clients (inbound.go), each as a relay. All of
// it happens on one loop, the one that reads the TAP: from a frame to the host's
// socket, and from there to a frame, nothing is handed over and nothing is locked.
//
// For a SYN that belongs to no connection
//
//  1. it asks the egress where the connection goes: nowhere, or nowhere by policy, is
//     a reset; to the DNS server, which answers by itself (dns_stream.go);
//  2. it connects a socket of the host (dial.go): refused is a reset, unreachable an
//     ICMP error (unreachable.go), no answer is none; it gives up when the namespace
//     has (a reset, or no more SYNs);
//  3. it completes the handshake with the namespace, and the relay goes to work.
//
// Once in a round of the loop it has its turn: acknowledgements that found nothing to
// ride on are sent, and timers looked at.
type tcpForwarder struct {
	egress *egress
	dns    *dnsForwarder
	loop   *loop
	writer *datagramWriter // of ICMP errors; to the TAP
	mss    [2]uint16       // IPv4 and IPv6
	clock  tcpip.Clock
	pool   tcp.Pool

	halfOpen time.Duration // after how long a silence a peer that has ended its half is probed

	mu       sync.Mutex // held to change relays, and by who is not the loop to look at them
	relays   map[flowKey]*relay
	dials    int      // of relays, those that are not connected yet
	orphaned int      // bytes of those whose host's side has ended
	full     overflow // on dials
	starved  overflow // of descriptors
	crowded  overflow // on orphaned

	now     time.Duration // of this round
	segment tcp.Segment   // input's
	again   []*relay      // have more to bring from the host
	owing   []*relay      // owe an acknowledgement
	rounds  int           // since the last of these was sent
	alarms  alarms
}

// newTCPForwarder returns a forwarder on the loop that reads frames for it. A nil clock
// is the machine's.
func newTCPForwarder(e *egress, d *dnsForwarder, l *loop, w *datagramWriter, clock tcpip.Clock) *tcpForwarder {
	if clock == nil {
		clock = tcpip.NewStdClock()
	}
	t := &tcpForwarder{egress: e, dns: d, loop: l, writer: w, clock: clock, halfOpen: halfOpenIdle, relays: make(map[flowKey]*relay)}
	t.mss = [2]uint16{uint16(w.mtu - header.IPv4MinimumSize - tcp.HeaderSize), uint16(w.mtu - header.IPv6MinimumSize - tcp.HeaderSize)}
	t.alarms.wake = func() { l.call(func() { t.alarms.at = 0 }) }
	t.tell()
	return t
}

// input takes a segment of the namespace, in a frame that is in a buffer. It says
// whether it has kept that; nil is none to keep.
func (t *tcpForwarder) input(d *datagram, frame *tcp.Buffer) (kept bool) {
	s := &t.segment
	s.Parse(d.payload)
	key := flowKey{d.src, d.dst}
	r := t.relays[key]
	if r != nil && s.Opens() && (r.closed || r.conn.IsClosed()) {
		// The namespace has done with that connection, of which the end is not known here,
		// or the host's side has not read all of what came before a reset.
		r.conn.Drop()
		if !r.closed {
			r.close(true)
		}
		r.settle()
		r = nil
	}
	switch {
	case r != nil:
		return r.input(s, frame)
	case s.Opens():
		t.accept(key, d, s)
	default:
		t.reset(d, s)
	}
	return false
}

// reset answers a segment that belongs to no connection.
func (t *tcpForwarder) reset(d *datagram, s *tcp.Segment) {
	if h, ok := tcp.Refusal(s); ok {
		e := newEnvelope(t.writer, d.mac, d.dst, d.src)
		e.send(&h, nil)
	}
}

// accept begins a connection that the namespace asks for.
func (t *tcpForwarder) accept(key flowKey, d *datagram, s *tcp.Segment) {
	if t.dials >= maxDials {
		t.full.add()
		t.full.tell()
		return
	}
	r := t.newRelay(key, d.mac)
	r.outbound = true
	r.conn.Accept(t.options(r), s, t.now)
	syn := refusedSYN{d.mac, d.ttl, transportHeader(d.payload), key}
	connected, err := t.dial(r, &syn)
	switch {
	case err != nil:
		if t.refuse(&syn, r, err) {
			t.reset(d, s)
		}
		if r.fd >= 0 {
			linux.Close(r.fd)
		}
	case connected:
		t.add(r)
		r.join()
	default:
		r.dial = &dial{refusedSYN: syn, first: t.now, last: t.now}
		t.add(r)
		r.settle()
	}
}

// dial begins to connect the host's side, and says whether that is done. On an error there
// may be a socket to be closed.
func (t *tcpForwarder) dial(r *relay, syn *refusedSYN) (connected bool, err error) {
	if t.dns.serves(r.key.remote) {
		r.fd, err = t.serveDNS()
		r.local = true
		return true, err
	}
	w, ruling := t.egress.destination(policy.TCP, r.key.remote)
	if ruling != letOut {
		return false, unix.ECONNREFUSED
	}
	r.lead = w.lead
	r.hostIPv6 = w.to.Addr().Is6()
	if r.fd, err = t.egress.newStreamSocket(w.to.Addr()); err != nil {
		return false, err
	}
	err = t.connect(r.fd, w, syn)
	pending := errors.Is(err, unix.EINPROGRESS)
	if err == nil || pending {
		err = t.loop.watch(r.fd, hostEvents, r)
	}
	return !pending, err
}

// connect begins to connect a socket, as a SYN asks for. The error is EINPROGRESS where
// that takes a while.
func (t *tcpForwarder) connect(fd int, w way, syn *refusedSYN) error {
	ipv6 := w.to.Addr().Is6()
	if w.lead == nil {
		if err := t.egress.out.apply(fd, w.to.Addr()); err != nil {
			return err
		}
	}
	if syn.isTrace() {
		if err := linux.SetTTL(fd, ipv6, int(hop(syn.ttl))); err != nil {
			return err
		}
		_ = linux.AskForErrors(fd, ipv6) // without it, errors come from the gateway
	}
	if err := linux.Connect(fd, w.to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	err := linux.Connected(fd) // on this machine it is, already
	switch {
	case err == nil && syn.isTrace():
		syn.usual(fd, ipv6)
	case errors.Is(err, unix.EINPROGRESS):
		_ = linux.AskForErrors(fd, ipv6)
	}
	return err
}

// serveDNS has the DNS server serve a connection, whose other end it returns.
func (t *tcpForwarder) serveDNS() (fd int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == nil && !t.egress.descriptors.has(max(fds[0], fds[1])) {
		linux.Close(fds[0])
		linux.Close(fds[1])
		err = unix.EMFILE
	}
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	file := os.NewFile(uintptr(fds[1]), "dns")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		linux.Close(fds[0])
		return -1, err
	}
	t.dns.stream(conn)
	return fds[0], nil
}

// refuse answers for a dial that failed. It is true where a reset is the answer.
// Silence is passed on as silence. A SYN that may find a descriptor when it comes again
// has no answer either.
func (t *tcpForwarder) refuse(syn *refusedSYN, r *relay, err error) bool {
	if noDescriptors(err) {
		t.starved.add()
		t.starved.tell()
		return false
	}
	if errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, errStopped) || r.fd >= 0 && r.passOnError(syn) {
		return false
	}
	e, ok := unreachable(err, syn.key.remote.Addr().Is6())
	if !ok || errors.Is(err, unix.ECONNREFUSED) {
		return true
	}
	t.tellError(syn, e)
	return false
}

// tellError sends an ICMP error about a SYN.
func (t *tcpForwarder) tellError(syn *refusedSYN, e icmpError) {
	out := outgoing{src: syn.key.guest.Addr(), dst: syn.key.remote.Addr(), proto: header.TCPProtocolNumber, ttl: syn.ttl}
	q := quoteHeaders(&out, &syn.head, nil)
	t.writer.writeError(syn.mac, e, &q)
}

// options are those of a relay's connection.
func (t *tcpForwarder) options(r *relay) tcp.Options {
	f := family(r.key.guest.Addr())
	return tcp.Options{Wire: r, Pool: &t.pool, MSS: t.mss[f], IPv6: f == 1, Window: tcpWindow, KeepAlive: keepAlive}
}

// add puts a relay into the table.
func (t *tcpForwarder) add(r *relay) {
	t.mu.Lock()
	t.relays[r.key] = r
	t.mu.Unlock()
	if r.dial != nil {
		t.dials++
	}
}

// forget takes it out.
func (t *tcpForwarder) forget(r *relay) {
	t.mu.Lock()
	if t.relays[r.key] == r {
		delete(t.relays, r.key)
	}
	t.mu.Unlock()
	t.orphaned -= r.orphaned
	r.orphaned = 0
	t.alarms.remove(r)
}

// tell has the forwarder know the time, at the beginning of a round.
func (t *tcpForwarder) tell() { t.now = t.clock.NowMonotonic().Sub(tcpip.MonotonicTime{}) }

// turn ends a round.
func (t *tcpForwarder) turn() {
	for n := len(t.again); n > 0; n-- {
		r := t.again[0]
		t.again = t.again[1:]
		r.isAgain = false
		r.conn.Tell(t.now)
		r.pumpToGuest()
		r.settle()
	}
	if len(t.again) == 0 {
		t.again = nil
	}
	for r := t.alarms.due(t.now); r != nil; r = t.alarms.due(t.now) {
		r.tick()
	}
	t.rounds++
	t.acknowledge(t.rounds >= maxHeldRounds)
}

// maxHeldRounds is how many rounds of the loop an acknowledgement waits for a segment
// to ride on (RFC 9293, 3.8.6.3). It waits while the loop is at work or spins, and goes
// before the loop sleeps, so that it needs no timer. Those that a sender may be waiting
// for, of more than smallSegment, do not wait beyond their round.
const maxHeldRounds = 8

// smallSegment is the size up to which a segment is taken for a part of a conversation,
// and not of a stream.
const smallSegment = 512

// acknowledge sends the acknowledgements that are due, or all.
func (t *tcpForwarder) acknowledge(all bool) {
	if all {
		t.rounds = 0
	}
	left := t.owing[:0]
	for _, r := range t.owing {
		soon, _ := r.conn.Owed()
		if soon && !all && !r.large {
			left = append(left, r)
			continue
		}
		r.owes, r.large = false, false
		if soon {
			r.conn.Acknowledge()
		}
	}
	clear(t.owing[len(left):])
	t.owing = left
}

// sleep is called before the loop sleeps, and is false where there is work.
func (t *tcpForwarder) sleep() bool {
	if len(t.again) > 0 {
		return false
	}
	t.acknowledge(true)
	t.alarms.set(t.clock, t.now)
	return true
}

// revoke resets the namespace's connections that the policy, as it is now, does
// not allow.
func (t *tcpForwarder) revoke() {
	t.loop.call(func() {
		t.resetAll(func(r *relay) bool {
			return r.outbound && !r.local && !t.egress.policy.AllowsStill(policy.TCP, r.key.remote)
		})
	})
}

// cut resets the connections that take a lead.
func (t *tcpForwarder) cut(d *lead) {
	t.loop.call(func() { t.resetAll(func(r *relay) bool { return r.lead == d }) })
}

// giveUp gives up the dials towards an address that leads elsewhere now, where the
// namespace gets when it repeats its SYN.
func (t *tcpForwarder) giveUp(asked netip.AddrPort) {
	t.loop.call(func() {
		now := t.egress.leads.find(policy.TCP, asked)
		for _, r := range t.relays {
			if r.dial != nil && r.key.remote == asked && r.lead != now {
				r.endDial()
			}
		}
	})
}

// resetAll resets the connections for which which is true.
func (t *tcpForwarder) resetAll(which func(*relay) bool) {
	for _, r := range t.relays {
		if which(r) {
			r.abort()
		}
	}
}

// clearPool gives up spare memory. It waits for the loop.
func (t *tcpForwarder) clearPool() {
	done := make(chan struct{})
	if t.loop.call(func() { t.pool.Clear(); close(done) }) {
		<-done
	}
}

// close ends the connections that are left when the loop has ended and aborted what it
// watched: those of which a side is still being opened, or nobody is left behind ours.
func (t *tcpForwarder) close() {
	t.alarms.stop()
	t.resetAll(func(*relay) bool { return true })
}
