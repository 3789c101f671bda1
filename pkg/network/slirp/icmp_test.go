package slirp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/linux"
)

// icmpMessage takes a frame with an ICMP message apart, after a look at its
// checksums.
func icmpMessage(t *testing.T, frame []byte) (src netip.Addr, message []byte) {
	t.Helper()
	p := frame[ethernetSize:]
	if header.IPVersion(p) == header.IPv4Version {
		if checksum.Checksum(p[:20], 0) != 0xffff || int(header.IPv4(p).TotalLength()) != len(p) {
			t.Errorf("a broken IPv4 header: %x", p[:20])
		}
		if checksum.Checksum(p[20:], 0) != 0xffff {
			t.Errorf("a wrong checksum: %x", p[20:])
		}
		return netip.AddrFrom4([4]byte(p[12:16])), p[20:]
	}
	sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, tcpip.AddrFrom16Slice(p[8:24]), tcpip.AddrFrom16Slice(p[24:40]), uint16(len(p)-40))
	if checksum.Checksum(p[40:], sum) != 0xffff || int(header.IPv6(p).PayloadLength()) != len(p)-40 {
		t.Errorf("a wrong checksum or length: %x", p)
	}
	return netip.AddrFrom16([16]byte(p[8:24])), p[40:]
}

func TestTimeToLiveEndsAtTheGateway(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	payload := string(make([]byte, 1400))
	for name, test := range map[string]struct {
		frame   []byte
		isError func([]byte) bool
		from    netip.Addr
		quoted  int
	}{
		"IPv4": {udpFrame(netip.AddrPortFrom(childIPv4, 4000), netip.AddrPortFrom(worldIPv4, 33434), payload),
			isICMPv4(header.ICMPv4TimeExceeded), r.net.subnets[0].gateway, maxErrorIPv4 - 28},
		"IPv6": {udpFrame(netip.AddrPortFrom(childIPv6, 4000), netip.AddrPortFrom(worldIPv6, 33434), payload),
			isICMPv6(header.ICMPv6TimeExceeded), r.net.subnets[1].gateway, maxErrorIPv6 - 48},
	} {
		t.Run(name, func(t *testing.T) {
			frame := withTTL(test.frame, 1)
			r.send(frame, vnetHeader{flags: vnetNeedsChecksum})
			from, message := icmpMessage(t, r.next(test.isError))
			if from != test.from {
				t.Errorf("from %v, want the gateway, %v", from, test.from)
			}
			if quoted := message[icmpHeaderSize:]; !bytes.Equal(quoted, frame[ethernetSize:][:test.quoted]) {
				t.Errorf("it quotes %d bytes, want the first %d of the packet", len(quoted), test.quoted)
			}
		})
	}
}

func TestQuotationsOfEchoRequestsHaveTheGuestsIdentifier(t *testing.T) {
	guest, remote := netip.AddrPortFrom(childIPv4, 0x1234), netip.AddrPortFrom(worldIPv4, 0)
	sent := []byte{8, 0, 0, 0, 0xab, 0xcd, 0, 9, 'p', 'a', 'y'} // with the host's identifier
	binary.BigEndian.PutUint16(sent[2:], ^checksum.Checksum(sent, 0))
	out := outgoing{src: guest.Addr(), dst: remote.Addr(), ttl: 1}
	q := (&echoRelay{}).quote(&out, guest, remote, sent)
	got := append(bytes.Clone(q.headers[:q.n]), q.tail...)
	message := got[header.IPv4MinimumSize:]
	if echoID(message) != guest.Port() || checksum.Checksum(message, 0) != 0xffff || !bytes.Equal(message[6:], sent[6:]) {
		t.Errorf("quoted %x of %x, want the identifier %#x and a right checksum", message, sent, guest.Port())
	}
	if short := (&echoRelay{}).quote(&out, guest, remote, sent[:3]); short.n != header.IPv4MinimumSize+icmpHeaderSize {
		t.Errorf("%d bytes are quoted of less than a header", short.n)
	}
}

func TestErrorsOfTheHostBecomeICMP(t *testing.T) {
	router := netip.MustParseAddr("192.0.2.1")
	const none = 255 // no message
	for _, test := range []struct {
		name       string
		notice     linux.Notice
		kind, code uint8 // over IPv4
		info       uint32
		kind6      uint8 // over IPv6
		code6      uint8
	}{
		{name: "no route", notice: linux.Notice{Errno: unix.ENETUNREACH}, kind: 3, code: 0, kind6: 1, code6: 0},
		{name: "no such family", notice: linux.Notice{Errno: unix.EAFNOSUPPORT}, kind: 3, code: 0, kind6: 1, code6: 0},
		{name: "no such host", notice: linux.Notice{Errno: unix.EHOSTUNREACH}, kind: 3, code: 1, kind6: 1, code6: 3},
		{name: "prohibited", notice: linux.Notice{Errno: unix.EACCES}, kind: 3, code: 13, kind6: 1, code6: 1},
		{name: "a firewall's no", notice: linux.Notice{Errno: unix.EPERM}, kind: 3, code: 13, kind6: 1, code6: 1},
		{name: "refused", notice: linux.Notice{Errno: unix.ECONNREFUSED}, kind: 3, code: 3, kind6: 1, code6: 4},
		{name: "too big", notice: linux.Notice{Errno: unix.EMSGSIZE, Info: 1400}, kind: 3, code: 4, info: 1400, kind6: 2},
		{name: "no memory", notice: linux.Notice{Errno: unix.ENOBUFS}, kind: none, kind6: none},
	} {
		for _, ipv6 := range []bool{false, true} {
			kind, code := test.kind, test.code
			if ipv6 {
				kind, code = test.kind6, test.code6
			}
			e, ok := passedOn(&test.notice, netip.Addr{}, ipv6)
			if kind == none {
				if ok {
					t.Errorf("%s: %+v, want no message", test.name, e)
				}
				continue
			}
			if want := (icmpError{kind: kind, code: code, info: test.info}); !ok || e != want {
				t.Errorf("%s, IPv6 %v: %+v, %v, want %+v", test.name, ipv6, e, ok, want)
			}
		}
	}
	for _, test := range []struct {
		name   string
		notice linux.Notice
		ipv6   bool
		want   icmpError // without kind, code, from
		ok     bool
	}{
		{"time exceeded", linux.Notice{ICMP: true, Type: 11, TTL: 62}, false, icmpError{ttl: 61}, true},
		{"fragmentation needed", linux.Notice{ICMP: true, Type: 3, Code: 4, Info: 1300, TTL: 64}, false, icmpError{ttl: 63, info: 1300}, true},
		{"prohibited", linux.Notice{ICMP: true, Type: 3, Code: 13, Info: 7, TTL: 64}, false, icmpError{ttl: 63}, true},
		{"a bad header", linux.Notice{ICMP: true, Type: 12, Info: 20, TTL: 64}, false, icmpError{ttl: 63, info: 20 << 24}, true},
		{"source quench", linux.Notice{ICMP: true, Type: 4}, false, icmpError{}, false},
		{"packet too big", linux.Notice{ICMP: true, Type: 2, Info: 1300, TTL: 1}, true, icmpError{ttl: 1, info: 1300}, true},
		{"time exceeded over IPv6", linux.Notice{ICMP: true, Type: 3}, true, icmpError{ttl: 64}, true},
		{"an echo reply", linux.Notice{ICMP: true, Type: 129}, true, icmpError{}, false},
	} {
		e, ok := passedOn(&test.notice, router, test.ipv6)
		if test.ok {
			test.want.kind, test.want.code, test.want.from = test.notice.Type, test.notice.Code, router
		}
		if ok != test.ok || e != test.want {
			t.Errorf("%s: %+v, %v, want %+v, %v", test.name, e, ok, test.want, test.ok)
		}
	}
}

// What is larger than the MTU is fragmented, and has a right checksum when put
// together.
func TestLargeEchoRepliesAreFragmented(t *testing.T) {
	r := newRig(t, rigOptions{bare: true})
	payload := bytes.Repeat([]byte("ping"), 700)
	head := transportHeader{0, 0, 0, 0, 0x12, 0x34, 0, 1}
	out := outgoing{to: guestMAC, src: worldIPv4, dst: childIPv4, proto: header.ICMPv4ProtocolNumber, ttl: 57}
	r.e.link.writer.forwardICMP(&out, &head, payload)
	var message []byte
	for more := true; more; {
		p := r.next(func(f []byte) bool { return header.Ethernet(f).Type() == header.IPv4ProtocolNumber })[ethernetSize:]
		ip := header.IPv4(p)
		if len(p) > DefaultMTU || ip.TTL() != 57 || int(ip.FragmentOffset()) != len(message) {
			t.Fatalf("a packet of %d bytes with time to live %d at %d, after %d bytes", len(p), ip.TTL(), ip.FragmentOffset(), len(message))
		}
		message, more = append(message, p[20:]...), ip.More()
	}
	if checksum.Checksum(message, 0) != 0xffff || !bytes.Equal(message[icmpHeaderSize:], payload) {
		t.Errorf("a message of %d bytes with a checksum of %#x", len(message), checksum.Checksum(message, 0))
	}
}
