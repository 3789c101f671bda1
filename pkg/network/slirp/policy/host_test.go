package policy

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestTheHostKnowsItsOwnAddresses(t *testing.T) {
	testenv.UserNS{Flags: unix.CLONE_NEWNET, Inner: func(t *testing.T) {
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		lo, err := netlink.LinkByName("lo")
		must(err)
		must(netlink.LinkSetUp(lo))
		down := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "down"}, PeerName: "peer"}
		must(netlink.LinkAdd(down))
		for address, link := range map[string]netlink.Link{"198.51.100.9/32": lo, "2001:db8:9::1/128": lo, "192.0.2.77/24": down} {
			a, err := netlink.ParseAddr(address)
			must(err)
			must(netlink.AddrAdd(link, a))
		}
		for network, kind := range map[string]int{"203.0.113.0/24": unix.RTN_LOCAL, "2001:db8:5::/64": unix.RTN_LOCAL, "203.0.113.128/25": unix.RTN_BLACKHOLE} {
			to, err := netlink.ParseIPNet(network)
			must(err)
			route := &netlink.Route{Dst: to, Type: kind, Table: unix.RT_TABLE_LOCAL}
			if kind == unix.RTN_LOCAL {
				route.LinkIndex, route.Scope = lo.Attrs().Index, netlink.SCOPE_HOST
			}
			must(netlink.RouteAdd(route))
		}
		for address, want := range map[string]bool{
			"198.51.100.9": true, "2001:db8:9::1": true, // of an interface
			"203.0.113.7": true, "2001:db8:5::7": true, // of a route
			"192.0.2.77":    true,                          // of an interface to which no route leads
			"203.0.113.200": false,                         // of a route that leads nowhere
			"192.0.2.78":    false, "2001:db8:6::7": false, // no route
		} {
			if is, err := isHost(netip.MustParseAddr(address)); is != want || err != nil {
				t.Errorf("%s is the host's own: %v, %v; want %v", address, is, err, want)
			}
		}

		var limit unix.Rlimit
		must(unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
		must(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}))
		is, err := isHost(netip.MustParseAddr("192.0.2.78"))
		must(unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
		if is || err == nil {
			t.Errorf("without a descriptor to ask by, an address is the host's own: %v, %v", is, err)
		}
	}}.Run(t)
}
