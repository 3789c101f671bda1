package hostnic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// message is the body of a message of rtnetlink(7) about an address or a route, as
// the kernel gave it: a fixed part, then attributes. What the kernel said of an
// address or a route can be told to it again, with all that it knows of it and we
// do not.
type message []byte

// The fixed parts (struct ifaddrmsg, struct rtmsg) and what is where in them.
const (
	addressHeader = 8
	addressPrefix = 1
	addressScope  = 3
	addressIndex  = 4

	routeHeader   = 12
	routeDstLen   = 1
	routeTable    = 4
	routeProtocol = 5
	routeType     = 7
	routeFlags    = 8

	nextHopHeader = 8 // struct rtnexthop
	nextHopFlags  = 2
	nextHopIndex  = 4
)

// What stands in IFA_PROTO (include/uapi/linux/if_addr.h).
const (
	attrAddressProto = 11
	protoLinkLocal   = 2
	protoRouter      = 3
)

// attrNextHopID is RTA_NH_ID.
const attrNextHopID = 30

// forever is a lifetime without an end.
const forever = ^uint32(0)

// attributes calls f with each attribute after a fixed part. The value is that in
// the message itself. f returns false to leave the attribute out of what attributes
// returns.
func (m message) attributes(header int, f func(typ uint16, value []byte) bool) message {
	kept := append(message(nil), m[:min(header, len(m))]...)
	for rest := m[len(kept):]; len(rest) >= unix.SizeofRtAttr; {
		length := int(binary.NativeEndian.Uint16(rest))
		if length < unix.SizeofRtAttr || length > len(rest) {
			break
		}
		end := min((length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(rest))
		typ := binary.NativeEndian.Uint16(rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if f(typ, rest[unix.SizeofRtAttr:length]) {
			kept = append(kept, rest[:end]...)
		}
		rest = rest[end:]
	}
	return kept
}

// dump asks the kernel for all messages of a kind.
func dump(request, answer int, family int) ([]message, error) {
	r := nl.NewNetlinkRequest(request, unix.NLM_F_DUMP)
	r.AddData(nl.NewIfInfomsg(family))
	bodies, err := r.Execute(unix.NETLINK_ROUTE, uint16(answer))
	if err != nil {
		return nil, err
	}
	all := make([]message, len(bodies))
	for i, b := range bodies {
		all[i] = message(b)
	}
	return all, nil
}

// say tells the kernel of an address or a route, whether or not it has it already.
func (m message) say(kind int) error {
	r := nl.NewNetlinkRequest(kind, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	r.AddRawData(m)
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// readAddresses reads the addresses of an interface, but for those that the kernel
// makes by itself, of the link and of what routers say.
func readAddresses(index int) ([]message, error) {
	all, err := dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	var mine []message
	for _, m := range all {
		if len(m) < addressHeader || int(binary.NativeEndian.Uint32(m[addressIndex:])) != index {
			continue
		}
		own := false
		m.attributes(addressHeader, func(typ uint16, value []byte) bool {
			if typ == attrAddressProto && len(value) > 0 {
				own = value[0] == protoLinkLocal || value[0] == protoRouter
			}
			return true
		})
		if !own {
			mine = append(mine, m)
		}
	}
	return mine, nil
}

// prefix is the address of an address' message; invalid where there is none.
func (m message) prefix() netip.Prefix {
	var local, address netip.Addr
	m.attributes(addressHeader, func(typ uint16, value []byte) bool {
		switch typ {
		case unix.IFA_LOCAL: // of a peer-to-peer link, where IFA_ADDRESS is the peer
			local, _ = netip.AddrFromSlice(value)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(value)
		}
		return true
	})
	if !local.IsValid() {
		local = address
	}
	return netip.PrefixFrom(local, int(m[addressPrefix]))
}

// sayAddress gives the address to the interface index. Its lifetimes, where they
// end, are shorter by age. An address whose time is over is left out.
func (m message) sayAddress(index int, age time.Duration) error {
	m = slices.Clone(m)
	binary.NativeEndian.PutUint32(m[addressIndex:], uint32(index))
	over := false
	m.attributes(addressHeader, func(typ uint16, value []byte) bool {
		if typ != unix.IFA_CACHEINFO || len(value) < 8 {
			return true
		}
		for i := range 2 { // preferred, then valid
			life := binary.NativeEndian.Uint32(value[4*i:])
			if life == forever {
				continue
			}
			left := max(0, int64(life)-int64(age/time.Second))
			over = over || i == 1 && left == 0
			binary.NativeEndian.PutUint32(value[4*i:], uint32(left))
		}
		return true
	})
	if over {
		return nil
	}
	return m.say(unix.RTM_NEWADDR)
}

// readRoutes reads the routes by an interface, but for those that the kernel makes
// by itself, with addresses and of what routers say.
func readRoutes(index int) ([]message, error) {
	var mine []message
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, family)
		if err != nil {
			return nil, err
		}
		for _, m := range all {
			if len(m) < routeHeader || binary.NativeEndian.Uint32(m[routeFlags:])&unix.RTM_F_CLONED != 0 ||
				m[routeTable] == unix.RT_TABLE_LOCAL || m[routeProtocol] == unix.RTPROT_KERNEL || m[routeProtocol] == unix.RTPROT_RA {
				continue
			}
			if uses, _ := m.uses(index); uses {
				mine = append(mine, m.sayable())
			}
		}
	}
	return mine, nil
}

// sayable is a route's message without what the kernel says of a route but does not
// want to hear: how it fares, and the number of an object for its next hop, which
// is spelled out beside it.
func (m message) sayable() message {
	m = m.attributes(routeHeader, func(typ uint16, value []byte) bool {
		if typ == unix.RTA_MULTIPATH {
			nextHops(value, func(hop []byte) { hop[nextHopFlags] &= unix.RTNH_F_ONLINK })
		}
		return typ != unix.RTA_CACHEINFO && typ != attrNextHopID
	})
	flags := binary.NativeEndian.Uint32(m[routeFlags:]) & unix.RTNH_F_ONLINK
	binary.NativeEndian.PutUint32(m[routeFlags:], flags)
	return m
}

// uses says whether the route is by this interface, and whether it is by others,
// beside it or alone.
func (m message) uses(index int) (uses, others bool) {
	m.eachInterface(func(b []byte) {
		own := int(binary.NativeEndian.Uint32(b)) == index
		uses, others = uses || own, others || !own
	})
	return uses, others
}

// by is the same route by the interface to where it was by from.
func (m message) by(from, to int) message {
	m = slices.Clone(m)
	m.eachInterface(func(b []byte) {
		if int(binary.NativeEndian.Uint32(b)) == from {
			binary.NativeEndian.PutUint32(b, uint32(to))
		}
	})
	return m
}

// eachInterface calls f with where the number of each interface stands in a route.
func (m message) eachInterface(f func(b []byte)) {
	m.attributes(routeHeader, func(typ uint16, value []byte) bool {
		switch {
		case typ == unix.RTA_OIF && len(value) >= 4:
			f(value)
		case typ == unix.RTA_MULTIPATH:
			nextHops(value, func(hop []byte) { f(hop[nextHopIndex:]) })
		}
		return true
	})
}

// nextHops calls f with each next hop in the value of RTA_MULTIPATH.
func nextHops(value []byte, f func(hop []byte)) {
	for len(value) >= nextHopHeader {
		length := int(binary.NativeEndian.Uint16(value))
		if length < nextHopHeader || length > len(value) {
			return
		}
		f(value[:length])
		value = value[min((length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(value)):]
	}
}

// isDefault says whether the route is the default route of its family, in the main
// table.
func (m message) isDefault() bool {
	return m[routeDstLen] == 0 && m[routeTable] == unix.RT_TABLE_MAIN && m[routeType] == unix.RTN_UNICAST
}

// isMain says whether the route is in the main table.
func (m message) isMain() bool { return m[routeTable] == unix.RT_TABLE_MAIN }

// isIPv4 says whether the message is about IPv4.
func (m message) isIPv4() bool { return m[0] == unix.AF_INET }

// destination is where the route leads.
func (m message) destination() netip.Prefix {
	to := netip.IPv6Unspecified()
	if m.isIPv4() {
		to = netip.IPv4Unspecified()
	}
	m.attributes(routeHeader, func(typ uint16, value []byte) bool {
		if typ == unix.RTA_DST {
			to, _ = netip.AddrFromSlice(value)
		}
		return true
	})
	return netip.PrefixFrom(to, int(m[routeDstLen]))
}

// gateway is the route's next hop; invalid where it has none of its own.
func (m message) gateway() (gw netip.Addr) {
	m.attributes(routeHeader, func(typ uint16, value []byte) bool {
		if typ == unix.RTA_GATEWAY {
			gw, _ = netip.AddrFromSlice(value)
		}
		return true
	})
	return gw
}

// sayRoutes makes routes. One may lead to the next hop of another, and one may need
// an address that is still being probed for duplicates; so those that fail are tried
// again, until there is nothing that gets better by waiting.
func sayRoutes(routes []message) error {
	const tries, pause = 100, 50 * time.Millisecond
	for try := 0; ; try++ {
		var failed []message
		var errs error
		for _, m := range routes {
			if err := m.say(unix.RTM_NEWROUTE); err != nil {
				failed = append(failed, m)
				errs = errors.Join(errs, fmt.Errorf("route to %v: %w", m.destination(), err))
			}
		}
		if len(failed) == 0 {
			return nil
		}
		if len(failed) == len(routes) {
			if try == tries {
				return errs
			}
			time.Sleep(pause)
		}
		routes = failed
	}
}
