package slirp

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
)

// maxEchoFlows caps the flows of echo requests.
const maxEchoFlows = 1024

// echoIdle is how long a flow of echo requests lives after its last message. It is
// what RFC 5508 (REQ-2) wants at least.
const echoIdle = time.Minute

// echoRelay relays echo requests of the namespace (ping) by ping sockets of the
// host (icmp(7)): datagram sockets that the kernel lets members of some groups
// have, net.ipv4.ping_group_range. Where it does not, nothing is answered. What
// comes back is what the other end has sent: its payload, and a time to live
// of one hop less. Nothing is ever made up; only the gateway's own addresses are
// answered by us (by the stack).
//
// In a flow, the identifier of the messages is the namespace's port, and the
// remote port is 0. The host's kernel gives the socket an identifier of its own,
// which is put in and taken out here.
type echoRelay struct {
	*flowTable
}

func newEchoRelay(e *egress, loops []*loop, w *datagramWriter) *echoRelay {
	r := &echoRelay{}
	r.flowTable = newFlowTable(r, policy.ICMP, e, loops, w, maxEchoFlows, echoIdle, echoIdle)
	return r
}

// handlePacket gets the ICMP messages that the stack has put together from
// fragments, and those to addresses of ours, of which it is false: these the stack
// answers.
func (r *echoRelay) handlePacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	src, dst := fromAddress(id.RemoteAddress), fromAddress(id.LocalAddress)
	if isOurs(&r.egress.subnets, dst) {
		return false
	}
	eth := pkt.LinkHeader().Slice()
	if len(eth) < ethernetSize {
		return true
	}
	data := stack.PayloadSince(pkt.TransportHeader())
	defer data.Release()
	message := data.AsSlice()
	d := datagram{mac: macAddr(eth[6:12]), ttl: packetTTL(pkt)}
	if inspectEcho(message, src, dst, &d) == toEcho {
		r.send(&d)
	}
	return true
}

// inspectEcho checks an ICMP message, and is toEcho for an echo request, which it
// takes apart.
func inspectEcho(message []byte, src, dst netip.Addr, d *datagram) verdict {
	if len(message) < icmpHeaderSize {
		return drop
	}
	request := uint8(header.ICMPv4Echo)
	if src.Is6() {
		request = uint8(header.ICMPv6EchoRequest)
	}
	if message[0] != request {
		return toStack
	}
	if message[1] != 0 || !soundICMP(message, src, dst) {
		return drop
	}
	d.src = netip.AddrPortFrom(src, echoID(message))
	d.dst = netip.AddrPortFrom(dst, 0)
	d.payload, d.segment = message, 0
	return toEcho
}

// echoID is the identifier of an echo message.
func echoID(message []byte) uint16 { return binary.BigEndian.Uint16(message[4:]) }

// send relays an echo request. One that is not let out is answered as prohibited.
func (r *echoRelay) send(d *datagram) {
	f, err := r.acquire(d)
	switch {
	case err == errRefused || err == errProhibited:
		r.refused.Add(1)
		r.undeliverable(d, unix.EACCES)
	case errors.Is(err, unix.EACCES):
		// A host without ping sockets, of which nobody else is to blame.
		r.dropped.Add(1)
	case err != nil:
		r.undeliverable(d, err)
	default:
		f.session.send(d, f.to)
		f.session.release()
	}
}

// socket implements carrier.
func (r *echoRelay) socket(to netip.Addr) (int, error) {
	return r.egress.descriptors.take(newPingSocket(to.Is6()))
}

// newPingSocket makes a ping socket. The error is EACCES where the host has none
// for us.
func newPingSocket(ipv6 bool) (int, error) {
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if ipv6 {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	return linux.Socket(domain, unix.SOCK_DGRAM, proto)
}

// logPingSockets says what to set where the host has no ping sockets for us.
func logPingSockets(log *slog.Logger) {
	fd, err := newPingSocket(false)
	if err == nil {
		linux.Close(fd)
		return
	}
	if errors.Is(err, unix.EACCES) {
		log.Warn("pings to the outside are not answered on this host: to allow them, as root: sysctl -w net.ipv4.ping_group_range='0 2147483647'")
	}
}

// short implements carrier.
func (*echoRelay) short(netip.AddrPort) bool { return true }

// reply implements carrier.
func (r *echoRelay) reply(s *session, from netip.AddrPort, message []byte, ttl uint8) {
	remote := netip.AddrPortFrom(r.egress.source(from).Addr(), 0)
	mac, ok := r.answered(s, remote, nil)
	if !ok || len(message) < icmpHeaderSize {
		return
	}
	out := outgoing{to: mac, src: remote.Addr(), dst: s.guest.Addr(), proto: icmpProtocol(remote.Addr()), ttl: hop(ttl)}
	head := transportHeader(message)
	binary.BigEndian.PutUint16(head[4:], s.guest.Port())
	r.writer.forwardICMP(&out, &head, message[icmpHeaderSize:])
}

// icmpProtocol is the number of ICMP in an address' family.
func icmpProtocol(a netip.Addr) tcpip.TransportProtocolNumber {
	if a.Is6() {
		return header.ICMPv6ProtocolNumber
	}
	return header.ICMPv4ProtocolNumber
}

// quote implements carrier. What came back has the identifier of the host's
// socket, with which it was sent, in its header and in its checksum.
func (*echoRelay) quote(out *outgoing, guest, remote netip.AddrPort, message []byte) quotation {
	out.proto = icmpProtocol(remote.Addr())
	if len(message) < icmpHeaderSize {
		message = make([]byte, icmpHeaderSize)
	}
	head := transportHeader(message)
	sum := binary.BigEndian.Uint16(head[icmpChecksumOffset:])
	sum = checksum.Combine(^sum, ^echoID(head[:]))
	sum = checksum.Combine(sum, guest.Port())
	binary.BigEndian.PutUint16(head[icmpChecksumOffset:], ^sum)
	binary.BigEndian.PutUint16(head[4:], guest.Port())
	return quoteHeaders(out, &head, message[icmpHeaderSize:])
}
