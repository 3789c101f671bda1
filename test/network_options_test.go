package test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// link is what the ip program says of an interface.
type link struct {
	Name      string   `json:"ifname"`
	MTU       int      `json:"mtu"`
	Flags     []string `json:"flags"`
	Addresses []struct {
		Local  netip.Addr `json:"local"`
		Length int        `json:"prefixlen"`
		Scope  string     `json:"scope"`
	} `json:"addr_info"`
}

// global are the interface's addresses but for those of the link.
func (l link) global() []string {
	var out []string
	for _, a := range l.Addresses {
		if a.Scope == "global" {
			out = append(out, netip.PrefixFrom(a.Local, a.Length).String())
		}
	}
	return out
}

// links lists the interfaces in the gate.
func (g *gate) links(t *testing.T) map[string]link {
	t.Helper()
	var list []link
	if err := json.Unmarshal([]byte(g.run(t, "ip", "-json", "address")), &list); err != nil {
		t.Fatal(err)
	}
	out := map[string]link{}
	for _, l := range list {
		out[l.Name] = l
	}
	return out
}

// gateways lists the gate's default routes, as "GATEWAY INTERFACE".
func (g *gate) gateways(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, family := range []string{"-4", "-6"} {
		var routes []struct{ Gateway, Dev string }
		text := g.run(t, "ip", "-json", family, "route", "show", "default")
		if err := json.Unmarshal([]byte(text), &routes); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		for _, r := range routes {
			out = append(out, r.Gateway+" "+r.Dev)
		}
	}
	return out
}

// nameservers lists those of the gate's resolv.conf.
func (g *gate) nameservers(t *testing.T) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(g.run(t, "cat", "/etc/resolv.conf")) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			out = append(out, f[1])
		}
	}
	return out
}

func TestOptionsAreHonouredEverywhere(t *testing.T) {
	for name, c := range map[string]struct {
		flags, host []string // host: addresses of the host, to be avoided
		ifname      string
		mtu         int
		addresses   []string
		gateways    []string
		dns         []string
	}{
		"defaults": {
			ifname:    "tap0",
			mtu:       1500,
			addresses: []string{"10.0.2.100/24", "fd67:6174:656b::100/64"},
			gateways:  []string{"10.0.2.2 tap0", "fd67:6174:656b::2 tap0"},
			dns:       []string{"10.0.2.3", "fd67:6174:656b::3"},
		},
		"other networks, name and MTU": {
			flags:     []string{"--cidr=172.31.0.0/16", "--cidr6=fd12:3456:789a:1::/64", "--ifname=wan-0.1", "--mtu=9000"},
			ifname:    "wan-0.1",
			mtu:       9000,
			addresses: []string{"172.31.0.100/16", "fd12:3456:789a:1::100/64"},
			gateways:  []string{"172.31.0.2 wan-0.1", "fd12:3456:789a:1::2 wan-0.1"},
			dns:       []string{"172.31.0.3", "fd12:3456:789a:1::3"},
		},
		"small networks that begin in the middle": {
			flags:     []string{"--cidr=192.168.7.128/25", "--cidr6=fd12:0:0:0:0:0:5:8000/113"},
			ifname:    "tap0",
			mtu:       1500,
			addresses: []string{"192.168.7.228/25", "fd12::5:8100/113"},
			gateways:  []string{"192.168.7.130 tap0", "fd12::5:8002 tap0"},
			dns:       []string{"192.168.7.131", "fd12::5:8003"},
		},
		"no IPv6": {
			flags:     []string{"--ipv6=false"},
			ifname:    "tap0",
			mtu:       1500,
			addresses: []string{"10.0.2.100/24"},
			gateways:  []string{"10.0.2.2 tap0"},
			dns:       []string{"10.0.2.3"},
		},
		"the next networks, where the host is in the first": {
			host:      []string{"10.0.2.15/24", "10.0.3.2/16", "fd67:6174:656b::77/64"},
			ifname:    "tap0",
			mtu:       1500,
			addresses: []string{"10.0.4.100/24", "fd67:6174:656b:1::100/64"},
			gateways:  []string{"10.0.4.2 tap0", "fd67:6174:656b:1::2 tap0"},
			dns:       []string{"10.0.4.3", "fd67:6174:656b:1::3"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			for _, prefix := range c.host {
				s.hasAddress(t, prefix, s.outside.Interface)
			}
			port := serveTCP(t, s.outside, "[::]:0", echoTCP).Port()
			g := startGate(t, s.Host, append(append([]string{"--net=slirp"}, c.flags...), "sleep", "infinity")...)
			links := g.links(t)
			if l := links[c.ifname]; l.MTU != c.mtu || !slices.Equal(l.global(), c.addresses) || !slices.Contains(l.Flags, "UP") {
				t.Errorf("%s is %+v\nwant MTU %d and addresses %q", c.ifname, l, c.mtu, c.addresses)
			}
			if len(links) != 2 || !slices.Contains(links["lo"].Flags, "UP") {
				t.Errorf("the interfaces are %+v", links)
			}
			if got := g.gateways(t); !slices.Equal(got, c.gateways) {
				t.Errorf("the default routes are %q, want %q", got, c.gateways)
			}
			if got := g.nameservers(t); !slices.Equal(got, c.dns) {
				t.Errorf("the name servers are %q, want %q", got, c.dns)
			}
			info, err := g.client(t).Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var dns []string
			for _, a := range info.NetworkDriver.DNS {
				dns = append(dns, a.String())
			}
			child := netip.MustParsePrefix(c.addresses[0]).Addr()
			if n := info.NetworkDriver; n.ChildIP == nil || *n.ChildIP != child || !slices.Equal(dns, c.dns) || n.Driver != "slirp" || n.DynamicChildIP {
				t.Errorf("the API says %+v, want child address %v and name servers %q", n, child, c.dns)
			}
			g.run(t, "probe", "exchange", at(s.outside.Addr4, int(port)), "100000")
			if len(c.addresses) == 2 {
				g.run(t, "probe", "exchange", at(s.outside.Addr6, int(port)), "100000")
				return
			}
			unreachable := at(s.outside.Addr6, int(port)) + " network is unreachable\n"
			if got := g.run(t, "probe", "connect", at(s.outside.Addr6, int(port))); got != unreachable {
				t.Error(got)
			}
		})
	}
}

func TestEveryMTUCarriesAllSizes(t *testing.T) {
	s := newSite(t)
	port := serveTCP(t, s.outside, "[::]:0", echoTCP).Port()
	udp4, udp6 := serveUDP(t, s.outside, at(s.outside.Addr4, 0), echoUDP), serveUDP(t, s.outside, at(s.outside.Addr6, 0), echoUDP)
	for _, mtu := range []int{576, 1280, 1500, 9000, 65520} {
		t.Run(strconv.Itoa(mtu), func(t *testing.T) {
			g := startGate(t, s.Host, "--net=slirp", "--mtu="+strconv.Itoa(mtu), "sleep", "infinity")
			if l := g.links(t)["tap0"]; l.MTU != mtu {
				t.Errorf("tap0 has MTU %d", l.MTU)
			}
			const size = 4 << 20
			g.run(t, "probe", "exchange", at(s.outside.Addr4, int(port)), strconv.Itoa(size))
			g.run(t, "probe", "echo", addrOf(udp4).String())
			if mtu >= 1280 { // which IPv6 needs (RFC 8200, 5)
				g.run(t, "probe", "exchange", at(s.outside.Addr6, int(port)), strconv.Itoa(size))
				g.run(t, "probe", "echo", addrOf(udp6).String())
			}
			g.stop(t)
		})
	}
}

// Speed at small MTUs comes from segments that nobody cuts, and checksums that
// nobody computes.
func TestTheTAPHasOffloads(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	features := g.run(t, "ethtool", "-k", "tap0")
	for _, f := range []string{
		"tx-checksumming", "tx-checksum-ip-generic", "scatter-gather", "tcp-segmentation-offload",
		"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp-segmentation",
	} {
		if got := field(t, strings.ReplaceAll(features, "\t", ""), f); !strings.HasPrefix(got, "on") {
			t.Errorf("%s is %s", f, got)
		}
	}
	if details := g.run(t, "ip", "-details", "link", "show", "tap0"); !strings.Contains(details, "vnet_hdr on") {
		t.Errorf("tap0 has no vnet header:\n%s", details)
	}
}
