package slirp

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/gatekit/gatekit/internal/linux"
)

// maxFlows caps the UDP flows. The least recently used one makes room.
const maxFlows = 16384

// How long a flow lives after its last datagram. A question and its answer, as in
// DNS and NTP, are over after seconds; RFC 4787 (REQ-5) wants two minutes at least
// for all others, and recommends five.
const (
	shortIdle = 10 * time.Second
	longIdle  = 5 * time.Minute
)

// udpRelay relays UDP between frames and sockets of the host, without the stack.
//
// A session is a socket of the host, one for each address and port of the
// namespace that sends, whatever it sends to, so that the outside sees one
// address and port for it (endpoint-independent mapping, RFC 4787 REQ-1). It is
// not connected, so an ICMP error cannot make it fail. A flow is a session and
// one remote address. Datagrams from outside get in where there is a flow
// (address and port-dependent filtering). A session ends with its last flow.
//
// Outbound datagrams are sent on the goroutine that read the frame; replies are
// read, in batches, by the host side of a loop, and written as frames.
type udpRelay struct {
	egress *egress
	dns    *dnsForwarder
	loops  []*loop
	writer *datagramWriter

	mu       sync.Mutex // guards all below, and the fields of sessions and flows
	sessions map[netip.AddrPort]*session
	flows    map[flowKey]*flow
	idle     [2]flowList // short and long, each in order of use
	timer    *time.Timer // runs while there are flows
	closed   bool
	limit    int

	// evicted counts flows that made room for others, refused datagrams that
	// the egress did not let out, dropped those that the host did not take or
	// that came in without a flow.
	evicted, refused, dropped atomic.Uint64
}

// flowKey is a flow as the namespace sees it.
type flowKey struct{ guest, remote netip.AddrPort }

// flow is a conversation with one remote address.
type flow struct {
	key     flowKey
	to      netip.AddrPort // the remote address as the host sees it
	session *session
	used    time.Time
	list    *flowList
	flowLinks
}

// session is a socket of the host.
type session struct {
	relay *udpRelay
	loop  *loop
	guest netip.AddrPort
	mac   macAddr
	fd    int
	flows int

	// users are the table and each call that sends or receives.
	users users
}

func newUDPRelay(e *egress, d *dnsForwarder, loops []*loop, w *datagramWriter) *udpRelay {
	return &udpRelay{
		egress:   e,
		dns:      d,
		loops:    loops,
		writer:   w,
		sessions: make(map[netip.AddrPort]*session),
		flows:    make(map[flowKey]*flow),
		idle:     [2]flowList{{idle: shortIdle}, {idle: longIdle}},
		limit:    maxFlows,
	}
}

// handlePacket gets what the stack has: datagrams put together from fragments, and
// those that send has refused. It is false for these, which the stack answers with
// an ICMP error (port unreachable).
func (u *udpRelay) handlePacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	dst := netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort)
	if _, ok := u.egress.destination(dst); !ok && !u.dns.serves(dst) {
		u.refused.Add(1)
		return false
	}
	eth := pkt.LinkHeader().Slice()
	udp := header.UDP(pkt.TransportHeader().Slice())
	if len(eth) < ethernetSize || len(udp) < header.UDPMinimumSize {
		return true
	}
	data := pkt.Data().ToBuffer()
	defer data.Release()
	if int(udp.Length()) != len(udp)+int(data.Size()) {
		return true
	}
	// The link vouches for the checksums of whole datagrams only.
	payload := data.Flatten()
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, id.RemoteAddress, id.LocalAddress, udp.Length())
	if udp.Checksum() != 0 && udp.CalculateChecksum(checksum.Checksum(payload, sum)) != 0xffff {
		return true
	}
	u.send(&datagram{
		src:     netip.AddrPortFrom(fromAddress(id.RemoteAddress), id.RemotePort),
		dst:     dst,
		mac:     macAddr(eth[6:12]),
		payload: payload,
	})
	return true
}

// send relays a datagram of the namespace, and is false when it is not let out.
// The payload is not kept.
func (u *udpRelay) send(d *datagram) bool {
	if u.dns.serves(d.dst) {
		u.dns.query(u.writer, d)
		return true
	}
	f, err := u.acquire(d)
	if err != nil {
		return err != errRefused
	}
	s := f.session
	defer s.release()
	errno := sendDatagram(s.fd, d.payload, f.to, d.segment)
	if errno != 0 && d.segment != 0 {
		errno = sendSegments(s.fd, d, f.to)
	}
	if errno != 0 {
		u.dropped.Add(1)
	}
	return true
}

// sendDatagram sends a payload, cut into datagrams of segment bytes where that is
// not 0.
func sendDatagram(fd int, payload []byte, to netip.AddrPort, segment uint16) unix.Errno {
	var iovs [1]unix.Iovec
	if len(payload) > 0 {
		iovs[0].Base = &payload[0]
		iovs[0].SetLen(len(payload))
	}
	return linux.SendToNonblock(fd, iovs[:], to, segment)
}

// maxSegments is how many datagrams Linux lets a program send as one
// (UDP_MAX_SEGMENTS).
const maxSegments = 128

// sendSegments sends the datagrams one by one, for a path on the host's side that
// does not take them as one: its MTU may be smaller than the namespace's.
func sendSegments(fd int, d *datagram, to netip.AddrPort) unix.Errno {
	if len(d.payload) > maxSegments*int(d.segment) {
		return unix.EMSGSIZE
	}
	for segment := range slices.Chunk(d.payload, int(d.segment)) {
		if errno := sendDatagram(fd, segment, to, 0); errno != 0 {
			return errno
		}
	}
	return 0
}

// errRefused says that a datagram is not let out.
var errRefused = errors.New("refused")

// acquire finds or makes the flow of a datagram. The caller releases its session.
func (u *udpRelay) acquire(d *datagram) (*flow, error) {
	key := flowKey{d.src, d.dst}
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.flows[key]
	if f == nil {
		to, ok := u.egress.destination(d.dst)
		if !ok {
			return nil, errRefused
		}
		var err error
		if f, err = u.open(key, to); err != nil {
			u.dropped.Add(1)
			return nil, err
		}
	}
	u.touch(f, now)
	f.session.mac = d.mac
	f.session.users.enter() // the table's use keeps it open
	return f, nil
}

// open makes a flow, and its session where it is the first.
func (u *udpRelay) open(key flowKey, to netip.AddrPort) (*flow, error) {
	if u.closed {
		return nil, errStopped
	}
	for len(u.flows) >= u.limit {
		u.evict()
	}
	s := u.sessions[key.guest]
	if s == nil {
		var err error
		s, err = u.openSession(key.guest)
		// Without descriptors, the least recently used flow has to give its own.
		for len(u.flows) > 0 && (errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)) {
			u.evict()
			s, err = u.openSession(key.guest)
		}
		if err != nil {
			return nil, err
		}
	}
	f := &flow{key: key, to: to, session: s, list: &u.idle[1]}
	if p := key.remote.Port(); p == dnsPort || p == ntpPort {
		f.list = &u.idle[0]
	}
	s.flows++
	u.flows[key] = f
	f.list.pushBack(f)
	if u.timer == nil {
		u.timer = time.AfterFunc(f.list.idle, u.expire)
	}
	return f, nil
}

// ntpPort is the port of the Network Time Protocol.
const ntpPort = 123

// openSession makes the socket for an address of the namespace.
func (u *udpRelay) openSession(guest netip.AddrPort) (*session, error) {
	domain := unix.AF_INET6
	if guest.Addr().Is4() {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return nil, err
	}
	s := &session{relay: u, loop: u.loops[fd%len(u.loops)], guest: guest, fd: fd}
	s.users.open()
	if err := s.loop.watch(fd, unix.EPOLLIN, s); err != nil {
		unix.Close(fd)
		return nil, err
	}
	u.sessions[guest] = s
	return s, nil
}

// touch notes that a flow is in use.
func (u *udpRelay) touch(f *flow, now time.Time) {
	f.used = now
	f.list.moveToBack(f)
}

// evict ends the flow that was used least recently.
func (u *udpRelay) evict() {
	oldest := u.idle[0].front
	if other := u.idle[1].front; oldest == nil || other != nil && other.used.Before(oldest.used) {
		oldest = other
	}
	u.evicted.Add(1)
	u.end(oldest)
}

// end ends a flow, and its session with the last one.
func (u *udpRelay) end(f *flow) {
	f.list.remove(f)
	delete(u.flows, f.key)
	if f.session.flows--; f.session.flows == 0 {
		delete(u.sessions, f.session.guest)
		f.session.release()
	}
}

// expire ends the flows that were idle for too long.
func (u *udpRelay) expire() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return
	}
	now := time.Now()
	var next time.Duration
	for i := range u.idle {
		l := &u.idle[i]
		for l.front != nil && now.Sub(l.front.used) >= l.idle {
			u.end(l.front)
		}
		if l.front != nil {
			if wait := l.idle - now.Sub(l.front.used); next == 0 || wait < next {
				next = wait
			}
		}
	}
	if next == 0 {
		u.timer = nil
		return
	}
	u.timer.Reset(next)
}

// close ends all flows.
func (u *udpRelay) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	if u.timer != nil {
		u.timer.Stop()
	}
	for _, f := range u.flows {
		u.end(f)
	}
}

// fairBatches is how many batches of one session are received before the others
// of the loop get their turn. Sessions are watched level-triggered.
const fairBatches = 4

// hostEvent implements watcher: it brings replies to the namespace.
func (s *session) hostEvent(l *loop, _ uint32) {
	if !s.users.enter() {
		return
	}
	defer s.release()
	batch := l.receiveBuffers()
	for range fairBatches {
		// An error that was queued on the socket is taken with this. What is
		// left comes with the next event.
		n, err := batch.Receive(s.fd)
		if err != nil {
			return
		}
		for i := range n {
			from := batch.Arrival(i).Peer
			s.relay.reply(s, netip.AddrPortFrom(from.Addr, from.Port), batch.Data(i))
		}
		if n < datagramBatch {
			return
		}
	}
}

// abort implements watcher. The relay's close ends its sessions.
func (s *session) abort() {}

// release gives up the use of the socket.
func (s *session) release() {
	if s.users.leave() {
		s.loop.forget(s.fd)
		unix.Close(s.fd)
	}
}

// reply brings a datagram from outside to the namespace, if it was asked for.
func (u *udpRelay) reply(s *session, from netip.AddrPort, payload []byte) {
	remote := u.egress.source(from)
	now := time.Now()
	u.mu.Lock()
	f := u.flows[flowKey{s.guest, remote}]
	if f == nil || f.session != s {
		u.mu.Unlock()
		u.dropped.Add(1)
		return
	}
	u.touch(f, now)
	mac := s.mac
	u.mu.Unlock()
	u.writer.write(mac, remote, s.guest, payload)
}
