package slirp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// ErrUsage marks options that can never work: they are wrong usage, not a host
// that lacks something.
var ErrUsage = errors.New("wrong usage")

// The networks when none are asked for. fd67:6174:656b is a unique local prefix
// (RFC 4193).
var (
	defaultIPv4 = netip.MustParsePrefix("10.0.2.0/24")
	defaultIPv6 = netip.MustParsePrefix("fd67:6174:656b::/64")
)

// Where the addresses lie in their network: .2, .3 and .100, or ::2, ::3 and
// ::100. (The numbers are hexadecimal in IPv6, so that both look the same.)
const (
	gatewayHost   = 2
	dnsHost       = 3
	childHostIPv4 = 100
	childHostIPv6 = 0x100
)

// maxBitsIPv4 and maxBitsIPv6 are the longest prefixes that hold the child's
// address.
const (
	maxBitsIPv4 = 32 - 7
	maxBitsIPv6 = 128 - 9
)

// subnet is the network of one family with its addresses. The zero value is a
// family that is switched off.
type subnet struct {
	prefix    netip.Prefix
	gateway   netip.Addr
	dns       netip.Addr
	child     netip.Addr
	broadcast netip.Addr // of IPv4
}

// enabled says whether the family is on.
func (s subnet) enabled() bool { return s.prefix.IsValid() }

// holds says whether an address is one that the child, or a guest of the namespace,
// may have: of the network, but neither ours nor everybody's. The first one of an
// IPv6 network is that of its routers (RFC 4291, 2.6.1).
func (s subnet) holds(a netip.Addr) bool {
	return s.prefix.Contains(a) && a != s.gateway && a != s.dns && a != s.prefix.Addr() && a != s.broadcast
}

// newSubnet lays the addresses out in a network of either family.
func newSubnet(p netip.Prefix) (subnet, error) {
	a := p.Addr()
	switch {
	case !p.IsValid():
		return subnet{}, fmt.Errorf("%w: invalid network %v", ErrUsage, p)
	case p.Masked() != p:
		return subnet{}, fmt.Errorf("%w: %v is an address in a network, not a network: use %v", ErrUsage, p, p.Masked())
	case a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
		return subnet{}, fmt.Errorf("%w: %v cannot be the network of an interface: use a private one such as %v or %v", ErrUsage, p, defaultIPv4, defaultIPv6)
	}
	maxBits, child := maxBitsIPv4, childHostIPv4
	if a.Is6() {
		maxBits, child = maxBitsIPv6, childHostIPv6
	}
	if p.Bits() > maxBits {
		return subnet{}, fmt.Errorf("%w: %v is too small: the addresses up to %v need a /%d or larger", ErrUsage, p, hostAddr(p, child), maxBits)
	}
	s := subnet{
		prefix:  p,
		gateway: hostAddr(p, gatewayHost),
		dns:     hostAddr(p, dnsHost),
		child:   hostAddr(p, child),
	}
	if a.Is4() {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|1<<(32-p.Bits())-1)
		s.broadcast = netip.AddrFrom4(b)
	}
	return s, nil
}

// hostAddr returns the address of a host, of at most 16 bits, in a network.
func hostAddr(p netip.Prefix, host int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] |= byte(host)
	b[len(b)-2] |= byte(host >> 8)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// FreeNetworks returns the networks that New takes when none are given: of
// 10.0.2.0/24, 10.0.3.0/24 and so on the first in which the host has none of
// its addresses, and the same from fd67:6174:656b::/64 up.
func FreeNetworks(host []netip.Addr) (ipv4, ipv6 netip.Prefix) {
	return firstFree(defaultIPv4, host), firstFree(defaultIPv6, host)
}

// firstFree counts upwards through the networks of the size of p, within the
// first 16 bits of 10.0.0.0/8 or 48 bits of a unique local prefix, and returns
// p itself when the host is in all of them.
func firstFree(p netip.Prefix, host []netip.Addr) netip.Prefix {
	inUse := func(p netip.Prefix) bool {
		for _, a := range host {
			if p.Contains(a.Unmap().WithZone("")) {
				return true
			}
		}
		return false
	}
	last := p.Bits()/8 - 1 // the byte that counts
	b := p.Addr().AsSlice()
	for n := int(b[last]); n < 256; n++ {
		b[last] = byte(n)
		a, _ := netip.AddrFromSlice(b)
		if next := netip.PrefixFrom(a, p.Bits()); !inUse(next) {
			return next
		}
	}
	return p
}
