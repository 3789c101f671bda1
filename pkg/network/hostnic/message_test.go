package hostnic

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// attribute is one of a message, padded.
func attribute(typ uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func number(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// route is a default route by two interfaces, of which the first fails.
func route() message {
	m := message{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, 0, unix.RTN_UNICAST, 0, 0, 0, 0}
	binary.NativeEndian.PutUint32(m[routeFlags:], unix.RTNH_F_DEAD|unix.RTNH_F_ONLINK)
	hop := func(index uint32, flags byte) []byte {
		return append([]byte{8, 0, flags, 0}, number(index)...)
	}
	m = append(m, attribute(unix.RTA_MULTIPATH, append(hop(7, unix.RTNH_F_LINKDOWN), hop(9, 0)...)...)...)
	m = append(m, attribute(attrNextHopID, number(1)...)...)
	m = append(m, attribute(unix.RTA_GATEWAY, 198, 51, 100, 1)...)
	return append(m, attribute(unix.RTA_CACHEINFO, make([]byte, 32)...)...)
}

func TestARouteIsSaidByAnotherInterface(t *testing.T) {
	m := route()
	if uses, others := m.uses(7); !uses || !others {
		t.Errorf("interface 7: used %v, others %v; want both", uses, others)
	}
	if uses, _ := m.uses(8); uses {
		t.Error("interface 8 is used")
	}
	moved := m.by(7, 8)
	if uses, _ := moved.uses(8); !uses {
		t.Error("the route does not use 8 in place of 7")
	}
	if uses, _ := m.uses(7); !uses {
		t.Error("the message itself has changed")
	}
	if !m.isDefault() || !m.isIPv4() || m.gateway() != netip.MustParseAddr("198.51.100.1") {
		t.Errorf("default %v, IPv4 %v, gateway %v", m.isDefault(), m.isIPv4(), m.gateway())
	}
}

func TestWhatTheKernelDoesNotWantToHearIsLeftOut(t *testing.T) {
	m := route().sayable()
	if flags := binary.NativeEndian.Uint32(m[routeFlags:]); flags != unix.RTNH_F_ONLINK {
		t.Errorf("flags %#x, want ONLINK alone", flags)
	}
	var types []uint16
	m.attributes(routeHeader, func(typ uint16, value []byte) bool {
		types = append(types, typ)
		if typ == unix.RTA_MULTIPATH && value[nextHopFlags] != 0 {
			t.Errorf("flags of a next hop: %#x", value[nextHopFlags])
		}
		return true
	})
	if len(types) != 2 || types[0] != unix.RTA_MULTIPATH || types[1] != unix.RTA_GATEWAY {
		t.Errorf("attributes %v", types)
	}
}

// A state file is root's, but a torn or foreign one must not hang or crash Destroy.
func FuzzMessagesOfAnyShape(f *testing.F) {
	f.Add([]byte(route()))
	f.Add([]byte(route()[:17]))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < routeHeader {
			return
		}
		m := message(b)
		m.uses(7)
		m.by(7, 8)
		m.gateway()
		m.prefix()
		m.sayable()
	})
}
