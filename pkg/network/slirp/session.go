package slirp

import (
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// session is a socket of the host.
type session struct {
	sessionKey
	table *flowTable
	loop  *loop
	mac   macAddr
	fd    int
	ipv6  bool // of the socket
	flows int
	peers map[netip.Addr]int // flows of each remote address; nil where the table does not ask

	// path is what the socket is set to. It belongs to the goroutine that reads
	// frames.
	path path

	// single says that the host's side does not take several datagrams as one. It
	// belongs to the goroutine that reads frames, as well.
	single bool

	notices sync.Mutex // held while the error queue is read; guards mtu
	mtu     uint32     // of the last path that did not take a datagram

	// users are the table and each call that sends or receives.
	users users
}

// path is what the namespace wants of the way of a datagram. The zero value is
// none that a datagram has.
type path struct {
	ttl   uint8 // on the host's side, less one hop already
	whole bool  // not to be fragmented
}

// fairBatches is how many batches of one session are received before the others
// of the loop get their turn. Sessions are watched level-triggered.
const fairBatches = 4

// hostEvent implements watcher: it brings replies and errors to the namespace.
func (s *session) hostEvent(l *loop, events uint32) {
	if !s.users.enter() {
		return
	}
	defer s.release()
	if events&unix.EPOLLERR != 0 {
		s.readNotices()
	}
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
			s.table.carrier.reply(s, netip.AddrPortFrom(from.Addr, from.Port), batch.Data(i), batch.TTL(i))
		}
		if n < datagramBatch {
			return
		}
	}
}

// abort implements watcher. The table's close ends its sessions.
func (s *session) abort() {}

// release gives up the use of the socket.
func (s *session) release() {
	if s.users.leave() {
		s.loop.forget(s.fd)
		linux.Close(s.fd)
	}
}

// send sends a datagram of a flow, and tells the namespace what keeps it from
// leaving.
func (s *session) send(d *datagram, to netip.AddrPort) {
	if !s.setPath(path{hop(d.ttl), d.whole}) {
		s.table.dropped.Add(1)
		return
	}
	payload, errno := d.payload, s.transmit(d.payload, to, d.segment)
	if errno != 0 && d.segment != 0 {
		payload, errno = s.sendSegments(d, to)
		s.single = errno == 0
	}
	if errno == 0 {
		return
	}
	s.table.dropped.Add(1)
	var e icmpError
	var ok bool
	ipv6 := d.dst.Addr().Is6()
	if errno == unix.EMSGSIZE {
		// The path's MTU is in the error queue.
		s.readNotices()
		s.notices.Lock()
		e, ok = tooBig(s.mtu, ipv6), s.mtu != 0 && d.whole
		s.notices.Unlock()
	} else {
		e, ok = unreachable(errno, ipv6)
	}
	if ok {
		s.table.tell(d.mac, e, flowKey{d.src, d.dst}, payload, d.ttl)
	}
}

// setPath has the socket send as p says.
func (s *session) setPath(p path) bool {
	if s.path == p {
		return true
	}
	if err := linux.SetPath(s.fd, s.ipv6, p.ttl, p.whole); err != nil {
		return false
	}
	s.path = p
	return true
}

// transmit sends a payload, cut into datagrams of segment bytes where that is not
// 0.
func (s *session) transmit(payload []byte, to netip.AddrPort, segment uint16) unix.Errno {
	errno := sendDatagram(s.fd, payload, to, segment)
	switch errno {
	case 0, unix.EAGAIN, unix.EMSGSIZE, unix.ENOBUFS, unix.EINVAL:
		return errno
	}
	// A call tells first of an error that came for an earlier datagram, perhaps to
	// somebody else. Only what comes twice is about this one.
	return sendDatagram(s.fd, payload, to, segment)
}

// maxSegments is how many datagrams Linux lets a program send as one
// (UDP_MAX_SEGMENTS).
const maxSegments = 128

// sendSegments sends the datagrams one by one, for a path on the host's side that
// does not take them as one: its MTU may be smaller than the namespace's. It
// returns the one that it does not take either.
func (s *session) sendSegments(d *datagram, to netip.AddrPort) ([]byte, unix.Errno) {
	if len(d.payload) > maxSegments*int(d.segment) {
		return d.payload, unix.EMSGSIZE
	}
	for segment := range slices.Chunk(d.payload, int(d.segment)) {
		if errno := s.transmit(segment, to, 0); errno != 0 {
			return segment, errno
		}
	}
	return nil, 0
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

// known is the address under which the namespace knows one of the host's side. It
// is the zero value for one that a lead does not lead to.
func (s *session) known(from netip.AddrPort) netip.AddrPort {
	switch {
	case s.lead == nil:
		return s.table.egress.source(from)
	case from == s.lead.to:
		return s.lead.at
	default:
		return netip.AddrPort{}
	}
}

// fairNotices is how many entries of a session's error queue are read before the
// others of the loop get their turn.
const fairNotices = 64

// noticeBuffers hold what came back of a datagram. A quotation has room for no
// more.
var noticeBuffers = sync.Pool{New: func() any { return new([maxErrorIPv6]byte) }}

// readNotices tells the namespace of what is in the socket's error queue.
func (s *session) readNotices() {
	buf := noticeBuffers.Get().(*[maxErrorIPv6]byte)
	defer noticeBuffers.Put(buf)
	s.notices.Lock()
	defer s.notices.Unlock()
	for range fairNotices {
		n, errno := linux.ReceiveNotice(s.fd, buf[:])
		if errno != 0 {
			return
		}
		if n.Errno == unix.EMSGSIZE && !n.ICMP {
			s.mtu = n.Info // the sender has the datagram, and tells
			continue
		}
		s.notice(&n, buf[:n.Len])
	}
}

// notice tells the namespace of one.
func (s *session) notice(n *linux.Notice, payload []byte) {
	t := s.table
	remote := s.known(netip.AddrPortFrom(n.Peer.Addr, n.Peer.Port))
	t.mu.Lock()
	f := t.flows[flowKey{s.guest, remote}]
	mac := s.mac
	t.mu.Unlock()
	if f == nil {
		return
	}
	var from netip.Addr
	if s.lead != nil {
		n.ICMP = false // the namespace's way ends at the gateway
	} else if n.Offender.IsValid() {
		from = t.egress.source(netip.AddrPortFrom(n.Offender, 0)).Addr()
	}
	if e, ok := passedOn(n, from, remote.Addr().Is6()); ok {
		t.tell(mac, e, f.key, payload, 1)
	}
}
