package slirp

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
)

// flowTable holds the flows of a protocol that knows no connections: UDP, or echo
// by ICMP.
//
// A session is a socket of the host, one for each address and port of the
// namespace that sends, whatever it sends to, so that the outside sees one
// address and port for it (endpoint-independent mapping, RFC 4787 REQ-1). It is
// not connected, so an ICMP error cannot make it fail. A flow is a session and
// one remote address. A session ends with its last flow.
//
// Where flows are too many, or descriptors too few, the least recently used flow
// makes room. Idle ones end by one timer for all, which runs while there are any.
//
// Of the socket's error queue comes what its datagrams met on their way
// (unreachable.go).
type flowTable struct {
	carrier carrier
	proto   policy.Proto
	egress  *egress
	loops   []*loop
	writer  *datagramWriter

	mu       sync.Mutex // guards all below, and the fields of sessions and flows
	sessions map[sessionKey]*session
	flows    map[flowKey]*flow
	idle     [2]flowList // short and long, each in order of use
	timer    *time.Timer // runs while there are flows
	due      time.Time   // when timer fires
	closed   bool
	limit    int // of flows

	// full counts flows that made room for others, starved those that gave a
	// descriptor.
	full, starved overflow

	// peers has the sessions count their remote addresses.
	peers bool

	// refused counts datagrams that the egress did not let out, dropped those
	// that the host did not take or that came in without a flow, told the ICMP
	// errors for the namespace.
	refused, dropped, told atomic.Uint64
}

// carrier is the protocol of a table.
type carrier interface {
	// socket makes a socket of the host, of the family of an address to send to.
	socket(to netip.Addr) (int, error)

	// short says whether a flow to an address is over after seconds.
	short(remote netip.AddrPort) bool

	// reply brings a datagram from outside to the namespace, if it was asked for.
	// ttl is what it came with, 0 where that is not known.
	reply(s *session, from netip.AddrPort, payload []byte, ttl uint8)

	// quote is a datagram of the namespace, of whose payload, as the socket was
	// given it, some is known. It puts the protocol into out.
	quote(out *outgoing, guest, remote netip.AddrPort, payload []byte) quotation
}

// flowKey is a flow as the namespace sees it.
type flowKey struct{ guest, remote netip.AddrPort }

// flow is a conversation with one remote address.
type flow struct {
	key     flowKey
	to      netip.AddrPort // the remote address as the host sees it
	session *session
	since   time.Time // of the first datagram
	used    time.Time
	list    *flowList
	flowLinks
}

// sessionKey is an address and port of the namespace. Where flows have a source
// of their own (outbound), those to the host's loopback have a session of their
// own, which has none. So has the flow that takes a lead, because what comes back is
// known by the gateway's port, which the address that it comes from does not tell.
type sessionKey struct {
	guest    netip.AddrPort
	loopback bool
	lead     *lead
}

func newFlowTable(c carrier, proto policy.Proto, e *egress, loops []*loop, w *datagramWriter, limit int, short, long time.Duration) *flowTable {
	return &flowTable{
		carrier:  c,
		proto:    proto,
		egress:   e,
		loops:    loops,
		writer:   w,
		sessions: make(map[sessionKey]*session),
		flows:    make(map[flowKey]*flow),
		idle:     [2]flowList{{idle: short}, {idle: long}},
		limit:    limit,
	}
}

// errRefused and errProhibited say that a datagram is not let out: nobody is
// there, or the policy says no.
var (
	errRefused    = errors.New("refused")
	errProhibited = errors.New("prohibited")
)

// acquire finds or makes the flow of a datagram. The caller releases its session.
func (t *flowTable) acquire(d *datagram) (*flow, error) {
	f, isNew, err := t.find(d)
	if isNew {
		t.full.tell()
		t.starved.tell()
	}
	return f, err
}

// find is acquire without a word of flows that others had to make room for.
func (t *flowTable) find(d *datagram) (f *flow, isNew bool, err error) {
	key := flowKey{d.src, d.dst}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if f = t.flows[key]; f == nil {
		w, ruling := t.egress.destination(t.proto, d.dst)
		switch ruling {
		case nobodyThere:
			return nil, false, errRefused
		case prohibited:
			return nil, false, errProhibited
		}
		isNew = true
		if f, err = t.open(key, w); err != nil {
			return nil, isNew, err
		}
	}
	t.touch(f, now)
	f.session.mac = d.mac
	f.session.users.enter() // the table's use keeps it open
	return f, isNew, nil
}

// open makes a flow, and its session where it is the first.
func (t *flowTable) open(key flowKey, w way) (*flow, error) {
	if t.closed {
		return nil, errStopped
	}
	for len(t.flows) >= t.limit {
		t.full.add()
		t.evict()
	}
	to := w.to
	sk := sessionKey{key.guest, t.egress.out.isSet() && w.lead == nil && to.Addr().IsLoopback(), w.lead}
	s := t.sessions[sk]
	if s == nil {
		var err error
		s, err = t.openSession(sk, to.Addr())
		// Without descriptors, the least recently used flow has to give its own.
		for len(t.flows) > 0 && noDescriptors(err) {
			t.starved.add()
			t.evict()
			s, err = t.openSession(sk, to.Addr())
		}
		if err != nil {
			return nil, err
		}
	}
	f := &flow{key: key, to: to, session: s, since: time.Now(), list: &t.idle[1]}
	if t.carrier.short(key.remote) {
		f.list = &t.idle[0]
	}
	s.flows++
	if s.peers != nil {
		s.peers[key.remote.Addr()]++
	}
	t.flows[key] = f
	f.list.pushBack(f)
	t.wakeIn(f.list.idle)
	return f, nil
}

// noDescriptors says whether the gate, or the host, has none left.
func noDescriptors(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

// wakeIn has expire called in d at the latest.
func (t *flowTable) wakeIn(d time.Duration) {
	due := time.Now().Add(d)
	switch {
	case t.timer == nil:
		t.timer = time.AfterFunc(d, t.expire)
	case due.Before(t.due):
		t.timer.Reset(d)
	default:
		return
	}
	t.due = due
}

// openSession makes the socket for an address of the namespace, of which to is the
// first destination.
func (t *flowTable) openSession(key sessionKey, to netip.Addr) (*session, error) {
	fd, err := t.carrier.socket(to)
	if err != nil {
		return nil, err
	}
	if key.lead == nil {
		err = t.egress.out.apply(fd, to)
	}
	if err == nil {
		err = linux.AskForErrors(fd, to.Is6())
	}
	if err != nil {
		linux.Close(fd)
		return nil, err
	}
	s := &session{sessionKey: key, table: t, loop: t.loops[fd%len(t.loops)], fd: fd, ipv6: to.Is6()}
	if t.peers {
		s.peers = make(map[netip.Addr]int)
	}
	s.users.open()
	if err := s.loop.watch(fd, unix.EPOLLIN, s); err != nil {
		linux.Close(fd)
		return nil, err
	}
	t.sessions[key] = s
	return s, nil
}

// touch notes that a flow is in use.
func (t *flowTable) touch(f *flow, now time.Time) {
	f.used = now
	f.list.moveToBack(f)
}

// evict ends the flow that was used least recently.
func (t *flowTable) evict() {
	oldest := t.idle[0].front
	if other := t.idle[1].front; oldest == nil || other != nil && other.used.Before(oldest.used) {
		oldest = other
	}
	t.end(oldest)
}

// end ends a flow, and its session with the last one.
func (t *flowTable) end(f *flow) {
	f.list.remove(f)
	delete(t.flows, f.key)
	s := f.session
	if s.flows--; s.flows == 0 {
		delete(t.sessions, s.sessionKey)
		s.release()
		return
	}
	if s.peers != nil {
		peer := f.key.remote.Addr()
		if s.peers[peer]--; s.peers[peer] == 0 {
			delete(s.peers, peer)
		}
	}
}

// expire ends the flows that were idle for too long.
func (t *flowTable) expire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	now := time.Now()
	var next time.Duration
	for i := range t.idle {
		l := &t.idle[i]
		for l.front != nil && now.Sub(l.front.used) >= l.idle {
			t.end(l.front)
		}
		if l.front != nil {
			if wait := l.idle - now.Sub(l.front.used); next == 0 || wait < next {
				next = wait
			}
		}
	}
	if next == 0 {
		t.timer = nil
		return
	}
	t.timer.Reset(next)
	t.due = now.Add(next)
}

// revoke ends the flows that the policy, as it is now, does not allow.
func (t *flowTable) revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, f := range t.flows {
		if !t.egress.policy.AllowsStill(t.proto, key.remote) {
			t.end(f)
		}
	}
}

// endTo ends the flows to an address.
func (t *flowTable) endTo(remote netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, f := range t.flows {
		if key.remote == remote {
			t.end(f)
		}
	}
}

// close ends all flows.
func (t *flowTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.timer != nil {
		t.timer.Stop()
	}
	for _, f := range t.flows {
		t.end(f)
	}
}

// answered says where a datagram from outside goes in the namespace, if it was
// asked for: with a flow to its very source, or with one that accept takes for
// enough.
func (t *flowTable) answered(s *session, remote netip.AddrPort, accept func(*session, netip.AddrPort) bool) (macAddr, bool) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.flows[flowKey{s.guest, remote}]
	switch {
	case f != nil && f.session == s:
		t.touch(f, now)
	case s.flows == 0 || accept == nil || !accept(s, remote):
		t.dropped.Add(1)
		return macAddr{}, false
	}
	return s.mac, true
}

// undeliverable tells the namespace why there is no flow for its datagram.
func (t *flowTable) undeliverable(d *datagram, err error) {
	t.dropped.Add(1)
	if e, ok := unreachable(err, d.dst.Addr().Is6()); ok {
		t.tell(d.mac, e, flowKey{d.src, d.dst}, d.payload, d.ttl)
	}
}

// tell sends an ICMP error about a datagram of the namespace, which was on its
// way with ttl.
func (t *flowTable) tell(mac macAddr, e icmpError, key flowKey, payload []byte, ttl uint8) {
	out := outgoing{src: key.guest.Addr(), dst: key.remote.Addr(), ttl: ttl}
	q := t.carrier.quote(&out, key.guest, key.remote, payload)
	t.told.Add(1)
	t.writer.writeError(mac, e, &q)
}
