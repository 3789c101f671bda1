package test

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// leased is the address that the LAN's DHCP server gives.
const leased = "198.51.100.27"

// serveDHCP runs a DHCP server on the LAN with one address to give, whose leases are
// to be renewed after three seconds.
func (s lanSite) serveDHCP(t *testing.T, address string, more ...string) *testenv.Process {
	t.Helper()
	return s.serveDNS(t, append([]string{"--dhcp-range=" + address + "," + address + ",255.255.255.240,120", "--dhcp-authoritative",
		"--no-ping", "--log-dhcp", "--dhcp-leasefile=/dev/null", "--dhcp-option=option:T1,3", "--dhcp-option=option:T2,100",
		"--dhcp-option=option:router," + s.lan.Addr4.String(), "--dhcp-option=option:domain-search,lan.test"}, more...)...)
}

func TestACardGetsItsAddressByDHCP(t *testing.T) {
	s := newLANSite(t)
	server := s.serveDHCP(t, leased)
	before := s.portrait(t, "eth1")
	succeeds(t, s.netns(t, "create", "--interface=eth1", "--user=ada", "--ns-dir="+cardDir, "--dhcp"))
	if got := succeeds(t, s.netns(t, "list")).Stdout; !strings.Contains(got, leased+"/28") {
		t.Errorf("the list has no %s: %s", leased, got)
	}
	g := startGate(t, s.Host, onCard("sleep", "infinity")...)
	if got := g.run(t, "ip", "-4", "-brief", "address", "show", "dev", "eth1"); !strings.Contains(got, leased+"/28") || strings.Contains(got, s.lan.HostAddr4.String()) {
		t.Errorf("addresses inside: %q, want %s alone", got, leased)
	}
	if got := g.run(t, "ip", "route", "show", "default"); !strings.HasPrefix(got, "default via "+s.lan.Addr4.String()+" dev eth1 proto dhcp") {
		t.Errorf("default route inside: %q", got)
	}
	if got, want := g.inside(t, "cat", "/etc/resolv.conf"), "search lan.test\nnameserver "+s.lan.Addr4.String()+"\n"; got != want {
		t.Errorf("resolv.conf inside is %q, want %q", got, want)
	}
	if got := g.run(t, "getent", "ahostsv4", "www"); !strings.HasPrefix(got, s.lan.Addr4.String()) {
		t.Errorf("www is %q", got)
	}
	info := s.Run(t, s.Command("gatectl", "info", "--json"))
	if missing := lacks(info.Stdout, `"childIP":"`+leased+`"`, `"dynamicChildIP":true`); len(missing) > 0 {
		t.Errorf("the API's info lacks %q: %v", missing, info)
	}
	// The lease is renewed by unicast, which the kernel sends from the address itself.
	renewals := func() int { return strings.Count(server.Stderr()+server.Stdout(), "DHCPREQUEST(eth0) "+leased) }
	then := renewals()
	testenv.Until(t, "the renewal of the lease", func() bool { return renewals() > then+1 })
	g.run(t, "ping", "-c1", "-W5", s.lan.Addr4.String())
	g.stop(t)
	if releases(server) != 0 {
		t.Error("the end of a gate releases the lease, which the next one has as well")
	}
	s.giveBack(t)
	testenv.Until(t, "the release of the lease", func() bool { return releases(server) == 1 })
	s.unchanged(t, before, "eth1")
	s.clean(t)
}

// releases is how often the server was given its one lease back.
func releases(server *testenv.Process) int {
	return strings.Count(server.Stderr()+server.Stdout(), "DHCPRELEASE(eth0) "+leased)
}

func TestAServerThatMovesTheCardIsFollowed(t *testing.T) {
	s := newLANSite(t)
	server := s.serveDHCP(t, leased)
	succeeds(t, s.netns(t, "create", "--interface=eth1", "--user=ada", "--ns-dir="+cardDir, "--dhcp"))
	g := startGate(t, s.Host, onCard("sleep", "infinity")...)
	server.Kill()
	server.Wait(t)
	// The next one has another address to give, and another DNS server.
	const other = "198.51.100.28"
	s.serveDHCP(t, other, "--dhcp-option=option:dns-server,"+s.lan.Addr4.String()+",198.51.100.30")
	testenv.Until(t, "the other address", func() bool {
		got := g.run(t, "ip", "-4", "-brief", "address", "show", "dev", "eth1")
		return strings.Contains(got, other) && !strings.Contains(got, leased)
	})
	testenv.Until(t, "the other DNS server", func() bool {
		return strings.Contains(g.inside(t, "cat", "/etc/resolv.conf"), "nameserver 198.51.100.30\n")
	})
	g.Signal(signalTerm)
	g.Wait(t)
	s.giveBack(t)
}

func TestANetworkWithoutDHCPServerIsRefusedAndNothingChanges(t *testing.T) {
	s := newLANSite(t)
	before := s.portrait(t, "eth1")
	r := s.netns(t, "create", "--interface=eth1", "--user=ada", "--ns-dir="+cardDir, "--dhcp")
	if missing := lacks(r.Stderr, "eth1", "no address", "is there a DHCP server"); r.Code != 1 || len(missing) > 0 || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("%v\nlacks %q", r, missing)
	}
	s.unchanged(t, before, "eth1")
	s.clean(t)
}

func TestAnInterruptedCreateTakesAllBack(t *testing.T) {
	s := newLANSite(t)
	before := s.portrait(t, "eth1")
	p := s.Start(t, s.RootCommand("gatectl", "netns", "create", "--interface=eth1", "--user=ada", "--ns-dir="+cardDir, "--dhcp"))
	testenv.Until(t, "the card's leaving", func() bool { // then it waits for a DHCP server
		return !slices.Contains(interfaces(t, s.root(t, "ip -json link")), "eth1")
	})
	p.Signal(syscall.SIGINT)
	if r := p.Wait(t); r.Code != 1 || len(lacks(r.Stderr, "interrupted", "eth1")) > 0 || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("create, interrupted: %v", r)
	}
	s.unchanged(t, before, "eth1")
	s.clean(t)
}

func TestAMacvlanAroundOneCommandGetsItsAddressByDHCP(t *testing.T) {
	s := newLANSite(t)
	server := s.serveDHCP(t, leased)
	before := s.portrait(t, "eth1")
	r := s.Run(t, s.around("--hostnic-mode=macvlan", "sh", "-c", "ip -4 -brief address show dev eth1; ping -c1 -W5 "+s.lan.Addr4.String()+" >&2"))
	if r.Code != 0 || !strings.Contains(r.Stdout, fmt.Sprintf("%s/28", leased)) {
		t.Errorf("%v\nwant %s", r, leased)
	}
	// Each has an Ethernet address of its own: the next one could not have it.
	testenv.Until(t, "the release of the lease", func() bool { return releases(server) == 1 })
	s.unchanged(t, before, "eth1")
	s.clean(t)
}
