package hostnic

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// card is an interface of the host with what moving it to another network namespace
// loses.
type card struct {
	Name string `json:"name"`

	// Kind is the kernel's name for a virtual interface, such as veth or vlan;
	// "device" for one with hardware.
	Kind string `json:"kind"`

	// Index is the interface's number. It stays the same in a namespace where the
	// number is free.
	Index int `json:"index"`

	// HardwareAddr is the Ethernet address that it had, and PermanentAddr the one
	// that is burnt in, where there is one.
	HardwareAddr  string `json:"hardwareAddr"`
	PermanentAddr string `json:"permanentAddr,omitempty"`

	// AltNames are the names that it has besides (ip-link(8), altname).
	AltNames []string `json:"altNames,omitempty"`

	MTU     int               `json:"mtu"`
	TxQLen  int               `json:"txQueueLength"`
	Flags   uint32            `json:"flags"` // IFF_*, netdevice(7)
	Alias   string            `json:"alias,omitempty"`
	Group   uint32            `json:"group"`
	Sysctls map[string]string `json:"sysctls"`

	// AddressMessages and RouteMessages are those with which the kernel listed
	// them (rtnetlink(7)), to be said again.
	AddressMessages []message `json:"addressMessages"`
	RouteMessages   []message `json:"routeMessages"`
}

// keptFlags are the flags that an administrator sets, but for IFF_UP, which comes
// last.
const keptFlags = unix.IFF_NOARP | unix.IFF_PROMISC | unix.IFF_ALLMULTI | unix.IFF_MULTICAST | unix.IFF_DYNAMIC

// readCard reads all that is known of an interface of the current network
// namespace.
func readCard(link netlink.Link) (card, error) {
	a := link.Attrs()
	c := card{
		Name: a.Name, Kind: link.Type(), Index: a.Index,
		HardwareAddr: a.HardwareAddr.String(), PermanentAddr: permanent(a), AltNames: a.AltNames,
		MTU: a.MTU, TxQLen: a.TxQLen, Flags: a.RawFlags, Alias: a.Alias, Group: a.Group,
		Sysctls: readSysctls(a.Name),
	}
	var err error
	if c.AddressMessages, err = readAddresses(a.Index); err != nil {
		return c, fmt.Errorf("addresses of %s: %w", a.Name, err)
	}
	if c.RouteMessages, err = readRoutes(a.Index); err != nil {
		return c, fmt.Errorf("routes of %s: %w", a.Name, err)
	}
	return c, nil
}

// permanent is the address that is burnt in; virtual interfaces have none, or
// zeros.
func permanent(a *netlink.LinkAttrs) string {
	if len(bytes.Trim(a.PermHWAddr, "\x00")) == 0 {
		return ""
	}
	return a.PermHWAddr.String()
}

// hardware is the kind of an interface that is not made by a request.
const hardware = "device"

// findOnHost finds the card in the current network namespace, the host's; nil where
// it is not. It comes with its name and its Ethernet address, or with passingName
// (takeOut). Only one with hardware may come by itself, as its user has left it.
func (c *card) findOnHost() (netlink.Link, error) { return findLink(c.likenessOnHost) }

func (c *card) likenessOnHost(l netlink.Link) int {
	a := l.Attrs()
	named, addressed := a.Name == c.Name, a.HardwareAddr.String() == c.HardwareAddr
	switch {
	case l.Type() != c.Kind:
		return 0
	case a.Name == c.passingName():
		return 3
	case c.PermanentAddr != "" && permanent(a) != c.PermanentAddr:
		return 0
	case named && addressed:
		return 2
	case c.PermanentAddr != "", c.Kind == hardware && (addressed || a.Index == c.Index):
		return 1
	}
	return 0
}

// findInside finds the card in the current network namespace, that which it was lent
// in; nil where it is not. There it has the number inside, unless its user has gone
// to lengths; inside is 0 as long as nobody has been there but us.
func (c *card) findInside(inside int) (netlink.Link, error) {
	return findLink(func(l netlink.Link) int {
		switch a := l.Attrs(); {
		case l.Type() != c.Kind:
			return 0
		case a.Index == inside:
			return 3
		case a.HardwareAddr.String() == c.HardwareAddr:
			return 2
		case a.Name == c.Name:
			return 1
		}
		return 0
	})
}

// findLink finds the interface of the most likeness, where that is more than 0.
func findLink(likeness func(netlink.Link) int) (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return mostLike(links, likeness), nil
}

func mostLike(links []netlink.Link, likeness func(netlink.Link) int) (found netlink.Link) {
	best := 0
	for _, l := range links {
		if n := likeness(l); n > best {
			found, best = l, n
		}
	}
	return found
}

// passingName is what the card is called on the host until it is as it was, where it
// does not come as it was.
func (c *card) passingName() string { return fmt.Sprintf("gatekit%d", c.Index) }

// lend moves the card to a network namespace, where it is down.
func (c *card) lend(link netlink.Link, to *os.File) error { return c.move(link, to, "") }

// takeBack moves the card to the host, where it is down. Names that its user has
// given it are no reason to stay.
func (c *card) takeBack(link netlink.Link, host *os.File) error {
	a, name := link.Attrs(), ""
	if a.Name != c.Name || a.HardwareAddr.String() != c.HardwareAddr {
		name = c.passingName()
	}
	err := c.move(link, host, name)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	for _, n := range a.AltNames {
		if err := netlink.LinkDelAltName(link, n); err != nil {
			return fmt.Errorf("take the name %s from %s: %w", n, c.Name, err)
		}
	}
	return c.move(link, host, c.passingName())
}

// move puts an interface of the current network namespace into another, and gives it
// a name there unless that is "". Both are one request.
func (c *card) move(link netlink.Link, to *os.File, name string) error {
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(link.Attrs().Index)
	request.AddData(m)
	request.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(to.Fd()))))
	if name != "" {
		request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	}
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%s cannot leave its network namespace: the kernel keeps interfaces of kind %s in theirs", c.Name, c.Kind)
	case err != nil:
		return fmt.Errorf("move %s to another network namespace: %w", c.Name, err)
	}
	return nil
}

// restoreLink gives the interface the properties of the card, but for addresses, up
// or down, and routes. What cannot be done does not keep it from the rest. The name
// comes after the Ethernet address: with both it is known again.
func (c *card) restoreLink(link netlink.Link) error {
	var errs error
	for _, set := range []struct {
		what string
		do   func() error
	}{
		{"hardware address", func() error { return c.restoreHardwareAddr(link) }},
		{"name", func() error { return c.restoreName(link) }},
		{"alternative names", func() error { return c.restoreAltNames(link) }},
		{"MTU", func() error { return netlink.LinkSetMTU(link, c.MTU) }},
		{"queue length", func() error { return netlink.LinkSetTxQLen(link, c.TxQLen) }},
		{"alias", func() error { return netlink.LinkSetAlias(link, c.Alias) }},
		{"group", func() error { return netlink.LinkSetGroup(link, int(c.Group)) }},
		{"flags", func() error { return setFlags(link.Attrs().Index, c.Flags, keptFlags) }},
	} {
		if err := set.do(); err != nil {
			errs = errors.Join(errs, fmt.Errorf("set the %s of %s: %w", set.what, c.Name, err))
		}
	}
	if l, err := netlink.LinkByIndex(link.Attrs().Index); err == nil && l.Attrs().Name == c.Name {
		restoreSysctls(c.Name, c.Sysctls)
	}
	return errs
}

func (c *card) restoreHardwareAddr(link netlink.Link) error {
	mac, err := net.ParseMAC(c.HardwareAddr)
	if err != nil || bytes.Equal(mac, link.Attrs().HardwareAddr) {
		return nil // it has none, or the right one
	}
	return netlink.LinkSetHardwareAddr(link, mac)
}

// restoreName takes names away that the card did not have, and gives it its own.
func (c *card) restoreName(link netlink.Link) error {
	a := link.Attrs()
	for _, n := range a.AltNames {
		if !slices.Contains(c.AltNames, n) {
			if err := netlink.LinkDelAltName(link, n); err != nil {
				return err
			}
		}
	}
	if a.Name == c.Name {
		return nil
	}
	// In older kernels an interface that is up has a name for good.
	if err := netlink.LinkSetDown(link); err != nil {
		return err
	}
	if err := netlink.LinkSetName(link, c.Name); err != nil {
		return fmt.Errorf("the card is called %s: %w: rename the interface that has its name, and run it again", a.Name, err)
	}
	return nil
}

// restoreAltNames adds those that are missing. Where udev(7) gives them, too, it may
// be the faster one.
func (c *card) restoreAltNames(link netlink.Link) error {
	for _, n := range c.AltNames {
		if slices.Contains(link.Attrs().AltNames, n) {
			continue
		}
		err := netlink.LinkAddAltName(link, n)
		if errors.Is(err, unix.EEXIST) {
			if l, lerr := netlink.LinkByName(n); lerr == nil && l.Attrs().Index == link.Attrs().Index {
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}

// sayAddresses gives an interface the addresses of the card, which were read that
// long ago. The kernel lists IPv4 addresses in the order in which they came, and
// IPv6 addresses the other way round.
func (c *card) sayAddresses(link netlink.Link, age time.Duration) error {
	var order []message
	for _, m := range c.AddressMessages {
		if m.isIPv4() {
			order = append(order, m)
		} else {
			order = slices.Insert(order, 0, m)
		}
	}
	var errs error
	for _, m := range order {
		if err := m.sayAddress(link.Attrs().Index, age); err != nil {
			errs = errors.Join(errs, fmt.Errorf("add address %v to %s: %w", m.prefix(), c.Name, err))
		}
	}
	return errs
}

// restoreUp sets the interface up or down.
func (c *card) restoreUp(link netlink.Link) error {
	if err := setFlags(link.Attrs().Index, c.Flags, unix.IFF_UP); err != nil {
		return fmt.Errorf("set %s up: %w", c.Name, err)
	}
	return nil
}

// setFlags sets those flags of an interface that are in mask.
func setFlags(index int, flags, mask uint32) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags, m.Change = int32(index), flags&mask, mask
	request.AddData(m)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// sysctlDirs are where the settings of an interface are, which it gets anew in
// each network namespace.
var sysctlDirs = []string{"ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh"}

// readSysctls reads them. Some cannot be read, such as a secret that is not set.
func readSysctls(ifname string) map[string]string {
	values := map[string]string{}
	for _, dir := range sysctlDirs {
		files, _ := filepath.Glob(filepath.Join("/proc/sys/net", dir, ifname, "*"))
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil {
				values[dir+"/"+filepath.Base(f)] = strings.TrimSpace(string(b))
			}
		}
	}
	return values
}

// restoreSysctls writes those that are other than they were. One that does not take
// its old value, such as an MTU for IPv6 that the kernel derives, is left.
func restoreSysctls(ifname string, values map[string]string) {
	now := readSysctls(ifname)
	for key, value := range values {
		if now[key] != value {
			path := filepath.Join("/proc/sys/net", filepath.Dir(key), ifname, filepath.Base(key))
			_ = os.WriteFile(path, []byte(value), 0)
		}
	}
}
