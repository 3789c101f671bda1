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
	name := link.Attrs().Name
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
			return fmt.Errorf("%s carries the host's only default route of %s: without it the host reaches nothing; hostnic.CreateOptions.Force lends it nevertheless", name, f.name)
		}
	}
	if client, ok := sshClient(os.Getpid()); ok {
		routes, err := netlink.RouteGet(client.AsSlice())
		if err == nil && slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.LinkIndex == link.Attrs().Index }) {
			return fmt.Errorf("%s carries the SSH connection from %v that this command is given over: it would break; hostnic.CreateOptions.Force lends the card nevertheless", name, client)
		}
	}
	return nil
}

// sshClient is who is at the other end of the SSH connection over which the process
// pid was started. sudo(8) takes the variable out of the environment, so those of
// the processes above are looked at, too.
func sshClient(pid int) (netip.Addr, bool) {
	for pid > 1 {
		proc := "/proc/" + strconv.Itoa(pid)
		environ, err := os.ReadFile(proc + "/environ")
		if err != nil {
			return netip.Addr{}, false
		}
		for _, v := range bytes.Split(environ, []byte{0}) {
			value, ok := bytes.CutPrefix(v, []byte("SSH_CONNECTION="))
			if !ok {
				continue
			}
			client, _, _ := strings.Cut(string(value), " ")
			addr, err := netip.ParseAddr(client)
			return addr.Unmap().WithZone(""), err == nil
		}
		if pid, err = parentOf(proc); err != nil {
			return netip.Addr{}, false
		}
	}
	return netip.Addr{}, false
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
