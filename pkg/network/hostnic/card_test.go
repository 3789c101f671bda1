package hostnic

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
)

// What comes back by itself is hardware, which the tests have none of: what it is
// known by is tried on descriptions.
func TestACardIsKnownOnTheHost(t *testing.T) {
	const own, other = "02:00:5e:10:00:01", "02:00:5e:10:00:02"
	link := func(kind, name string, index int, addr, permanent string) netlink.Link {
		a := netlink.NewLinkAttrs()
		a.Name, a.Index = name, index
		a.HardwareAddr, _ = net.ParseMAC(addr)
		a.PermHWAddr, _ = net.ParseMAC(permanent)
		return &netlink.GenericLink{LinkAttrs: a, LinkType: kind}
	}
	for name, c := range map[string]struct {
		card  card
		links []netlink.Link // of which the first is the card
		none  bool           // or none is
	}{
		"hardware, renamed and with another address": {
			card{Name: "eth1", Kind: hardware, Index: 7, HardwareAddr: own, PermanentAddr: own},
			[]netlink.Link{link(hardware, "dev0", 9, other, own), link(hardware, "eth1", 7, own, other)}, false,
		},
		"hardware of a kernel that does not tell permanent addresses": {
			card{Name: "eth1", Kind: hardware, Index: 7, HardwareAddr: own},
			[]netlink.Link{link(hardware, "dev0", 9, own, ""), link(hardware, "eth1", 8, other, "")}, false,
		},
		"hardware by its number": {
			card{Name: "eth1", Kind: hardware, Index: 7, HardwareAddr: own},
			[]netlink.Link{link(hardware, "dev0", 7, other, ""), link("veth", "eth1", 8, own, "")}, false,
		},
		"a VLAN beside another of its card": {
			card{Name: "eth1.10", Kind: "vlan", Index: 7, HardwareAddr: own},
			[]netlink.Link{link("vlan", "eth1.10", 7, own, ""), link("vlan", "eth1.20", 8, own, "")}, false,
		},
		"a VLAN on its way": {
			card{Name: "eth1.10", Kind: "vlan", Index: 7, HardwareAddr: own},
			[]netlink.Link{link("vlan", "gatekit7", 9, other, ""), link("vlan", "eth1.10", 7, own, "")}, false,
		},
		"a VLAN that was deleted": {
			card{Name: "eth1.10", Kind: "vlan", Index: 7, HardwareAddr: own},
			[]netlink.Link{link("vlan", "eth1.20", 7, own, ""), link("vlan", "eth1.10", 9, other, "")}, true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := c.links[0]
			if c.none {
				want = nil
			}
			if got := mostLike(c.links, c.card.likenessOnHost); got != want {
				t.Errorf("taken for the card: %v, want %v", got, want)
			}
		})
	}
}
