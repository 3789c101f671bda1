package slirp

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
)

// maxFlows caps the UDP flows.
const maxFlows = 16384

// How long a UDP flow lives after its last datagram. A question and its answer, as
// in DNS and NTP, are over after seconds; RFC 4787 (REQ-5) wants two minutes at
// least for all others, and recommends five.
const (
	shortIdle = 10 * time.Second
	longIdle  = 5 * time.Minute
)

// Filtering says which datagrams from outside reach a socket of the namespace that
// has sent (RFC 4787, 5). Whatever it is, the outside sees one address and port of
// the host for a socket, wherever it sends.
type Filtering int

const (
	// FilterAddressAndPort lets in what comes from an address and port that the
	// socket has sent to. It is the zero value, and what a firewall does that lets
	// answers in.
	FilterAddressAndPort Filtering = iota

	// FilterAddress lets in what comes from an address that the socket has sent to,
	// from any port of it.
	FilterAddress

	// FilterNone lets in what comes from everywhere, for as long as the socket has
	// a flow. Peers that find each other through a third (games, WebRTC without a
	// relay) need no more than FilterAddressAndPort where both sides send, and this
	// where only one does.
	FilterNone
)

// udpRelay relays UDP between frames and sockets of the host, without the stack.
//
// Outbound datagrams are sent by the loop that read the frames, several of a flow at
// once (run.go); replies are read, in batches, by the loop of their socket, and
// written as frames. What the
// namespace wants of the path, its time to live less one hop and whether its
// datagram may be fragmented, the socket of the host wants as well.
type udpRelay struct {
	*flowTable
	dns       *dnsForwarder
	filtering Filtering
	passes    func(*session, netip.AddrPort) bool // u.accepts
	run       run
}

func newUDPRelay(e *egress, d *dnsForwarder, loops []*loop, w *datagramWriter, f Filtering) *udpRelay {
	u := &udpRelay{dns: d, filtering: f}
	u.flowTable = newFlowTable(u, policy.UDP, e, loops, w, maxFlows, shortIdle, longIdle)
	u.peers = f == FilterAddress
	u.passes = u.accepts
	return u
}

// refuses says whether nobody is there for a datagram, and counts it.
func (u *udpRelay) refuses(dst netip.AddrPort) bool {
	_, ruling := u.egress.destination(policy.UDP, dst)
	if ruling != nobodyThere || u.dns.serves(dst) {
		return false
	}
	u.refused.Add(1)
	return true
}

// take takes the rest of a datagram, of which the addresses are known, out of a packet
// of the stack. It is false where that is broken: the link vouches for the checksums
// of whole datagrams only.
func (d *datagram) take(pkt *stack.PacketBuffer) bool {
	eth := pkt.LinkHeader().Slice()
	udp := header.UDP(pkt.TransportHeader().Slice())
	if len(eth) < ethernetSize || len(udp) < header.UDPMinimumSize {
		return false
	}
	data := pkt.Data().ToBuffer()
	defer data.Release()
	if int(udp.Length()) != len(udp)+int(data.Size()) {
		return false
	}
	d.mac, d.payload = macAddr(eth[6:12]), data.Flatten()
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, toAddress(d.src.Addr()), toAddress(d.dst.Addr()), udp.Length())
	return udp.Checksum() == 0 || udp.CalculateChecksum(checksum.Checksum(d.payload, sum)) == 0xffff
}

// packetTTL is the time to live, or hop limit, of a packet of the stack.
func packetTTL(pkt *stack.PacketBuffer) uint8 {
	ip := pkt.NetworkHeader().Slice()
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		return header.IPv4(ip).TTL()
	}
	return header.IPv6(ip).HopLimit()
}

// send relays a datagram of the namespace, and is false when it is not let out.
// The payload is not kept. It may wait for flush.
func (u *udpRelay) send(d *datagram) bool {
	if u.run.add(d) {
		return true
	}
	u.run.flush()
	if u.dns.serves(d.dst) {
		u.dns.query(u.writer, d)
		return true
	}
	f, err := u.acquire(d)
	switch {
	case err == errRefused:
		return false
	case err == errProhibited:
		u.refused.Add(1)
		u.undeliverable(d, unix.EACCES)
		return true
	case err != nil:
		u.undeliverable(d, err)
		return true
	}
	if !u.run.begin(d, f.session, f.to) {
		f.session.send(d, f.to)
		f.session.release()
	}
	return true
}

// flush sends what waits.
func (u *udpRelay) flush() { u.run.flush() }

// socket implements carrier.
func (u *udpRelay) socket(to netip.Addr) (int, error) {
	domain := unix.AF_INET6
	if to.Is4() {
		domain = unix.AF_INET
	}
	fd, err := u.egress.descriptors.take(linux.Socket(domain, unix.SOCK_DGRAM, unix.IPPROTO_UDP))
	if err == nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveRoom) // the kernel gives as much as it may
	}
	return fd, err
}

// receiveRoom is how many bytes of datagrams from outside may wait for a loop, which
// is one for many sockets and not always on a processor: the default of 208 KiB, of
// which a datagram of 1400 bytes takes more than two, is full after 5 ms of 200 Mbit/s.
// It is no memory that is held.
const receiveRoom = 1 << 20

// ntpPort is the port of the Network Time Protocol.
const ntpPort = 123

// short implements carrier.
func (u *udpRelay) short(remote netip.AddrPort) bool {
	return remote.Port() == dnsPort || remote.Port() == ntpPort
}

// reply implements carrier.
func (u *udpRelay) reply(s *session, from netip.AddrPort, payload []byte, ttl uint8) {
	remote := s.known(from)
	if mac, ok := u.answered(s, remote, u.passes); ok {
		u.writer.forward(mac, remote, s.guest, payload, hop(ttl))
	}
}

// refuse ends the flow of a datagram that nobody in the namespace takes any more. Where
// the flow was the last of its socket, the host's kernel refuses what comes next: so
// one who goes on to send learns of it, and does not keep the flow.
func (u *udpRelay) refuse(r *refusal) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.flows[flowKey{r.at, r.sender}]
	if f == nil {
		return false
	}
	u.end(f)
	return true
}

// accepts says whether a session takes what comes from an address that it has no
// flow with. Where nothing may be sent to, nothing comes from either, and what a lead
// leads to answers only those who have taken it. The caller holds the table's lock.
func (u *udpRelay) accepts(s *session, remote netip.AddrPort) bool {
	if s.lead != nil {
		return false
	}
	switch u.filtering {
	case FilterAddressAndPort:
		return false
	case FilterAddress:
		if s.peers[remote.Addr()] == 0 {
			return false
		}
	}
	w, ruling := u.egress.destination(policy.UDP, remote)
	return ruling == letOut && w.lead == nil
}

// quote implements carrier.
func (u *udpRelay) quote(out *outgoing, guest, remote netip.AddrPort, payload []byte) quotation {
	out.proto = header.UDPProtocolNumber
	var head transportHeader
	putUDP(head[:], guest, remote, payload, false)
	return quoteHeaders(out, &head, payload)
}
