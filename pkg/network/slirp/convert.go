package slirp

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// toAddress turns Go's address into gVisor's.
func toAddress(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}

// fromAddress turns gVisor's address into Go's. An IPv4-mapped IPv6 address
// stays one.
func fromAddress(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return netip.AddrFrom4(a.As4())
	}
	return netip.AddrFrom16(a.As16())
}
