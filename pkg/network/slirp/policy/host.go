package policy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// isHost says whether an address is the host's own at this moment: the kernel delivers
// here what is sent to it, as to the addresses of interfaces and to those of routes of
// type local, which none has (ip-route(8)); or an interface has it, although the way to
// it is another, through a VRF for one. It is asked only where a rule needs it.
func isHost(addr netip.Addr) (bool, error) {
	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil && !isUnroutable(err) {
		return false, fmt.Errorf("route to %v: %w", addr, err)
	}
	if slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Type == unix.RTN_LOCAL || r.Type == unix.RTN_ANYCAST }) {
		return true, nil
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(list, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().WithZone("") == addr
	}), nil
}

// isUnroutable says whether a route was asked for and there is none, or one of the
// types unreachable, prohibit and blackhole (ip-route(8)).
func isUnroutable(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL)
}
