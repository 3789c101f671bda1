package hostnic

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// survey finds the card, all that is wrong with lending it, and what the state file
// will hold. It changes nothing on the host.
func survey(o *CreateOptions) (netlink.Link, *state, error) {
	if err := checkDir(o.Dir); err != nil {
		return nil, nil, err
	}
	link, err := findCard(o.Interface)
	if err != nil {
		return nil, nil, err
	}
	s := &state{Version: stateVersion, User: o.Owner.Name, UID: o.Owner.UID, Mode: o.Mode, Once: o.once, Made: time.Now()}
	if s.HostNetwork, err = os.Readlink("/proc/thread-self/ns/net"); err != nil {
		return nil, nil, err
	}
	if s.Card, err = readCard(link); err != nil {
		return nil, nil, err
	}
	if err := checkAddresses(o.Addresses); err != nil {
		return nil, nil, err
	}
	s.Addresses, s.DHCP = o.Addresses, o.DHCP
	switch {
	case o.DHCP && len(o.Addresses)+len(o.Gateways) > 0:
		return nil, nil, errors.New("hostnic.CreateOptions.DHCP brings addresses and gateway: it cannot go with hostnic.CreateOptions.Addresses and hostnic.CreateOptions.Gateways")
	case o.DHCP, len(o.Addresses) > 0:
	case o.Mode == ModeMacvlan:
		return nil, nil, errors.New("hostnic.CreateOptions.Mode=macvlan needs an address of its own on the network: give it in hostnic.CreateOptions.Addresses, or ask for one with hostnic.CreateOptions.DHCP")
	default:
		for _, m := range s.Card.AddressMessages {
			s.Addresses = append(s.Addresses, m.prefix())
		}
	}
	if !o.DHCP {
		if s.Gateways, err = gateways(o, s); err != nil {
			return nil, nil, err
		}
	}
	if o.Mode == ModeMove && !o.Force {
		if err := checkNeeded(link, s); err != nil {
			return nil, nil, err
		}
	}
	return link, s, findNameservers(o, s)
}

// checkAddresses refuses addresses that are no interface's own; the kernel takes some
// of them.
func checkAddresses(list []netip.Prefix) error {
	for _, p := range list {
		if !isCards(p.Addr()) {
			return fmt.Errorf("hostnic.CreateOptions.Addresses=%v: no card has this address", p)
		}
	}
	return nil
}

// isCards says whether an address can be a card's own.
func isCards(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.Is4In6()
}

// checkDir refuses a directory that is there, and one that cannot be made.
func checkDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("hostnic.CreateOptions.Dir=%s: want an absolute path, such as /run/gatekit/eth1", dir)
	}
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("%s exists: choose another directory, or end what it is for with: gatectl netns destroy --ns-dir %s", dir, dir)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// findCard finds the interface, if it is one that can be lent.
func findCard(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("there is no interface called %q; there are: %s", name, strings.Join(interfaceNames(), ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	a := link.Attrs()
	switch {
	case a.Flags&net.FlagLoopback != 0:
		return nil, fmt.Errorf("%s is the loopback interface: each network namespace has its own", name)
	case a.MasterIndex != 0:
		master, kind := "another interface", "bridge or bond"
		if m, err := netlink.LinkByIndex(a.MasterIndex); err == nil {
			master, kind = m.Attrs().Name, m.Type()
		}
		return nil, fmt.Errorf("%s is a member of the %s %s: take it out first with: ip link set %s nomaster", name, kind, master, name)
	}
	return link, nil
}

func interfaceNames() []string {
	links, _ := netlink.LinkList()
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

// gateways are the next hops of the default routes inside, given ones first. It
// refuses those that the card cannot reach.
func gateways(o *CreateOptions, s *state) ([]netip.Addr, error) {
	var given [2]bool // IPv4, IPv6
	for _, gw := range o.Gateways {
		f := family(gw)
		if given[f] {
			return nil, fmt.Errorf("hostnic.CreateOptions.Gateways=%v: there is one already, and each family has one", gw)
		}
		given[f] = true
		if slices.ContainsFunc(s.Addresses, func(p netip.Prefix) bool { return p.Addr() == gw }) {
			return nil, fmt.Errorf("hostnic.CreateOptions.Gateways=%v: that is the card's own address", gw)
		}
		if !gw.IsLinkLocalUnicast() && !contains(s.Addresses, gw) {
			return nil, fmt.Errorf("hostnic.CreateOptions.Gateways=%v: the card is in none of its networks, but in %s", gw, prefixes(s.Addresses))
		}
	}
	all := slices.Clone(o.Gateways)
	for _, m := range s.Card.RouteMessages {
		gw := m.gateway()
		if m.isDefault() && gw.IsValid() && !given[family(gw)] && (len(o.Addresses) == 0 || contains(o.Addresses, gw)) {
			all = append(all, gw)
		}
	}
	return all, nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func contains(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Masked().Contains(a) })
}

func prefixes(list []netip.Prefix) string {
	if len(list) == 0 {
		return "no network at all"
	}
	var s []string
	for _, p := range list {
		s = append(s, p.Masked().String())
	}
	return strings.Join(s, ", ")
}

// checkNeeded refuses a card that the host cannot be without.
func checkNeeded(link netlink.Link, s *state) error {
	if err := checkDefaultRoutes(link); err != nil {
		return err
	}
	if err := checkUppers(link); err != nil {
		return err
	}
	c, ok := sshConnection(os.Getpid())
	if !ok {
		return nil
	}
	own := slices.ContainsFunc(s.Card.AddressMessages, func(m message) bool { return m.prefix().Addr() == c.server })
	zoned := c.client.Zone() == link.Attrs().Name
	routes, err := netlink.RouteGet(c.client.WithZone("").AsSlice())
	by := c.client.Zone() == "" && err == nil && slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.LinkIndex == link.Attrs().Index })
	if own || zoned || by {
		return fmt.Errorf("%s carries the SSH connection from %v that this command is given over: it would break; hostnic.CreateOptions.Force lends the card nevertheless", link.Attrs().Name, c.client)
	}
	return nil
}

// checkDefaultRoutes refuses the card that has the only default route of a family.
func checkDefaultRoutes(link netlink.Link) error {
	for _, f := range []struct {
		family int
		name   string
	}{{unix.AF_INET, "IPv4"}, {unix.AF_INET6, "IPv6"}} {
		all, err := dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, f.family)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		mine, others := false, false
		for _, m := range all {
			if len(m) >= routeHeader && m.isDefault() {
				uses, also := m.uses(link.Attrs().Index)
				mine, others = mine || uses, others || also
			}
		}
		if mine && !others {
			return fmt.Errorf("%s carries the host's only default route of %s: without it the host reaches nothing; hostnic.CreateOptions.Force lends it nevertheless", link.Attrs().Name, f.name)
		}
	}
	return nil
}

// checkUppers refuses a card on which the host has other interfaces, such as VLANs, or
// has lent some: they stay where they are, at the mercy of the user of the card.
func checkUppers(link netlink.Link) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var uppers []string
	for _, l := range links {
		// The other end of a veth pair is not on it. A number in another namespace
		// means another interface.
		if a := l.Attrs(); a.ParentIndex == link.Attrs().Index && a.NetNsID < 0 && l.Type() != "veth" {
			uppers = append(uppers, a.Name)
		}
	}
	lent, _ := List() // what cannot be read there is not known to be on this card
	for _, l := range lent {
		if l.Mode == ModeMacvlan && l.Interface == link.Attrs().Name {
			uppers = append(uppers, "that which is lent in "+l.Dir)
		}
	}
	if len(uppers) == 0 {
		return nil
	}
	return fmt.Errorf("%s carries other interfaces: %s: lend one of these, or remove them; hostnic.CreateOptions.Force lends the card nevertheless", link.Attrs().Name, strings.Join(uppers, ", "))
}

// connection is an SSH connection: the addresses of its ends.
type connection struct{ client, server netip.Addr }

// sshConnection is that over which the process pid was started. sudo(8) takes the
// variable out of the environment, so those of the processes above are looked at,
// too.
func sshConnection(pid int) (connection, bool) {
	for pid > 1 {
		proc := "/proc/" + strconv.Itoa(pid)
		environ, err := os.ReadFile(proc + "/environ")
		if err != nil {
			return connection{}, false
		}
		for _, v := range bytes.Split(environ, []byte{0}) {
			value, ok := bytes.CutPrefix(v, []byte("SSH_CONNECTION="))
			if !ok {
				continue
			}
			return parseConnection(string(value))
		}
		if pid, err = parentOf(proc); err != nil {
			return connection{}, false
		}
	}
	return connection{}, false
}

// parseConnection parses the variable SSH_CONNECTION (ssh(1)).
func parseConnection(value string) (c connection, ok bool) {
	fields := strings.Fields(value)
	if len(fields) != 4 {
		return c, false
	}
	client, err := netip.ParseAddr(fields[0])
	if err != nil {
		return c, false
	}
	server, err := netip.ParseAddr(fields[2])
	return connection{client.Unmap(), server.Unmap().WithZone("")}, err == nil
}

// parentOf reads the parent of a process (proc(5)).
func parentOf(proc string) (int, error) {
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "PPid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, errors.New("no parent")
}

// findNameservers fills in the DNS servers: those that were asked for, else the
// host's, but for those on its loopback, which nobody reaches from the card.
func findNameservers(o *CreateOptions, s *state) error {
	s.Nameservers, s.Search, s.FixedDNS = o.Nameservers, o.Search, len(o.Nameservers) > 0
	if o.DHCP {
		return nil
	}
	b, err := os.ReadFile("/etc/resolv.conf")
	if errors.Is(err, os.ErrNotExist) {
		b, err = nil, nil
	}
	if err != nil {
		return err
	}
	servers, search := parseResolvConf(b)
	if len(s.Search) == 0 {
		s.Search = search
	}
	if len(s.Nameservers) > 0 {
		return nil
	}
	for _, a := range servers {
		if a.IsLoopback() {
			o.Logger.Warn("a DNS server of the host's is on its loopback, which is not reached from the card; name another in hostnic.CreateOptions.Nameservers", "server", a)
			continue
		}
		s.Nameservers = append(s.Nameservers, a)
	}
	if len(s.Nameservers) == 0 {
		o.Logger.Warn("gates on this card have no DNS server; name one in hostnic.CreateOptions.Nameservers", "interface", o.Interface)
	}
	return nil
}

// parseResolvConf reads the servers and search domains of a resolv.conf(5).
func parseResolvConf(data []byte) (servers []netip.Addr, search []string) {
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				servers = append(servers, a.Unmap())
			}
		case "search", "domain":
			search = fields[1:]
		}
	}
	return servers, search
}

// ipNet turns a network or an address in one into net's type.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// everything is the network of all addresses of a's family.
func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
