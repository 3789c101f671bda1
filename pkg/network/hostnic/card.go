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
		HardwareAddr: a.HardwareAddr.String(), PermanentAddr: permanent(a),
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

// is says whether an interface is this card, whatever it is called now.
func (c *card) is(link netlink.Link) bool {
	a := link.Attrs()
	switch {
	case link.Type() != c.Kind:
		return false
	case c.PermanentAddr != "":
		return permanent(a) == c.PermanentAddr
	default:
		return a.Index == c.Index || a.HardwareAddr.String() == c.HardwareAddr
	}
}

// find finds the card in the current network namespace; nil where it is not.
func (c *card) find() (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var found netlink.Link
	for _, l := range links {
		if !c.is(l) {
			continue
		}
		if l.Attrs().Name == c.Name {
			return l, nil
		}
		found = l
	}
	return found, nil
}

// passingName is what the card is called while its name is taken on its way.
func (c *card) passingName() string { return fmt.Sprintf("gatekit%d", c.Index) }

// move puts an interface of the current network namespace into another, where it is
// down, with the name that it has, or with passingName where that is taken there.
func (c *card) move(link netlink.Link, to *os.File) error {
	err := netlink.LinkSetNsFd(link, int(to.Fd()))
	if errors.Is(err, unix.EEXIST) {
		// An interface that is up has a name for good, in older kernels.
		err = netlink.LinkSetDown(link)
		if err == nil {
			err = netlink.LinkSetName(link, c.passingName())
		}
		if err == nil {
			err = netlink.LinkSetNsFd(link, int(to.Fd()))
		}
	}
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%s cannot leave its network namespace: the kernel keeps interfaces of kind %s in theirs", c.Name, c.Kind)
	case err != nil:
		return fmt.Errorf("move %s to another network namespace: %w", c.Name, err)
	}
	return nil
}

// restoreLink gives the interface the properties of the card, but for addresses,
// up or down, and routes.
func (c *card) restoreLink(link netlink.Link) error {
	if a := link.Attrs(); a.Name != c.Name {
		if err := netlink.LinkSetDown(link); err != nil {
			return fmt.Errorf("set %s down: %w", a.Name, err)
		}
		if err := netlink.LinkSetName(link, c.Name); err != nil {
			return fmt.Errorf("rename %s, the card, to %s: %w: rename the interface that has its name, and run it again", a.Name, c.Name, err)
		}
	}
	mac, err := net.ParseMAC(c.HardwareAddr)
	if err == nil && !bytes.Equal(mac, link.Attrs().HardwareAddr) {
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("set hardware address %v of %s: %w", mac, c.Name, err)
		}
	}
	for _, set := range []struct {
		what string
		do   func() error
	}{
		{"MTU", func() error { return netlink.LinkSetMTU(link, c.MTU) }},
		{"queue length", func() error { return netlink.LinkSetTxQLen(link, c.TxQLen) }},
		{"alias", func() error { return netlink.LinkSetAlias(link, c.Alias) }},
		{"group", func() error { return netlink.LinkSetGroup(link, int(c.Group)) }},
		{"flags", func() error { return setFlags(link.Attrs().Index, c.Flags, keptFlags) }},
	} {
		if err := set.do(); err != nil {
			return fmt.Errorf("set the %s of %s: %w", set.what, c.Name, err)
		}
	}
	restoreSysctls(c.Name, c.Sysctls)
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
	for _, m := range order {
		if err := m.sayAddress(link.Attrs().Index, age); err != nil {
			return fmt.Errorf("add address %v to %s: %w", m.prefix(), c.Name, err)
		}
	}
	return nil
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
