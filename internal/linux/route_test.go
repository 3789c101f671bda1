package linux

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

func openRoutes(t testing.TB) *Routes {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRoutes(os.NewFile(uintptr(fd), "routes"))
	t.Cleanup(func() { r.Close() })
	return r
}

func TestTheNextHopIsThatOfTheRoute(t *testing.T) {
	testenv.UserNS{Flags: unix.CLONE_NEWNET, Inner: func(t *testing.T) {
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "veth1"}))
		link, err := netlink.LinkByName("veth0")
		must(err)
		peer, err := netlink.LinkByName("veth1")
		must(err)
		must(netlink.LinkSetUp(peer))
		for _, own := range []string{"10.0.2.100/24", "fd00::100/64"} {
			addr, err := netlink.ParseAddr(own)
			must(err)
			addr.Flags = unix.IFA_F_NODAD
			must(netlink.AddrAdd(link, addr))
		}
		must(netlink.LinkSetUp(link))
		add := func(dst string, via string, kind int) {
			t.Helper()
			_, network, err := net.ParseCIDR(dst)
			must(err)
			route := &netlink.Route{Dst: network, Gw: net.ParseIP(via), Type: kind}
			if via != "" {
				route.LinkIndex = link.Attrs().Index
			}
			must(netlink.RouteAdd(route))
		}
		add("0.0.0.0/0", "10.0.2.2", unix.RTN_UNICAST)
		add("::/0", "fd00::2", unix.RTN_UNICAST)
		add("198.51.100.9/32", "10.0.2.9", unix.RTN_UNICAST)
		add("2001:db8::9/128", "fd00::9", unix.RTN_UNICAST)
		for i, kind := range []int{unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT} {
			add(netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32).String(), "", kind)
			add(netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 1, 15: byte(i)}), 128).String(), "", kind)
		}

		r := openRoutes(t)
		for _, c := range []struct{ src, dst, via string }{
			{"10.0.2.100", "198.51.100.7", "10.0.2.2"},
			{"fd00::100", "2001:db8::7", "fd00::2"},
			{"10.0.2.100", "198.51.100.9", "10.0.2.9"},
			{"fd00::100", "2001:db8::9", "fd00::9"},
			{"10.0.2.100", "10.0.2.7", ""},
			{"fd00::100", "fd00::7", ""},
			{"10.0.2.100", "10.0.2.100", ""},
			{"10.0.2.100", "203.0.113.0", "none"},
			{"10.0.2.100", "203.0.113.1", "none"},
			{"10.0.2.100", "203.0.113.2", "none"},
			{"fd00::100", "2001:db8:100::", "none"},
			{"fd00::100", "2001:db8:100::1", "none"},
			{"fd00::100", "2001:db8:100::2", "none"},
			{"10.9.9.9", "198.51.100.7", "none"},  // not an address of the namespace
			{"127.0.0.1", "198.51.100.7", "none"}, // without route_localnet
		} {
			via, err := r.NextHop(netip.MustParseAddr(c.src), netip.MustParseAddr(c.dst))
			if c.via == "none" {
				if !errors.Is(err, ErrNoRoute) {
					t.Errorf("from %s to %s there is %v, %v; want no route", c.src, c.dst, via, err)
				}
				continue
			}
			want, _ := netip.ParseAddr(c.via) // the zero Addr for none
			if err != nil || via != want {
				t.Errorf("from %s to %s it is %v, %v; want %q", c.src, c.dst, via, err, c.via)
			}
		}
		r.Close()
		if _, err := r.NextHop(netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("198.51.100.7")); err == nil || errors.Is(err, ErrNoRoute) {
			t.Errorf("a closed socket says %v", err)
		}
	}}.Run(t)
}

func BenchmarkNextHop(b *testing.B) {
	r := openRoutes(b)
	loopback := netip.MustParseAddr("127.0.0.1")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.NextHop(loopback, loopback); err != nil {
			b.Fatal(err)
		}
	}
}
