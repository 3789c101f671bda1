package slirp

import (
	"errors"
	"net/netip"
	"testing"
)

func TestSubnetsHoldTheirAddresses(t *testing.T) {
	for _, test := range []struct{ network, gateway, dns, child string }{
		{"10.0.2.0/24", "10.0.2.2", "10.0.2.3", "10.0.2.100"},
		{"10.41.0.0/16", "10.41.0.2", "10.41.0.3", "10.41.0.100"},
		{"10.0.0.128/25", "10.0.0.130", "10.0.0.131", "10.0.0.228"},
		{"fd67:6174:656b::/64", "fd67:6174:656b::2", "fd67:6174:656b::3", "fd67:6174:656b::100"},
		{"fd00:1::1:0/112", "fd00:1::1:2", "fd00:1::1:3", "fd00:1::1:100"},
		{"fd00:1::200/119", "fd00:1::202", "fd00:1::203", "fd00:1::300"},
	} {
		t.Run(test.network, func(t *testing.T) {
			s, err := newSubnet(netip.MustParsePrefix(test.network))
			if err != nil {
				t.Fatal(err)
			}
			if s.gateway.String() != test.gateway || s.dns.String() != test.dns || s.child.String() != test.child {
				t.Errorf("got %v, %v, %v", s.gateway, s.dns, s.child)
			}
			for _, a := range []netip.Addr{s.gateway, s.dns, s.child} {
				if !s.prefix.Contains(a) {
					t.Errorf("%v is not in %v", a, s.prefix)
				}
			}
		})
	}
}

func TestOptionsThatCannotWorkAreWrongUsage(t *testing.T) {
	network := func(s string) Options {
		p := netip.MustParsePrefix(s)
		if p.Addr().Is4() {
			return Options{IPv4: p}
		}
		return Options{IPv6: p}
	}
	for name, o := range map[string]Options{
		"an IPv4 network that is too small":          network("10.0.2.0/26"),
		"an IPv6 network that is too small":          network("fd00::/120"),
		"an address instead of a network":            network("10.0.2.5/24"),
		"the loopback":                               network("127.0.0.0/8"),
		"multicast":                                  network("224.0.0.0/24"),
		"the unspecified network":                    network("0.0.0.0/0"),
		"link-local IPv6":                            network("fe80::/64"),
		"IPv6 where IPv4 is wanted":                  {IPv4: defaultIPv6},
		"IPv4 where IPv6 is wanted":                  {IPv6: defaultIPv4},
		"an MTU that is too small":                   {MTU: 575},
		"an MTU that is too large":                   {MTU: 65521},
		"an MTU below IPv6's with an IPv6 network":   {MTU: 1279, IPv6: defaultIPv6},
		"an interface name that is too long":         {Ifname: "sixteen-letters-"},
		"an interface name with a slash":             {Ifname: "a/b"},
		"an interface name that the kernel fills in": {Ifname: "tap%d"},
		"an interface name that the kernel keeps":    {Ifname: "all"},
		"lo": {Ifname: "lo"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(o); !errors.Is(err, ErrUsage) {
				t.Errorf("error %v, want wrong usage", err)
			}
		})
	}
}

func TestPlanFollowsTheOptions(t *testing.T) {
	n, err := New(Options{
		IPv4: netip.MustParsePrefix("10.41.0.0/16"), IPv6: defaultIPv6,
		MTU: 65520, Ifname: "eth7", Search: []string{"corp.example"}, Options: []string{"ndots:2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	p := n.Plan()
	nic := p.Interface
	if p.Driver != "slirp" || !p.Namespace || nic.Name != "eth7" || nic.MTU != 65520 ||
		nic.Addresses[0].String() != "10.41.0.100/16" || nic.Addresses[1].String() != "fd67:6174:656b::100/64" ||
		nic.Gateways[0].String() != "10.41.0.2" || nic.Gateways[1].String() != "fd67:6174:656b::2" ||
		p.Nameservers[0].String() != "10.41.0.3" || p.Nameservers[1].String() != "fd67:6174:656b::3" ||
		p.Search[0] != "corp.example" || p.Options[0] != "ndots:2" {
		t.Errorf("got %+v with %+v", p, nic)
	}
	if i := n.Info(); i.Driver != "slirp" || i.ChildIP.String() != "10.41.0.100" || len(i.DNS) != 2 || i.DynamicChildIP {
		t.Errorf("got %+v", i)
	}
}

func TestIPv6IsLeftOut(t *testing.T) {
	for name, o := range map[string]Options{
		"when it is switched off":      {DisableIPv6: true},
		"when the MTU is below IPv6's": {MTU: 576},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			if p := n.Plan(); len(p.Interface.Addresses) != 1 || len(p.Interface.Gateways) != 1 || len(p.Nameservers) != 1 {
				t.Errorf("got %+v with %+v", p, p.Interface)
			}
		})
	}
}

func TestFreeNetworksAvoidTheHosts(t *testing.T) {
	for _, test := range []struct {
		name       string
		host       []string
		ipv4, ipv6 string
	}{
		{"a host elsewhere", []string{"192.168.1.7", "2001:db8::7"}, "10.0.2.0/24", "fd67:6174:656b::/64"},
		{"no host", nil, "10.0.2.0/24", "fd67:6174:656b::/64"},
		{"a host in the first", []string{"10.0.2.15"}, "10.0.3.0/24", "fd67:6174:656b::/64"},
		{"a host in the first two", []string{"10.0.3.1", "10.0.2.15"}, "10.0.4.0/24", "fd67:6174:656b::/64"},
		{"a host in another", []string{"10.0.3.1"}, "10.0.2.0/24", "fd67:6174:656b::/64"},
		{"a host in the first of IPv6", []string{"fd67:6174:656b::100"}, "10.0.2.0/24", "fd67:6174:656b:1::/64"},
		{"an IPv4-mapped address", []string{"::ffff:10.0.2.1"}, "10.0.3.0/24", "fd67:6174:656b::/64"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var host []netip.Addr
			for _, s := range test.host {
				host = append(host, netip.MustParseAddr(s))
			}
			ipv4, ipv6 := FreeNetworks(host)
			if ipv4.String() != test.ipv4 || ipv6.String() != test.ipv6 {
				t.Errorf("got %v and %v, want %v and %v", ipv4, ipv6, test.ipv4, test.ipv6)
			}
		})
	}
}
