package slirp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network"
)

// tapGSOMaxSize is the largest segment that the namespace's kernel may give us,
// with its headers: with the Ethernet header it fills one read.
const tapGSOMaxSize = maxFrame - 64

// tapQueueLength is the length of the TAP's queue, in frames. The default of
// 1000 lets a burst of small datagrams overrun it.
const tapQueueLength = 4096

// Setup is the child half: it makes the TAP of a plan in the current network
// namespace, configures it and the loopback interface, and returns the TAP's
// file for Network.Run. The interface stays until its namespace goes. It runs inside
// the namespaces with CAP_NET_ADMIN, on a locked thread where the namespace is the
// thread's.
func Setup(plan network.Plan) ([]*os.File, error) {
	nic := plan.Interface
	if nic == nil {
		return nil, errors.New("set up slirp: the plan has no interface")
	}
	file, err := openTAP(nic.Name)
	if err != nil {
		return nil, fmt.Errorf("set up slirp: %w", err)
	}
	err = configure(nic)
	if err == nil {
		err = linux.PersistTAP(file)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("set up slirp: %w", err)
	}
	setCongestionControl()
	return []*os.File{file}, nil
}

// setCongestionControl makes Reno the namespace's default for TCP, over IPv6 too.
// A connection of the namespace ends on our stack, one hop away, on a link that
// neither loses nor has a rate of its own; the path through the world has the
// host's congestion control, on the host's socket. BBR, where it is the host's
// default, would pace what it sends on the TAP with timers, at twice the cost and
// half the speed. Reno is in every kernel and allowed to all. Where /proc/sys
// cannot be written (a container's may be read-only) the network is only slower.
func setCongestionControl() {
	_ = os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte("reno"), 0)
}

// expectNoRouter has the kernel take no router advertisements on an interface, and
// so ask for none: its addresses and routes are those of the plan. Its link-local
// address is good at once, since there is nobody else on the link to have it
// (RFC 4862, 5.1 and 5.5). It is called before the interface is up. Where /proc/sys
// cannot be written, three questions for a router stay without an answer, and that
// address waits for a second.
func expectNoRouter(ifname string) {
	for _, knob := range []string{"accept_ra", "accept_dad"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+ifname+"/"+knob, []byte("0"), 0)
	}
}

// openTAP opens a TAP with offloads or, where the kernel or a sandbox refuses
// them, a plain one.
func openTAP(name string) (*os.File, error) {
	file, err := linux.OpenTAP(name)
	if !errors.Is(err, linux.ErrNoOffload) {
		return file, err
	}
	plain, werr := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name},
	})
	if werr != nil {
		return nil, fmt.Errorf("%w; plain TAP: %w", err, werr)
	}
	file, ok := plain.ReadWriteCloser.(*os.File)
	if !ok {
		plain.Close()
		return nil, fmt.Errorf("plain TAP: not a file but %T", plain.ReadWriteCloser)
	}
	return file, nil
}

// configure brings lo and the interface up with their addresses and routes.
func configure(nic *network.Interface) error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := handle.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	link, err := handle.LinkByName(nic.Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", nic.Name, err)
	}
	if err := configureLink(handle, link, nic); err != nil {
		return err
	}
	expectNoRouter(nic.Name)
	if !slices.ContainsFunc(nic.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		// No link-local address either. It fails where the interface has no IPv6 at
		// all: its MTU is below 1280, or the kernel has none.
		_ = handle.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
	}
	for _, a := range nic.Addresses {
		if err := addChildAddress(handle, link, a); err != nil {
			return fmt.Errorf("add address %v to %s: %w", a, nic.Name, err)
		}
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", nic.Name, err)
	}
	for _, gw := range nic.Gateways {
		if err := addGateway(handle, link, gw); err != nil {
			return fmt.Errorf("add neighbour %v on %s: %w", gw, nic.Name, err)
		}
		if err := addDefaultRoute(handle, link, gw); err != nil {
			return fmt.Errorf("add default route by %v on %s: %w", gw, nic.Name, err)
		}
	}
	return nil
}

// configureLink sets what has to be set before the interface is up.
func configureLink(handle *netlink.Handle, link netlink.Link, nic *network.Interface) error {
	if err := handle.LinkSetMTU(link, nic.MTU); err != nil {
		return fmt.Errorf("set MTU %d on %s: %w", nic.MTU, nic.Name, err)
	}
	if err := handle.LinkSetGSOMaxSize(link, tapGSOMaxSize); err != nil {
		return fmt.Errorf("set the segment size on %s: %w", nic.Name, err)
	}
	if err := handle.LinkSetTxQLen(link, tapQueueLength); err != nil {
		return fmt.Errorf("set the queue length on %s: %w", nic.Name, err)
	}
	if nic.HardwareAddr == "" {
		return nil
	}
	mac, err := net.ParseMAC(nic.HardwareAddr)
	if err != nil {
		return fmt.Errorf("hardware address of %s: %w", nic.Name, err)
	}
	if err := handle.LinkSetHardwareAddr(link, mac); err != nil {
		return fmt.Errorf("set hardware address %v on %s: %w", mac, nic.Name, err)
	}
	return nil
}

// addChildAddress adds an address. Duplicate address detection would hold an
// IPv6 address back for a second, on a link where nobody else can have it.
func addChildAddress(handle *netlink.Handle, link netlink.Link, a netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(a)}
	if a.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return handle.AddrAdd(link, addr)
}

// addGateway tells the kernel the gateway's Ethernet address. On a link that has
// just come up it loses its first question for an IPv6 neighbour, and asks again
// after a second.
func addGateway(handle *netlink.Handle, link netlink.Link, gw netip.Addr) error {
	return handle.NeighAdd(&netlink.Neigh{
		LinkIndex:    link.Attrs().Index,
		State:        netlink.NUD_PERMANENT,
		IP:           gw.AsSlice(),
		HardwareAddr: gatewayMAC[:],
	})
}

// addDefaultRoute makes gw the next hop of all outside.
func addDefaultRoute(handle *netlink.Handle, link netlink.Link, gw netip.Addr) error {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gw.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return handle.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(all), Gw: gw.AsSlice()})
}

// ipNet turns a network or an address in one into net's type.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
