package test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// newBridgeSite is a Host with a bridge, br0, on the LAN, to which its user may add
// interfaces.
func newBridgeSite(t *testing.T) lanSite {
	t.Helper()
	s := newLANSite(t)
	// The helper looks for bridges in /sys, which shows the network of who mounts it.
	s.Do(t, func() error { return unix.Mount("sysfs", "/sys", "sysfs", 0, "") })
	s.root(t, `
		ip address flush dev eth1
		ip link add br0 type bridge
		ip link set eth1 master br0
		ip link set br0 up
		mkdir -p /etc/lxc`)
	s.WriteFile(t, "/etc/lxc/lxc-usernet", "ada veth br0 1\n", 0o644)
	return s
}

// onBridge is a gate of the user's on the bridge.
func onBridge(args ...string) []string {
	return append([]string{"--net=hostnic", "--hostnic-mode=lxc-user-nic", "--hostnic-bridge=br0"}, args...)
}

func TestLXCsHelperAddsAGateToABridge(t *testing.T) {
	s := newBridgeSite(t)
	server := s.serveDHCP(t, leased)
	g := startGate(t, s.Host, onBridge("sleep", "infinity")...)
	if got := g.inside(t, "ls", "/sys/class/net"); got != "eth0\nlo\n" {
		t.Errorf("interfaces inside: %q, want eth0 and lo", got)
	}
	if got := g.run(t, "ip", "-4", "-brief", "address", "show", "dev", "eth0"); !strings.Contains(got, leased+"/28") {
		t.Errorf("addresses inside: %q, want %s", got, leased)
	}
	for _, target := range []string{s.lan.Addr4.String(), "www"} {
		g.run(t, "ping", "-4", "-c1", "-W5", target)
	}
	if got, want := g.inside(t, "cat", "/etc/resolv.conf"), "search lan.test\nnameserver "+s.lan.Addr4.String()+"\n"; got != want {
		t.Errorf("resolv.conf inside is %q, want %q", got, want)
	}
	renewals := func() int { return strings.Count(server.Stderr()+server.Stdout(), "DHCPREQUEST(eth0) "+leased) }
	then := renewals()
	testenv.Until(t, "the renewal of the lease", func() bool { return renewals() > then })
	g.stop(t)
	testenv.Until(t, "the release of the lease", func() bool { return releases(server) == 1 })
	testenv.Until(t, "the end of the interface in the bridge", func() bool {
		return len(strings.Fields(s.root(t, "ls /sys/class/net/br0/brif"))) == 1
	})
}

func TestWhatKeepsLXCsHelperFromItsWorkIsNamed(t *testing.T) {
	s := newBridgeSite(t)
	try := func(t *testing.T, code int, says []string, args ...string) {
		t.Helper()
		r := runGate(t, s.Host, args...)
		if missing := lacks(r.Stderr, says...); r.Code != code || len(missing) > 0 || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("%v\nwant code %d and one line; lacks %q", r, code, missing)
		}
	}
	t.Run("another bridge", func(t *testing.T) {
		try(t, 1, []string{"no bridge called lxcbr0", "--hostnic-bridge"}, "--net=hostnic", "--hostnic-mode=lxc-user-nic", "true")
	})
	t.Run("no DHCP server", func(t *testing.T) {
		try(t, 1, []string{"eth0", "DHCP server"}, onBridge("true")...)
		try(t, 1, []string{"eth0", "DHCP server"}, "--net=lxc-user-nic", "--lxc-user-nic-bridge=br0", "true")
	})
	t.Run("no leave", func(t *testing.T) {
		s.WriteFile(t, "/etc/lxc/lxc-usernet", "eve veth br0 10\n", 0o644)
		try(t, 1, []string{"lxc-user-nic", "/etc/lxc/lxc-usernet", "veth br0"}, onBridge("true")...)
	})
	t.Run("no helper", func(t *testing.T) {
		s.root(t, "cp -p /usr/libexec/lxc/lxc-user-nic /srv/nic")
		s.Hide(t, "/usr/libexec/lxc/lxc-user-nic")
		try(t, 1, []string{"lxc-user-nic is not installed", "liblxc-common"}, onBridge("true")...)
		try(t, 1, []string{"/srv/nic: ", "/etc/lxc/lxc-usernet"}, onBridge("--lxc-user-nic-binary=/srv/nic", "true")...)
		try(t, 1, []string{"/srv/none", "no such file"}, onBridge("--lxc-user-nic-binary=/srv/none", "true")...)
	})
	for name, args := range map[string][]string{
		"with a card":            onBridge("--hostnic-interface=eth1", "true"),
		"with a mode besides":    {"--net=lxc-user-nic", "--hostnic-mode=macvlan", "true"},
		"with a directory":       onBridge("--hostnic-dir="+cardDir, "true"),
		"a bridge without it":    {"--net=hostnic", "--hostnic-bridge=br0", "--hostnic-interface=eth1", "true"},
		"an unknown mode":        {"--net=hostnic", "--hostnic-mode=steal", "true"},
		"no card":                {"--net=hostnic", "true"},
		"a mode of a lent card":  onCard("--hostnic-mode=macvlan", "true"),
		"ids of a lent card":     onCard("--single-id", "true"),
		"a relative directory":   {"--net=hostnic", "--hostnic-dir=eth1", "true"},
		"a shared card for once": {"--net=hostnic", "--hostnic-interface=eth1", "--hostnic-shared", "true"},
	} {
		t.Run(name, func(t *testing.T) { try(t, 2, []string{"--"}, args...) })
	}
	if got := s.root(t, "ls /sys/class/net/br0/brif"); got != "eth1\n" {
		t.Errorf("interfaces are left in the bridge: %q", got)
	}
}
