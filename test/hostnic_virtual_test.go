package test

import (
	"strings"
	"testing"
)

// Cards that are interfaces of software: one on another, as a VLAN is, and those that
// look alike, as VLANs of one card do. The kernel of the tests need not have VLANs; to
// the code, which asks for nothing by its kind, macvlan and veth are the same.

func TestAnInterfaceOnAnotherIsLent(t *testing.T) {
	s := newLANSite(t)
	s.root(t, `
		ip link add link eth1 name eth1.10 address 02:00:5e:10:00:0a mtu 1442 type macvlan mode bridge
		ip address add 198.51.100.29/28 dev eth1.10
		ip link set eth1.10 up`)
	before, carrier := s.portrait(t, "eth1.10"), s.portrait(t, "eth1")
	succeeds(t, s.netns(t, "create", "--interface=eth1.10", "--user=ada", "--ns-dir="+cardDir, "--dns="+s.lan.Addr4.String()))
	r := runGate(t, s.Host, onCard("sh", "-c", "cat /sys/class/net/eth1.10/mtu; ping -c1 -W5 "+s.lan.Addr4.String()+" >&2")...)
	if r.Code != 0 || r.Stdout != "1442\n" {
		t.Errorf("inside: %v", r)
	}
	s.unchanged(t, carrier, "eth1")
	s.giveBack(t)
	s.unchanged(t, before, "eth1.10")
	s.clean(t)
}

func TestCardsThatLookAlikeAreToldApart(t *testing.T) {
	s := newLANSite(t)
	const add = `
		ip link show card.$n || {
			ip link add card.$n address 02:00:5e:10:00:0a type veth peer name other.$n
			ip address add 192.0.2.$n/32 dev card.$n
			ip link set card.$n up
			ip link set other.$n up
		}`
	s.root(t, "n=20;"+add)
	twin := s.portrait(t, "card.20")
	for name, c := range map[string]struct{ inside, says string }{
		"renamed":                              {"ip link set card.10 name card.20", ""},
		"with another Ethernet address":        {"ip link set card.10 address 02:00:5e:10:00:0b", ""},
		"beside one that looks alike":          {"ip link set card.10 name mine; ip link add card.10 address 02:00:5e:10:00:0a type veth peer name x", ""},
		"with the name that it has on its way": {"ip link add gatekit$(cat /sys/class/net/card.10/ifindex) type veth peer name x; ip link set card.10 name mine", ""},
		"deleted":                              {"ip link delete card.10", "card.10"},
	} {
		t.Run(name, func(t *testing.T) {
			s.root(t, "n=10;"+add) // one of the cases deletes it
			before := s.portrait(t, "card.10")
			succeeds(t, s.netns(t, "create", "--interface=card.10", "--user=ada", "--ns-dir="+cardDir, "--dns="+s.lan.Addr4.String()))
			if r := runGate(t, s.Host, onCard("sh", "-ec", c.inside)...); r.Code != 0 {
				t.Fatalf("inside: %v", r)
			}
			r := s.netns(t, "destroy", "--ns-dir="+cardDir)
			if r.Code != 0 || (r.Stderr == "") != (c.says == "") || !strings.Contains(r.Stderr, c.says) {
				t.Errorf("destroy: %v", r)
			}
			if c.says == "" {
				s.unchanged(t, before, "card.10")
			}
			s.unchanged(t, twin, "card.20")
			s.clean(t)
		})
	}
}

func TestWhatCannotBeRestoredIsNamedAndForceDoesWithout(t *testing.T) {
	s := newLANSite(t)
	s.root(t, `
		ip address add 192.0.2.9/32 dev eth1
		ip route add 203.0.113.0/26 via 198.51.100.18 dev eth1
		ip link add gone type veth peer name gone-peer
		ip address add 192.0.2.65/28 dev gone
		ip link set gone up
		ip route add 203.0.113.128/26 nexthop via 198.51.100.18 dev eth1 nexthop via 192.0.2.66 dev gone`)
	s.lend(t)
	s.root(t, "ip link delete gone")
	for range 2 { // it stays what it was
		r := s.netns(t, "destroy", "--ns-dir="+cardDir)
		if missing := lacks(r.Stderr, "203.0.113.128/26", "eth1", "--force"); r.Code != 1 || len(missing) > 0 || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("%v\nlacks %q", r, missing)
		}
	}
	if r := s.netns(t, "destroy", "--ns-dir="+cardDir, "--force"); r.Code != 0 || len(lacks(r.Stderr, "203.0.113.128/26")) > 0 {
		t.Errorf("by force: %v", r)
	}
	if got := s.root(t, "ip route show dev eth1; ip address show dev eth1"); len(lacks(got, "203.0.113.0/26", "192.0.2.9/32", "198.51.100.17/28")) > 0 {
		t.Errorf("the rest is not what it was: %s", got)
	}
	s.clean(t)
}
