package slirp

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/linux"
)

// What the host's side cannot do is told to the namespace as a router tells it, by
// an ICMP error that quotes the packet, so that its kernel gives the program the
// errno that it would have seen on the host.
//
//	host's side                           the namespace gets
//	ICMP error about one of our packets   the same, from the same router
//	ECONNREFUSED, for TCP                 a reset
//	ECONNREFUSED, for UDP                 port unreachable      } from
//	ENETUNREACH, no such family ...       net unreachable       } the
//	EHOSTUNREACH                          host unreachable      } gateway
//	EACCES, EPERM                         prohibited            }
//	EMSGSIZE                              packet too big        }
//	no answer                             nothing

// unreachable is the ICMP error of the gateway for an errno of the host; false for
// one that says nothing about the path.
func unreachable(err error, ipv6 bool) (icmpError, bool) {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return icmpError{}, false
	}
	e := icmpError{kind: uint8(header.ICMPv4DstUnreachable)}
	codes := unreachableIPv4
	if ipv6 {
		e.kind = uint8(header.ICMPv6DstUnreachable)
		codes = unreachableIPv6
	}
	switch errno {
	case unix.ENETUNREACH, unix.ENETDOWN, unix.EAFNOSUPPORT, unix.EADDRNOTAVAIL, unix.ENODEV:
		e.code = codes.net
	case unix.EHOSTUNREACH, unix.EHOSTDOWN:
		e.code = codes.host
	case unix.EACCES, unix.EPERM:
		e.code = codes.prohibited
	case unix.ECONNREFUSED:
		e.code = codes.port
	default:
		return icmpError{}, false
	}
	return e, true
}

// unreachableCodes are the codes of "destination unreachable".
type unreachableCodes struct{ net, host, port, prohibited uint8 }

var (
	unreachableIPv4 = unreachableCodes{
		net:        uint8(header.ICMPv4NetUnreachable),
		host:       uint8(header.ICMPv4HostUnreachable),
		port:       uint8(header.ICMPv4PortUnreachable),
		prohibited: uint8(header.ICMPv4AdminProhibited),
	}
	unreachableIPv6 = unreachableCodes{
		net:        uint8(header.ICMPv6NetworkUnreachable),
		host:       uint8(header.ICMPv6AddressUnreachable),
		port:       uint8(header.ICMPv6PortUnreachable),
		prohibited: uint8(header.ICMPv6Prohibited),
	}
)

// tooBig is the gateway's error for a packet that is larger than the path takes.
func tooBig(mtu uint32, ipv6 bool) icmpError {
	if ipv6 {
		return icmpError{kind: uint8(header.ICMPv6PacketTooBig), info: mtu}
	}
	return icmpError{kind: uint8(header.ICMPv4DstUnreachable), code: uint8(header.ICMPv4FragmentationNeeded), info: mtu}
}

// expired is the gateway's error for a packet whose time to live ends there.
func expired(ipv6 bool) icmpError {
	if ipv6 {
		return icmpError{kind: uint8(header.ICMPv6TimeExceeded)}
	}
	return icmpError{kind: uint8(header.ICMPv4TimeExceeded)}
}

// passedOn is the error that a notice of the host's kernel becomes; false for what
// the namespace has no use for. from is its sender as the namespace knows it.
func passedOn(n *linux.Notice, from netip.Addr, ipv6 bool) (icmpError, bool) {
	if !n.ICMP {
		if n.Errno == unix.EMSGSIZE {
			return tooBig(n.Info, ipv6), true
		}
		return unreachable(n.Errno, ipv6)
	}
	e := icmpError{kind: n.Type, code: n.Code, from: from, ttl: hop(n.TTL)}
	if ipv6 {
		switch header.ICMPv6Type(n.Type) {
		case header.ICMPv6PacketTooBig, header.ICMPv6ParamProblem:
			e.info = n.Info
		case header.ICMPv6DstUnreachable, header.ICMPv6TimeExceeded:
		default:
			return icmpError{}, false
		}
		return e, true
	}
	switch header.ICMPv4Type(n.Type) {
	case header.ICMPv4DstUnreachable:
		if header.ICMPv4Code(n.Code) == header.ICMPv4FragmentationNeeded {
			e.info = n.Info
		}
	case header.ICMPv4ParamProblem:
		e.info = n.Info << 24 // the pointer
	case header.ICMPv4TimeExceeded:
	default:
		return icmpError{}, false
	}
	return e, true
}

// hop is the time to live of a packet that came with ttl, after one more hop. The
// last one is not taken away: the packet has arrived, in the namespace or at the
// gateway, and a router in between is none of its sender's plan.
func hop(ttl uint8) uint8 {
	if ttl == 0 { // not known
		return ownTTL
	}
	return max(1, ttl-1)
}
