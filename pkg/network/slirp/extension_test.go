package slirp

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/testenv"
)

// What the stack takes apart (fragments, options, extension headers) is no way around
// what is checked of all else.

func TestNeighbourDiscoveryHasNoExtensionHeaders(t *testing.T) {
	in := testInspector(t)
	gateway := netip.MustParseAddr("fd67:6174:656b::2")
	echo := func() []byte { return icmpv6Frame(worldIPv6, []byte{128, 0, 0, 0, 0, 1, 0, 1}) }
	for _, test := range []struct {
		name  string
		frame []byte
		want  verdict
	}{
		{"a solicitation for the outside", messageFrame(nestedIPv6, gateway, about(header.ICMPv6NeighborSolicit, worldIPv6, linkLayer(1, nestedMAC)...)...), drop},
		{"a solicitation for the gateway", messageFrame(nestedIPv6, gateway, about(header.ICMPv6NeighborSolicit, gateway, linkLayer(1, nestedMAC)...)...), drop},
		{"an advertisement that leads to lo", messageFrame(nestedIPv6, gateway, about(header.ICMPv6NeighborAdvert, nestedIPv6, linkLayer(2, macAddr{})...)...), drop},
		{"another router's advertisement", messageFrame(nestedIPv6, gateway, 134, 0, 0, 0, 64, 0, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0), drop},
		{"an echo request", echo(), toStack},
		{"an error", icmpv6Frame(gateway, []byte{1, 4, 0, 0, 0, 0, 0, 0}), toStack},
		{"a datagram", udpFrame(netip.AddrPortFrom(childIPv6, 4000), netip.AddrPortFrom(worldIPv6, 53), "x"), toStack},
	} {
		for name, frame := range map[string][]byte{
			"hop-by-hop options":  withExtension(test.frame, 0, [8]byte{0, 0, 1, 4}),
			"destination options": withExtension(test.frame, 60, [8]byte{0, 0, 1, 4}),
			"two headers":         withExtension(withExtension(test.frame, 60, [8]byte{0, 0, 1, 4}), 0, [8]byte{0, 0, 1, 4}),
		} {
			t.Run(test.name+" behind "+name, func(t *testing.T) {
				var f finding
				if got := in.inspect(frame, vnetHeader{}, &f); got != test.want {
					t.Errorf("verdict %d, want %d", got, test.want)
				}
			})
		}
	}
	var f finding
	for _, content := range [][8]byte{{0, 255}, {0, 1}} {
		if got := in.inspect(withExtension(echo(), 0, content), vnetHeader{}, &f); got != toStack {
			t.Errorf("a header that is longer than the packet gets verdict %d", got)
		}
	}
}

// Options that are not whole keep a datagram from its relay: the stack says what is
// wrong with them.
func TestBrokenOptionsAreToldOf(t *testing.T) {
	e := newTarget(t)
	from := netip.AddrPortFrom(childIPv4, 4000)
	for _, test := range []struct {
		name    string
		options []byte
		want    verdict
	}{
		{"a router alert", []byte{0x94, 4, 0, 0}, toUDP},
		{"an end and what follows it", []byte{1, 0, 9, 200}, toUDP},
		{"a length of none", []byte{0x83, 0, 0, 0}, toStack},
		{"a length beyond the header", []byte{0x83, 40, 4, 0}, toStack},
		{"half an option", []byte{1, 1, 1, 0x83}, toStack},
	} {
		t.Run(test.name, func(t *testing.T) {
			var f finding
			if got := testInspector(t).inspect(withOptions(udpFrame(from, e.udp, "x"), test.options...), vnetHeader{}, &f); got != test.want {
				t.Errorf("verdict %d, want %d", got, test.want)
			}
		})
	}
	e.give(append(make([]byte, vnetHeaderSize), withOptions(udpFrame(from, e.udp, "x"), 0x83, 40, 4, 0)...))
	e.settle()
	if c := e.e.counters(); c.PacketsRefused != 1 || c.UDP.Open != 0 {
		t.Errorf("%+v", c)
	}
}

func TestChecksumsCountInPiecesToo(t *testing.T) {
	gateway6 := netip.MustParseAddr("fd67:6174:656b::2")
	from, from6 := netip.AddrPortFrom(childIPv4, 4000), netip.AddrPortFrom(childIPv6, 4000)
	for name, frame := range map[string]func(e *target) []byte{
		"TCP over IPv4": func(e *target) []byte { return synFrame(from, e.tcp) },
		"TCP over IPv6": func(e *target) []byte { return synFrame(from6, netip.AddrPortFrom(gateway6, e.tcp.Port())) },
		"UDP over IPv4": func(e *target) []byte { return udpFrame(from, e.udp, "twelve bytes") },
		"UDP over IPv6": func(e *target) []byte {
			return udpFrame(from6, netip.AddrPortFrom(gateway6, e.udp.Port()), "twelve bytes")
		},
		"echo": func(*target) []byte { return echoRequest(worldIPv4) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newTarget(t)
			whole := frame(e)
			bad := changed(whole, func(ip []byte) { ip[len(ip)-1]++ })
			pieces := func(f []byte, id uint16) [][]byte {
				if f[ethernetSize]>>4 == 4 {
					size := len(f) - ethernetSize - header.IPv4MinimumSize
					return [][]byte{fragmentOf(f, id, 0, 8, true), fragmentOf(f, id, 8, size, false)}
				}
				size := len(f) - ethernetSize - header.IPv6MinimumSize
				return [][]byte{
					fragmentOf6(f, uint32(id), 0, 8, true), fragmentOf6(f, uint32(id), 8, size, false),
					withExtension(f, 60, [8]byte{0, 0, 1, 4}),
				}
			}
			reached := func() int {
				c := e.e.counters() // of what the policy refuses, too
				return dialsOf(e.rig) + relaysOf(e.rig) + int(c.Echo.Refused+c.UDP.Refused)
			}
			refused := uint64(0)
			for i, f := range pieces(bad, 1) {
				e.give(append(make([]byte, vnetHeaderSize), f...))
				if i > 0 {
					refused++
				}
			}
			e.settle()
			testenv.Until(t, "what is broken to be counted", func() bool { return e.e.counters().PacketsRefused == refused })
			if n := reached(); n != 0 {
				t.Errorf("%d flows", n)
			}
			answers := e.e.dev.sent.Load() // of which one is a reset
			for _, f := range pieces(whole, 2)[:2] {
				e.give(append(make([]byte, vnetHeaderSize), f...))
			}
			testenv.Until(t, "what is whole to pass", func() bool { return reached() > 0 || e.e.dev.sent.Load() > answers })
		})
	}
}

// Whoever in the namespace fragments our datagrams knows them by their number.
func TestDatagramsHaveNumbers(t *testing.T) {
	r := newRig(t, rigOptions{bare: true})
	seen := map[uint16]bool{}
	for range 3 {
		r.e.udp.writer.write(guestMAC, netip.AddrPortFrom(worldIPv4, 53), netip.AddrPortFrom(childIPv4, 4000), []byte("hello"))
		frame := r.next(func(f []byte) bool { return header.Ethernet(f).Type() == header.IPv4ProtocolNumber })
		seen[binary.BigEndian.Uint16(frame[ethernetSize+4:])] = true
	}
	if len(seen) != 3 {
		t.Errorf("three datagrams have the numbers %v", seen)
	}
}
