package slirp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/network/slirp/dhcp"
)

// What the engine makes of frames that no kernel would send. Nothing of it leaves
// the machine: the policy lets out what goes to servers of the test alone.

// target is an engine that gets frames, and a watch over what comes back.
type target struct {
	*rig
	udp, tcp netip.AddrPort // servers, at the gateway's IPv4 address
	sent     uint64         // frames
	stations map[macAddr]bool
	sources  map[netip.Addr]bool
	buf      []byte
}

// newTarget starts an engine from which two echo servers are reached, and a name
// server that repeats the question.
func newTarget(t testing.TB) *target {
	t.Helper()
	udp, tcp := listenUDP(t, "127.0.0.1:0", echoUDP), listen(t, "127.0.0.1:0", echoTCP)
	r := newRig(t, rigOptions{bare: true, Options: Options{
		HostLoopback: HostLoopback{ports: []portRange{{udp.Port(), udp.Port()}, {tcp.Port(), tcp.Port()}}},
		Policy:       network.Policy{Default: "deny", Allow: []string{"any://10.0.2.2"}},
		Upstreams:    []netip.AddrPort{listenUDP(t, "127.0.0.1:0", answerUDP(dnsmessage.RCodeSuccess, ""))},
	}})
	return &target{
		rig: r, udp: r.gateway(udp), tcp: r.gateway(tcp),
		stations: map[macAddr]bool{},
		sources:  map[netip.Addr]bool{},
		buf:      make([]byte, vnetHeaderSize+maxFrame),
	}
}

// give sends a frame, with its virtio-net header.
func (e *target) give(bytes []byte) {
	e.t.Helper()
	if len(bytes) > vnetHeaderSize {
		e.note(bytes[vnetHeaderSize:])
	}
	if _, err := e.wire.Write(bytes); err != nil {
		e.t.Fatal(err)
	}
	e.sent++
}

// settle waits until the engine has seen all frames, and looks at what has come
// back.
func (e *target) settle() {
	e.t.Helper()
	for deadline := time.Now().Add(patience); e.seen() != e.sent; runtime.Gosched() {
		if time.Now().After(deadline) {
			e.t.Fatalf("the engine has seen %d of %d frames", e.seen(), e.sent)
		}
	}
	e.drain()
}

// seen is how many frames the engine has seen.
func (e *target) seen() uint64 { return e.e.link.accepted.Load() + e.e.link.refused.Load() }

// note takes note of who could have sent a frame.
func (e *target) note(frame []byte) {
	if len(frame) < ethernetSize {
		return
	}
	e.stations[macAddr(frame[6:12])] = true
	switch p := frame[ethernetSize:]; header.Ethernet(frame).Type() {
	case header.ARPProtocolNumber:
		if arp := header.ARP(p); arp.IsValid() {
			e.stations[macAddr(arp.HardwareAddressSender())] = true
		}
	case header.IPv4ProtocolNumber:
		if len(p) >= header.IPv4MinimumSize {
			e.sources[netip.AddrFrom4([4]byte(p[12:16]))] = true
		}
	case header.IPv6ProtocolNumber:
		if len(p) >= header.IPv6MinimumSize {
			e.sources[netip.AddrFrom16([16]byte(p[8:24]))] = true
			// The options of neighbour discovery, after a target and after none.
			for _, at := range []int{64, 48} {
				for p := p[min(at, len(p)):]; len(p) >= 8 && p[1] > 0; p = p[min(8*int(p[1]), len(p)):] {
					e.stations[macAddr(p[2:8])] = true
				}
			}
		}
	}
}

// drain looks at all that has come back so far.
func (e *target) drain() {
	e.t.Helper()
	raw, err := e.wire.SyscallConn()
	if err != nil {
		e.t.Fatal(err)
	}
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.Read(int(fd), e.buf)
			if err != nil {
				return true
			}
			if err := e.judge(e.buf[vnetHeaderSize:max(n, vnetHeaderSize)]); err != nil {
				e.t.Errorf("%v: %x", err, e.buf[:min(n, 200)])
			}
		}
	})
	if err != nil {
		e.t.Fatal(err)
	}
}

// judge says what is wrong with a frame of the engine: it comes from us, and goes to
// one who has sent, or to the groups of neighbour discovery, about one who has
// sent.
func (e *target) judge(frame []byte) error {
	if len(frame) < ethernetSize || macAddr(frame[6:12]) != gatewayMAC {
		return fmt.Errorf("a frame that is not from the gateway")
	}
	group := frame[0]&1 != 0
	// A packet in the name of one outside, with whom there is a connection, is
	// answered to that one, that is to ourselves; nobody on the link takes it.
	to := macAddr(frame[:6])
	stranger := !group && to != gatewayMAC && !e.stations[to]
	p := frame[ethernetSize:]
	var addr netip.Addr
	switch header.Ethernet(frame).Type() {
	case header.ARPProtocolNumber:
		if !header.ARP(p).IsValid() {
			return fmt.Errorf("a broken ARP packet")
		}
		addr = netip.AddrFrom4([4]byte(header.ARP(p).ProtocolAddressTarget()))
		if !group {
			e.sources[addr] = true // who asks is answered, whatever else it sends
		}
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(p)
		if !ip.IsValid(len(p)) || !ip.IsChecksumValid() {
			return fmt.Errorf("a broken IPv4 packet")
		}
		if ip.Protocol() == uint8(header.UDPProtocolNumber) && header.UDP(ip.Payload()).SourcePort() == dhcp.ServerPort4 {
			return nil // to whom the question says
		}
		addr = netip.AddrFrom4([4]byte(p[16:20]))
	case header.IPv6ProtocolNumber:
		if !header.IPv6(p).IsValid(len(p)) {
			return fmt.Errorf("a broken IPv6 packet")
		}
		addr = netip.AddrFrom16([16]byte(p[24:40]))
		if message := p[header.IPv6MinimumSize:]; addr.IsMulticast() && p[6] == uint8(header.ICMPv6ProtocolNumber) {
			switch header.ICMPv6(message).Type() {
			case header.ICMPv6NeighborSolicit:
				addr = netip.AddrFrom16([16]byte(message[8:24]))
			case header.ICMPv6NeighborAdvert, header.ICMPv6RouterAdvert, header.ICMPv6MulticastListenerV2Report:
				return nil
			}
		}
	default:
		return fmt.Errorf("a frame of another protocol")
	}
	if stranger {
		return fmt.Errorf("a frame to a station that has sent nothing")
	}
	if !e.sources[addr] {
		return fmt.Errorf("a packet to %v, which has sent nothing", addr)
	}
	return nil
}

// within says what of the engine has grown beyond its bounds.
func (e *target) within() error {
	for _, t := range []*flowTable{e.e.udp.flowTable, e.e.echo.flowTable} {
		if open := t.counters().Open; open > t.limit {
			return fmt.Errorf("%d flows of %v, of which there may be %d", open, t.proto, t.limit)
		}
	}
	if n := dialsOf(e.rig); n > maxDials {
		return fmt.Errorf("%d dials", n)
	}
	if n := runtime.NumGoroutine(); n > maxDials+maxQueries+100 {
		return fmt.Errorf("%d goroutines", n)
	}
	return nil
}

// heap is the memory in use, in bytes.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Flags of a frame in the input of FuzzEngine: which of its fields are made right,
// without which hardly anything would get further than the first check.
const (
	toGateway    = 1 << iota // the Ethernet addresses
	rightHeader              // the checksum of the IPv4 header
	rightMessage             // the checksum of an ICMP message
	trusted                  // the virtio-net header vouches for the checksum
	segmented                // and says that it is one of many datagrams
)

// inputFrame is a frame in the input of FuzzEngine.
func inputFrame(flags byte, frame []byte) []byte {
	return append([]byte{flags, byte(len(frame) >> 8), byte(len(frame))}, frame...)
}

// nextInput takes a frame off the input, and makes right what its flags say.
func nextInput(data []byte) (frame, rest []byte) {
	if len(data) < 3 {
		return nil, nil
	}
	flags, n := data[0], min(int(data[1])<<8|int(data[2]), len(data)-3)
	h := vnetHeader{}
	if flags&trusted != 0 {
		h.flags = vnetNeedsChecksum
	}
	if flags&segmented != 0 {
		h.segmentType, h.segmentSize = vnetSegmentUDP, uint16(flags)
	}
	var head [vnetHeaderSize]byte
	h.put(&head)
	frame, rest = append(head[:], data[3:3+n]...), data[3+n:]
	f := frame[vnetHeaderSize:]
	if len(f) < ethernetSize {
		return frame, rest
	}
	if flags&toGateway != 0 {
		copy(f, gatewayMAC[:])
		copy(f[6:], guestMAC[:])
	}
	switch p := f[ethernetSize:]; {
	case header.Ethernet(f).Type() == header.IPv4ProtocolNumber && len(p) >= header.IPv4MinimumSize:
		ip, size := header.IPv4(p), int(header.IPv4(p).HeaderLength())
		if size < header.IPv4MinimumSize || size > len(p) {
			break
		}
		if flags&rightMessage != 0 && ip.Protocol() == uint8(header.ICMPv4ProtocolNumber) && len(p) >= size+header.ICMPv4MinimumSize {
			icmp := header.ICMPv4(p[size:])
			icmp.SetChecksum(header.ICMPv4Checksum(icmp, 0))
		}
		if flags&rightHeader != 0 {
			ip.SetChecksum(0)
			ip.SetChecksum(^checksum.Checksum(p[:size], 0))
		}
	case header.Ethernet(f).Type() == header.IPv6ProtocolNumber && len(p) >= header.IPv6MinimumSize+header.ICMPv6MinimumSize:
		if flags&rightMessage != 0 && p[6] == uint8(header.ICMPv6ProtocolNumber) {
			icmp := header.ICMPv6(p[header.IPv6MinimumSize:])
			icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
				Header: icmp, Src: tcpip.AddrFrom16Slice(p[8:24]), Dst: tcpip.AddrFrom16Slice(p[24:40]),
			}))
		}
	}
	return frame, rest
}

// fragmentOf is a piece of an IPv4 packet's payload.
func fragmentOf(frame []byte, id uint16, from, to int, more bool) []byte {
	const headers = ethernetSize + header.IPv4MinimumSize
	piece := append(slices.Clone(frame[:headers]), frame[headers+from:headers+to]...)
	return changed(piece, func(ip []byte) {
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[4:], id)
		binary.BigEndian.PutUint16(ip[6:], uint16(from/8))
		if more {
			ip[6] |= 0x20
		}
	})
}

// fragmentOf6 is the same of an IPv6 packet's.
func fragmentOf6(frame []byte, id uint32, from, to int, more bool) []byte {
	const headers = ethernetSize + header.IPv6MinimumSize
	piece := append(slices.Clone(frame[:headers]), make([]byte, header.IPv6FragmentExtHdrLength)...)
	putIPv6Fragment(piece[headers:], tcpip.TransportProtocolNumber(frame[ethernetSize+6]), fragment{id, from, more})
	piece[ethernetSize+6] = uint8(header.IPv6FragmentExtHdrIdentifier)
	piece = append(piece, frame[headers+from:headers+to]...)
	binary.BigEndian.PutUint16(piece[ethernetSize+4:], uint16(len(piece)-headers))
	return piece
}

// withExtension puts an IPv6 extension header before a packet's payload.
func withExtension(frame []byte, kind uint8, content [8]byte) []byte {
	const headers = ethernetSize + header.IPv6MinimumSize
	f := append(slices.Clone(frame[:headers]), content[:]...)
	f[headers] = frame[ethernetSize+6]
	f[ethernetSize+6] = kind
	f = append(f, frame[headers:]...)
	binary.BigEndian.PutUint16(f[ethernetSize+4:], uint16(len(f)-headers))
	return f
}

// withOptions gives an IPv4 packet options, whose length is a multiple of 4.
func withOptions(frame []byte, options ...byte) []byte {
	const headers = ethernetSize + header.IPv4MinimumSize
	f := slices.Concat(frame[:headers], options, frame[headers:])
	return changed(f, func(ip []byte) {
		ip[0] += byte(len(options) / 4)
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	})
}

// oddFrames are the seeds of FuzzEngine: each is a story of some frames.
func oddFrames(t testing.TB, e *target) map[string][][]byte {
	from, from6 := netip.AddrPortFrom(childIPv4, 4000), netip.AddrPortFrom(childIPv6, 4000)
	gateway6, dns := e.net.subnets[1].gateway, netip.AddrPortFrom(e.net.subnets[0].dns, dnsPort)
	long := string(make([]byte, 96))
	udp4, udp6 := udpFrame(from, e.udp, long), udpFrame(from6, netip.AddrPortFrom(gateway6, 7), long)
	syn := synFrame(from, e.tcp)
	flags := func(f header.TCPFlags) []byte { return changed(syn, func(ip []byte) { ip[20+13] = uint8(f) }) }
	return map[string][][]byte{
		"datagrams":          {udp4, udp6, udpFrame(from, dns, string(query(t, 9, "a.example."))), udpFrame(from, dns, "short")},
		"a connection":       {syn, syn, flags(header.TCPFlagAck), flags(header.TCPFlagAck | header.TCPFlagPsh), flags(header.TCPFlagFin), flags(header.TCPFlagRst)},
		"all flags":          {flags(0xff), flags(0), flags(header.TCPFlagSyn | header.TCPFlagRst), flags(header.TCPFlagSyn | header.TCPFlagFin)},
		"TCP options":        {changed(syn, func(ip []byte) { ip[20+12] = 0xf0 })},
		"to nobody":          {synFrame(from, netip.AddrPortFrom(worldIPv4, 80)), synFrame(from6, netip.AddrPortFrom(worldIPv6, 80)), udpFrame(from, netip.AddrPortFrom(worldIPv4, 9), "x")},
		"pings":              {echoRequest(e.net.subnets[0].gateway), echoRequest(worldIPv4), icmpv6Frame(gateway6, []byte{128, 0, 0, 0, 0, 1, 0, 1})},
		"guests":             {discoverFrame(t, nestedMAC), solicit6Frame(), routerSolicit(nestedLink, linkLayer(1, nestedMAC)...)},
		"neighbours":         {arpRequest(e.net.subnets[0].gateway), neighborSolicit(gateway6), neighborSolicit(childIPv6)},
		"fragments":          {fragmentOf(udp4, 1, 0, 48, true), fragmentOf(udp4, 1, 48, 104, false)},
		"overlapping":        {fragmentOf(udp4, 2, 0, 48, true), fragmentOf(udp4, 2, 24, 72, true), fragmentOf(udp4, 2, 72, 104, false)},
		"a fragment at 64 K": {changed(fragmentOf(udp4, 3, 0, 48, false), func(ip []byte) { ip[6], ip[7] = 0x1f, 0xff })},
		"IPv6 fragments":     {fragmentOf6(udp6, 1, 0, 48, true), fragmentOf6(udp6, 1, 48, 104, false)},
		"overlapping IPv6":   {fragmentOf6(udp6, 2, 0, 48, true), fragmentOf6(udp6, 2, 24, 72, true), fragmentOf6(udp6, 2, 72, 104, false)},
		"extension headers": {withExtension(udp6, 0, [8]byte{}), withExtension(udp6, 43, [8]byte{0, 0, 0, 9}),
			withExtension(udp6, 60, [8]byte{0, 0, 0xc3, 2}), withExtension(udp6, 0, [8]byte{0, 255}), withExtension(udp6, 59, [8]byte{})},
		"IPv4 options": {withOptions(udp4, 131, 7, 4, 10, 0, 2, 77, 0), withOptions(udp4, 7, 3, 255, 0), withOptions(udp4, 68, 40, 5, 0),
			withOptions(syn, 0x94, 4, 0, 0), withOptions(udp4, 0xff, 0, 0, 0)},
		"an ICMP error": {ipFrame(childIPv4, e.net.subnets[0].gateway, header.ICMPv4ProtocolNumber, append([]byte{3, 4, 0, 0, 0, 0, 0, 68}, udp4[ethernetSize:]...))},
	}
}

// FuzzEngine has a whole engine take sequences of frames. It has goroutines, so what of it
// runs is never quite the same, and go tries for a minute to make each input that is new
// smaller, without a word: -fuzzminimizetime=1x leaves that out.
func FuzzEngine(f *testing.F) {
	e := newTarget(f)
	for _, frames := range oddFrames(f, e) {
		for _, flags := range []byte{0, toGateway | rightHeader | rightMessage, rightHeader | trusted | segmented} {
			var input []byte
			for _, frame := range frames {
				input = append(input, inputFrame(flags, frame)...)
			}
			f.Add(input)
		}
	}
	runs := 0
	f.Fuzz(func(t *testing.T, input []byte) {
		e.t = t
		for range 64 {
			frame, rest := nextInput(input)
			if frame == nil {
				break
			}
			e.give(frame)
			input = rest
		}
		e.settle()
		if err := e.within(); err != nil {
			t.Error(err)
		}
		if runs++; runs%4096 == 0 {
			if n := heap(); n > 512<<20 {
				t.Errorf("%d bytes of memory", n)
			}
		}
	})
}

// exchange has a datagram come back, to see that the engine lives.
func (e *target) exchange(port uint16) {
	e.t.Helper()
	e.settle()
	e.wire.Write(append(make([]byte, vnetHeaderSize), udpFrame(netip.AddrPortFrom(childIPv4, port), e.udp, "alive")...))
	e.sent++
	e.next(func(f []byte) bool {
		return header.Ethernet(f).Type() == header.IPv4ProtocolNumber && len(f) > 42 && f[ethernetSize+9] == uint8(header.UDPProtocolNumber) &&
			string(f[42:]) == "alive"
	})
}

// However many of a kind there are, the engine answers, holds no memory for them,
// and sends nothing to others.
func TestStormsPassBy(t *testing.T) {
	const count = 5_000
	address4 := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 2, byte(4 + i%250)}) }
	address6 := func(i int) netip.Addr {
		a := childIPv6.As16()
		binary.BigEndian.PutUint32(a[8:], uint32(i+1))
		return netip.AddrFrom16(a)
	}
	station := func(frame []byte, i int) []byte {
		binary.BigEndian.PutUint32(frame[8:], uint32(i))
		return frame
	}
	for name, frame := range map[string]func(e *target, i int) []byte{
		"ARP requests for us, of many": func(e *target, i int) []byte {
			f := station(arpRequest(e.net.subnets[0].gateway), i)
			copy(f[ethernetSize+8:], f[6:12])
			copy(f[ethernetSize+14:], address4(i).AsSlice())
			return f
		},
		"ARP requests for others": func(_ *target, i int) []byte { return arpRequest(address4(i)) },
		"ARP replies of strangers": func(e *target, i int) []byte {
			f := arpRequest(address4(i))
			f[ethernetSize+7] = 2
			return station(f, i)
		},
		"neighbour solicitations of many": func(e *target, i int) []byte {
			p := make([]byte, header.ICMPv6NeighborSolicitMinimumSize+8)
			p[0] = uint8(header.ICMPv6NeighborSolicit)
			gateway := e.net.subnets[1].gateway
			copy(p[8:], gateway.AsSlice())
			p[24], p[25] = 1, 1
			f := station(slices.Clone(ipFrame(address6(i), gateway, header.ICMPv6ProtocolNumber, p)), i)
			copy(f[ethernetSize+header.IPv6MinimumSize+26:], f[6:12])
			icmp := header.ICMPv6(f[ethernetSize+header.IPv6MinimumSize:])
			icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: toAddress(address6(i)), Dst: toAddress(gateway)}))
			f[ethernetSize+7] = 255
			return f
		},
		"broadcast": func(_ *target, i int) []byte {
			f := udpFrame(netip.AddrPortFrom(childIPv4, 68), netip.AddrPortFrom(netip.MustParseAddr("10.0.2.255"), 137), "x")
			return append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, f[6:]...)
		},
		"multicast": func(_ *target, i int) []byte {
			return udpFrame(netip.AddrPortFrom(childIPv6, 5353), netip.MustParseAddrPort("[ff02::fb]:5353"), "x")
		},
		"first fragments": func(e *target, i int) []byte {
			return fragmentOf(udpFrame(netip.AddrPortFrom(childIPv4, 4000), e.udp, string(make([]byte, 1400))), uint16(i), 0, 1400, true)
		},
		"first fragments of IPv6": func(e *target, i int) []byte {
			return fragmentOf6(udpFrame(netip.AddrPortFrom(childIPv6, 4000), netip.AddrPortFrom(e.net.subnets[1].gateway, 7), string(make([]byte, 1400))), uint32(i), 0, 1400, true)
		},
		"SYNs of many": func(e *target, i int) []byte {
			return synFrame(netip.AddrPortFrom(address4(i), 4000), netip.AddrPortFrom(worldIPv4, 80))
		},
		"datagrams of many to nobody": func(e *target, i int) []byte {
			return station(udpFrame(netip.AddrPortFrom(address4(i), 4000), netip.AddrPortFrom(worldIPv4, 80), "x"), i)
		},
		"pings of many": func(e *target, i int) []byte { return station(echoRequest(e.net.subnets[0].gateway), i) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newTarget(t)
			e.exchange(5000)
			before := heap()
			for i := range count {
				e.give(append(make([]byte, vnetHeaderSize), frame(e, i)...))
				if i%64 == 0 {
					e.settle()
				}
			}
			e.settle()
			if err := e.within(); err != nil {
				t.Error(err)
			}
			if after := heap(); after > before+24<<20 {
				t.Errorf("%d bytes more are held", after-before)
			}
			e.exchange(5001)
		})
	}
}

// Each set of flags, where there is no connection: a SYN that is a reset as well is no
// SYN.
func TestEachSetOfTCPFlagsIsSafe(t *testing.T) {
	e := newTarget(t)
	syn := synFrame(netip.AddrPortFrom(childIPv4, 4000), e.tcp)
	give := func(port uint16, flags header.TCPFlags, sequence uint32) {
		head := [vnetHeaderSize]byte{vnetNeedsChecksum} // which is right so
		e.give(append(head[:], changed(syn, func(ip []byte) {
			binary.BigEndian.PutUint16(ip[20:], port)
			binary.BigEndian.PutUint32(ip[20+4:], sequence)
			ip[20+13] = byte(flags)
		})...))
	}
	for flags := range 256 {
		give(uint16(5000+flags), header.TCPFlags(flags), 1000)
	}
	e.exchange(4500)
	// The handshakes that were begun end now, and not when they have waited long enough.
	testenv.Until(t, "the dials to end", func() bool {
		for flags := range 256 {
			give(uint16(5000+flags), header.TCPFlagRst, 1001)
		}
		e.settle()
		return dialsOf(e.rig) == 0
	})
}

// Of fragments that overlap, nothing is put together (RFC 5722, 4), whichever comes
// first; those of another datagram are not held up.
func TestOverlappingFragmentsAreDropped(t *testing.T) {
	e := newTarget(t)
	whole := udpFrame(netip.AddrPortFrom(childIPv4, 4000), e.udp, string(make([]byte, 96)))
	give := func(frames ...[]byte) {
		for _, f := range frames {
			e.give(append(make([]byte, vnetHeaderSize), f...))
		}
		e.settle()
	}
	give(fragmentOf(whole, 1, 0, 48, true), fragmentOf(whole, 1, 40, 104, false))
	give(fragmentOf(whole, 2, 48, 104, false), fragmentOf(whole, 2, 0, 56, true))
	give(fragmentOf(whole, 3, 0, 48, true), fragmentOf(whole, 3, 24, 40, true), fragmentOf(whole, 3, 48, 104, false))
	if n := e.e.counters().UDP.Open; n != 0 {
		t.Errorf("%d flows were opened by fragments that overlap", n)
	}
	if n := e.e.counters().PacketsRefused; n == 0 {
		t.Error("none is counted")
	}
	give(fragmentOf(whole, 4, 0, 48, true), fragmentOf(whole, 4, 48, 104, false))
	testenv.Until(t, "the flow of whole fragments", func() bool { return e.e.counters().UDP.Open == 1 })
	e.exchange(5000)
}
