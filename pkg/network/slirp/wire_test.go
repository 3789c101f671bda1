package slirp

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/testenv"
)

// next returns the next frame from the engine for which want is true.
func (r *rig) next(want func(frame []byte) bool) []byte {
	r.t.Helper()
	buf := make([]byte, vnetHeaderSize+maxFrame)
	r.wire.SetReadDeadline(time.Now().Add(patience))
	for {
		n, err := r.wire.Read(buf)
		if err != nil {
			r.t.Fatalf("waiting for a frame: %v", err)
		}
		if frame := buf[vnetHeaderSize:n]; want(frame) {
			return slices.Clone(frame)
		}
	}
}

// introduce tells the engine where the child's addresses are.
func (r *rig) introduce() {
	r.t.Helper()
	r.send(arpRequest(r.net.subnets[0].gateway), vnetHeader{})
	reply := r.next(func(f []byte) bool { return header.Ethernet(f).Type() == header.ARPProtocolNumber })
	arp := header.ARP(reply[ethernetSize:])
	if arp.Op() != header.ARPReply || !bytes.Equal(arp.HardwareAddressSender(), gatewayMAC[:]) {
		r.t.Fatalf("got %x for an ARP request", reply)
	}
	// A solicitation that says who asks.
	p := make([]byte, header.ICMPv6NeighborSolicitMinimumSize+8)
	p[0] = uint8(header.ICMPv6NeighborSolicit)
	copy(p[8:], r.net.subnets[1].gateway.AsSlice())
	p[24], p[25] = 1, 1 // source link-layer address, RFC 4861 4.6.1
	copy(p[26:], guestMAC[:])
	r.send(icmpv6Frame(r.net.subnets[1].gateway, p), vnetHeader{})
	r.next(isICMPv6(header.ICMPv6NeighborAdvert))
}

func isICMPv6(want header.ICMPv6Type) func([]byte) bool {
	return func(f []byte) bool {
		p := f[ethernetSize:]
		return header.Ethernet(f).Type() == header.IPv6ProtocolNumber && len(p) > 40 &&
			header.IPv6(p).NextHeader() == uint8(header.ICMPv6ProtocolNumber) && header.ICMPv6(p[40:]).Type() == want
	}
}

func isICMPv4(want header.ICMPv4Type) func([]byte) bool {
	return func(f []byte) bool {
		p := f[ethernetSize:]
		return header.Ethernet(f).Type() == header.IPv4ProtocolNumber && len(p) > 20 &&
			header.IPv4(p).Protocol() == uint8(header.ICMPv4ProtocolNumber) && header.ICMPv4(p[20:]).Type() == want
	}
}

// isReset is true for a reset from an address.
func isReset(from netip.AddrPort) func([]byte) bool {
	return func(f []byte) bool {
		p := f[ethernetSize:]
		var src netip.Addr
		switch header.Ethernet(f).Type() {
		case header.IPv4ProtocolNumber:
			src = netip.AddrFrom4([4]byte(p[12:16]))
			if p[9] != uint8(header.TCPProtocolNumber) {
				return false
			}
			p = p[20:]
		case header.IPv6ProtocolNumber:
			src = netip.AddrFrom16([16]byte(p[8:24]))
			if p[6] != uint8(header.TCPProtocolNumber) {
				return false
			}
			p = p[40:]
		default:
			return false
		}
		tcp := header.TCP(p)
		return src == from.Addr() && tcp.SourcePort() == from.Port() && tcp.Flags().Contains(header.TCPFlagRst)
	}
}

func TestEverySpellingOfLoopbackIsResetAtOnce(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	r.introduce()
	touched := make(chan struct{}, 100)
	server := listen(t, "127.0.0.1:0", func(*net.TCPConn) { touched <- struct{}{} })
	for _, s := range []string{
		"127.0.0.1", "127.1.2.3", "0.0.0.1", "10.0.2.3", "10.0.2.77",
		"::1", "::127.0.0.1", "fd67:6174:656b::3", "fd67:6174:656b::77", "fe80::1",
	} {
		t.Run(s, func(t *testing.T) {
			to := netip.AddrPortFrom(netip.MustParseAddr(s), server.Port())
			from := netip.AddrPortFrom(childIPv4, 4000)
			if to.Addr().Is6() {
				from = netip.AddrPortFrom(childIPv6, 4000)
			}
			r.send(synFrame(from, to), vnetHeader{})
			r.next(isReset(to))
		})
	}
	// IPv4-mapped addresses are not for the wire at all; the stack drops them.
	for _, s := range []string{"::ffff:127.0.0.1", "::ffff:0.0.0.0"} {
		r.send(synFrame(netip.AddrPortFrom(childIPv6, 4000), netip.AddrPortFrom(netip.MustParseAddr(s), server.Port())), vnetHeader{})
	}
	last := netip.AddrPortFrom(netip.IPv6Loopback(), server.Port())
	r.send(synFrame(netip.AddrPortFrom(childIPv6, 4001), last), vnetHeader{})
	r.next(isReset(last))
	if len(touched) > 0 {
		t.Error("the host's loopback was reached")
	}
}

// echoRequest is an IPv4 echo request.
func echoRequest(to netip.Addr) []byte {
	icmp := header.ICMPv4(append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, "payload"...))
	icmp.SetChecksum(^checksum.Checksum(icmp, 0))
	return ipFrame(childIPv4, to, header.ICMPv4ProtocolNumber, icmp)
}

// The gateway answers for itself and for nobody else: a reply that nobody sent
// would be a lie.
func TestPingsAreNotForged(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	r.introduce()
	r.send(echoRequest(worldIPv4), vnetHeader{})
	r.send(echoRequest(r.net.subnets[0].gateway), vnetHeader{})
	reply := r.next(isICMPv4(header.ICMPv4EchoReply))
	if src := netip.AddrFrom4([4]byte(reply[ethernetSize+12:])); src != r.net.subnets[0].gateway {
		t.Errorf("an echo reply from %v", src)
	}
	ping := func(to netip.Addr) { r.send(icmpv6Frame(to, []byte{128, 0, 0, 0, 0, 1, 0, 1}), vnetHeader{}) }
	ping(worldIPv6)
	ping(r.net.subnets[1].gateway)
	reply = r.next(isICMPv6(header.ICMPv6EchoReply))
	if src := netip.AddrFrom16([16]byte(reply[ethernetSize+8:])); src != r.net.subnets[1].gateway {
		t.Errorf("an echo reply from %v", src)
	}
}

// deafListener is an address on which a connection is neither made nor refused:
// a listener whose queue is full.
func deafListener(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(loopbackIPv4, uint16(sa.(*unix.SockaddrInet4).Port))
	c, err := net.Dial("tcp", at.String()) // fills the queue
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return at
}

// While a dial lasts its socket is told of ICMP errors, and a trace's has few hops. A
// connection is neither ended by an error that passes, nor short of hops.
func TestADialThatTakesLongLeavesNoTraceOnItsConnection(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	r.introduce()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }); err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	full, err := net.Dial("tcp", at.String()) // which fills the queue
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	from, to := netip.AddrPortFrom(childIPv4, 4000), r.gateway(at)
	r.send(withTTL(synFrame(from, to), 5), vnetHeader{})
	option := func(level, name int) (value int) {
		r.isTrue(func() bool {
			for _, relay := range r.e.tcp.relays {
				value, err = unix.GetsockoptInt(relay.fd, level, name)
			}
			return true
		})
		return value
	}
	testenv.Until(t, "the dial", func() bool { return dialsOf(r) == 1 })
	if ttl, errors := option(unix.SOL_IP, unix.IP_TTL), option(unix.SOL_IP, unix.IP_RECVERR); ttl != 4 || errors != 1 {
		t.Errorf("while it lasts it has %d hops, and is told of errors: %d", ttl, errors)
	}
	if c, err := l.Accept(); err == nil {
		c.Close()
	}
	testenv.Until(t, "the connection", func() bool { return dialsOf(r) == 0 && len(r.relays()) == 1 })
	if ttl, errors := option(unix.SOL_IP, unix.IP_TTL), option(unix.SOL_IP, unix.IP_RECVERR); ttl < traceTTL || errors != 0 {
		t.Errorf("then it has %d hops, and is told of errors: %d", ttl, errors)
	}
}

// dialsOf counts the dials that are under way.
func dialsOf(r *rig) int {
	n := 0
	r.e.tcp.mu.Lock()
	defer r.e.tcp.mu.Unlock()
	for _, relay := range r.e.tcp.relays {
		if relay.dial != nil {
			n++
		}
	}
	return n
}

func TestDialEndsWhenTheGuestResets(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	r.introduce()
	from, to := netip.AddrPortFrom(childIPv4, 4000), r.gateway(deafListener(t))
	syn := synFrame(from, to)
	r.send(syn, vnetHeader{})
	testenv.Until(t, "the dial", func() bool { return dialsOf(r) == 1 })
	r.send(syn, vnetHeader{}) // repeated, and still one dial
	reset := changed(syn, func(ip []byte) {
		tcp := header.TCP(ip[20:])
		tcp[13] = uint8(header.TCPFlagRst)
		tcp.SetChecksum(0)
		tcp.SetChecksum(^checksum.Checksum(tcp, header.PseudoHeaderChecksum(header.TCPProtocolNumber, toAddress(from.Addr()), toAddress(to.Addr()), uint16(len(tcp)))))
	})
	r.send(reset, vnetHeader{})
	testenv.Until(t, "the dial to be cancelled", func() bool { return dialsOf(r) == 0 })
}

func TestDialEndsWithTheEngine(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	r.introduce()
	r.send(synFrame(netip.AddrPortFrom(childIPv4, 4000), r.gateway(deafListener(t))), vnetHeader{})
	testenv.Until(t, "the dial", func() bool { return dialsOf(r) == 1 })
	// The cleanup stops the engine, and TestMain looks for what is left.
}

// Dials to where nobody answers must not hold up others.
func TestDialsThatHangDoNotDelayOthers(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	r.introduce()
	hang := r.gateway(deafListener(t))
	const n = 1000
	for port := range uint16(n) {
		r.send(synFrame(netip.AddrPortFrom(childIPv4, 10000+port), hang), vnetHeader{})
	}
	testenv.Until(t, "the dials", func() bool { return dialsOf(r) >= n/2 })
	nobody := r.gateway(nobody(t))
	r.send(synFrame(netip.AddrPortFrom(childIPv4, 4000), nobody), vnetHeader{})
	r.next(isReset(nobody))
}

func TestDialPatienceFollowsTheRepeatedSYN(t *testing.T) {
	const start = time.Hour
	for _, test := range []struct {
		name       string
		last, want time.Duration // of the SYNs, and when to give up, after the first
	}{
		{"one SYN", 0, giveUpGrace},
		{"the second after a second", time.Second, 2*time.Second + giveUpGrace},
		{"the fifth after 15 seconds", 15 * time.Second, 30*time.Second + giveUpGrace},
		{"the last", 2 * time.Minute, dialTimeout},
	} {
		d := &dial{first: start, last: start + test.last}
		if got := d.due() - start; got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestFragmentsAreReassembled(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	got := make(chan string, 1)
	server := listenUDP(t, "127.0.0.1:0", func(_ *net.UDPConn, msg []byte, _ netip.AddrPort) { got <- string(msg) })
	whole := udpFrame(netip.AddrPortFrom(childIPv4, 4000), r.gateway(server), "first part second part")
	packet := whole[ethernetSize+header.IPv4MinimumSize:]
	const cut = 24 // bytes of the packet, a multiple of 8
	piece := func(p []byte, offset int, more bool) []byte {
		f := ipFrame(childIPv4, r.net.subnets[0].gateway, header.UDPProtocolNumber, p)
		return changed(f, func(ip []byte) {
			ip[4], ip[5] = 0, 7 // the datagram's id
			ip[6], ip[7] = 0, byte(offset/8)
			if more {
				ip[6] |= 0x20
			}
		})
	}
	bad := slices.Clone(packet)
	bad[len(bad)-1] ^= 1
	for _, p := range [][]byte{bad, packet} { // the first has a wrong checksum
		r.send(piece(p[cut:], cut, false), vnetHeader{}) // out of order
		r.send(piece(p[:cut], 0, true), vnetHeader{})
	}
	if msg := <-got; msg != "first part second part" {
		t.Errorf("got %q", msg)
	}
}

func TestAHastilyRepeatedSYNDoesNotOvertakeTheEndOfItsDial(t *testing.T) {
	r := newRig(t, rigOptions{bare: true})
	r.introduce()
	to, from := netip.AddrPortFrom(r.net.subnets[0].gateway, 9), netip.AddrPortFrom(childIPv4, 4000)
	// Each is refused, and some come while the one before is done with.
	for range 20_000 {
		r.send(synFrame(from, to), vnetHeader{})
	}
	r.next(isReset(to))
}

func TestTheChildIsAnsweredWithoutAQuestionOfWhereItIs(t *testing.T) {
	r := newRig(t, rigOptions{bare: true}) // which answers neither ARP nor neighbour solicitations
	for i, from := range []netip.Addr{childIPv4, childIPv6} {
		to := netip.AddrPortFrom(r.net.subnets[i].gateway, 9)
		r.send(synFrame(netip.AddrPortFrom(from, 4000), to), vnetHeader{})
		r.next(isReset(to))
	}
}

// isAnswered is true for the answer to a SYN from an address.
func isAnswered(from netip.AddrPort) func([]byte) bool {
	return func(f []byte) bool {
		p := f[ethernetSize:]
		if header.Ethernet(f).Type() != header.IPv4ProtocolNumber || p[9] != uint8(header.TCPProtocolNumber) || netip.AddrFrom4([4]byte(p[12:16])) != from.Addr() {
			return false
		}
		tcp := header.TCP(p[20:])
		return tcp.SourcePort() == from.Port() && tcp.Flags().Contains(header.TCPFlagSyn|header.TCPFlagAck)
	}
}

// What is for the gateway itself has no hop to go.
func TestOneHopIsEnoughToTheGateway(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	r.introduce()
	got := make(chan string, 1)
	datagrams := listenUDP(t, "127.0.0.1:0", func(_ *net.UDPConn, msg []byte, _ netip.AddrPort) { got <- string(msg) })
	from := netip.AddrPortFrom(childIPv4, 4000)
	for _, ttl := range []uint8{64, 1} {
		r.send(withTTL(udpFrame(from, r.gateway(datagrams), "near"), ttl), vnetHeader{})
		select {
		case <-got:
		case <-time.After(patience):
			t.Errorf("a datagram with %d hops to go does not arrive", ttl)
		}
	}
	server := r.gateway(listen(t, "127.0.0.1:0", func(*net.TCPConn) {}))
	r.send(withTTL(synFrame(from, server), 1), vnetHeader{})
	r.next(isAnswered(server))
}
