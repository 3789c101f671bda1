package slirp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// outbound is where flows and DNS queries leave the host from. The zero value
// leaves it to the host's routing, for each flow anew. It is not for what stays on
// the host's loopback.
type outbound struct {
	addrs  [2]netip.Addr // IPv4 and IPv6; an invalid one leaves it to the host
	ifname string        // empty leaves it to the host
}

// newOutbound takes at most one address of a family.
func newOutbound(addrs []netip.Addr, ifname string) (outbound, error) {
	o := outbound{ifname: ifname}
	if ifname != "" {
		if err := checkIfname(ifname); err != nil {
			return o, fmt.Errorf("outbound interface: %w", err)
		}
	}
	for _, a := range addrs {
		a = a.Unmap()
		i := family(a)
		switch {
		case !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
			return o, fmt.Errorf("%w: outbound address %v: use a unicast address of the host that others can answer to", ErrUsage, a)
		case o.addrs[i].IsValid():
			return o, fmt.Errorf("%w: outbound addresses %v and %v are of one family: use one of each", ErrUsage, o.addrs[i], a)
		}
		o.addrs[i] = a
	}
	return o, nil
}

// family is 0 for IPv4 and 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// isSet says whether anything is not left to the host.
func (o outbound) isSet() bool { return o != outbound{} }

// apply prepares a socket of to's family for sending to addresses such as to.
func (o outbound) apply(fd int, to netip.Addr) error {
	if to.IsLoopback() {
		return nil
	}
	if o.ifname != "" {
		if err := unix.BindToDevice(fd, o.ifname); err != nil {
			return err
		}
	}
	if a := o.addrs[family(to)]; a.IsValid() {
		return linux.BindSource(fd, a)
	}
	return nil
}

// check finds what the host does not have, or does not allow.
func (o outbound) check() error {
	if o.ifname != "" {
		if _, err := net.InterfaceByName(o.ifname); err != nil {
			return fmt.Errorf("outbound interface %s: there is no such interface on this host; ip link lists them", o.ifname)
		}
		if err := o.try(loopbackIPv4, outbound{ifname: o.ifname}); err != nil {
			return fmt.Errorf("outbound interface %s: %w; an unprivileged user needs Linux 5.7 for this", o.ifname, err)
		}
	}
	for _, a := range o.addrs {
		if !a.IsValid() {
			continue
		}
		err := o.try(a, outbound{addrs: o.addrs})
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("outbound address %v: it is not an address of this host; ip address lists them", a)
		}
		if err != nil {
			return fmt.Errorf("outbound address %v: %w", a, err)
		}
	}
	return nil
}

// try applies a part of o to a socket of a's family.
func (outbound) try(a netip.Addr, part outbound) error {
	domain, elsewhere := unix.AF_INET, netip.IPv4Unspecified()
	if a.Is6() {
		domain, elsewhere = unix.AF_INET6, netip.IPv6Unspecified()
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return part.apply(fd, elsewhere)
}
