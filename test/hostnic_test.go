package test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestALentCardIsTheNetworkOfAGate(t *testing.T) {
	s := newLANSite(t)
	s.serveDNS(t)
	for _, addr := range []netip.Addr{s.lan.Addr4, s.lan.Addr6} {
		serveTCP(t, s.lan, netip.AddrPortFrom(addr, 80).String(), func(c *net.TCPConn) {
			if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
				return
			}
			fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\nyou are %v\n", c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
		})
	}
	s.lend(t, "--gateway="+s.lan.Addr4.String(), "--gateway="+s.lan.Addr6.String())
	g := startGate(t, s.Host, onCard("--copy-up=/etc", "--pidns", "sleep", "infinity")...)

	if got, want := interfaces(t, g.run(t, "ip", "-json", "link")), []string{"eth1", "lo"}; !slices.Equal(got, want) {
		t.Errorf("interfaces inside: %q, want %q", got, want)
	}
	if got := g.inside(t, "ls", "/sys/class/net"); got != "eth1\nlo\n" {
		t.Errorf("interfaces in /sys inside: %q", got)
	}
	for _, c := range []struct {
		url  string
		want netip.Addr
	}{
		{"http://" + s.lan.Addr4.String() + "/", s.lan.HostAddr4},
		{"http://[" + s.lan.Addr6.String() + "]/", s.lan.HostAddr6},
	} {
		if got := g.run(t, "curl", "-s", c.url); got != fmt.Sprintf("you are %v\n", c.want) {
			t.Errorf("%s says %q, want the card's own address %v", c.url, got, c.want)
		}
	}
	for _, c := range []struct{ flag, record string }{{"-4", s.lan.Addr4.String()}, {"-6", s.lan.Addr6.String()}} {
		if got := g.run(t, "curl", c.flag, "-s", "http://www.lan.test/"); !strings.HasPrefix(got, "you are ") {
			t.Errorf("by the LAN's DNS server www.lan.test (%s) answers %q", c.record, got)
		}
	}
	for family, gw := range map[string]netip.Addr{"-4": s.lan.Addr4, "-6": s.lan.Addr6} {
		if got := g.run(t, "ip", family, "route", "show", "default"); !strings.Contains(got, "default via "+gw.String()+" dev eth1") {
			t.Errorf("default route inside: %q, want one by %v", got, gw)
		}
	}
	// What every gate has.
	if got := g.inside(t, "sh", "-c", "id -u; touch /etc/new && ls /etc/new; cat /etc/resolv.conf; ls /proc | grep -c '^[0-9]'"); !strings.HasPrefix(got, "0\n/etc/new\nsearch example.test\nnameserver "+s.lan.Addr4.String()+"\n") {
		t.Errorf("root, copy-up and resolv.conf inside: %q", got)
	}
	info := s.Run(t, s.Command("gatectl", "info", "--json"))
	if missing := lacks(info.Stdout, `"driver":"hostnic"`, `"childIP":"`+s.lan.HostAddr4.String()+`"`, `"dns":["`+s.lan.Addr4.String()+`"]`); len(missing) > 0 {
		t.Errorf("the API's info lacks %q: %v", missing, info)
	}
	g.stop(t)
	s.giveBack(t)
	s.clean(t)
}

func TestTheRoutesOfTheHostByACardGoWithIt(t *testing.T) {
	s := newLANSite(t)
	lan4, lan6 := s.lan.Addr4.String(), s.lan.Addr6.String()
	s.root(t, `
		ip link set eth1 mtu 1442
		ip route add default via `+lan4+` dev eth1 metric 4321
		ip -6 route add default via `+lan6+` dev eth1 metric 4321
		ip route add 203.0.113.0/26 via `+lan4+` dev eth1
		ip route add 203.0.113.64/26 via `+lan4+` dev eth1 table 77`)
	for name, c := range map[string]struct {
		flags      []string
		want4      []string
		want6, mtu string
	}{
		"as they are": {nil, []string{"default via " + lan4, "203.0.113.0/26 via " + lan4}, "default via " + lan6, "1442"},
		"with another gateway": {[]string{"--gateway=198.51.100.19"},
			[]string{"default via 198.51.100.19", "203.0.113.0/26 via " + lan4}, "default via " + lan6, "1442"},
		"with an address in the same network": {[]string{"--address=198.51.100.20/28"},
			[]string{"default via " + lan4, "203.0.113.0/26 via " + lan4}, "", "1442"},
		"with addresses in others": {[]string{"--address=192.0.2.5/24", "--address=2001:db8:9::5/64", "--gateway=2001:db8:9::1"},
			nil, "default via 2001:db8:9::1", "1442"},
		"beside it": {[]string{"--mode=macvlan", "--address=198.51.100.20/28"},
			[]string{"default via " + lan4, "203.0.113.0/26 via " + lan4}, "", "1442"},
	} {
		t.Run(name, func(t *testing.T) {
			s.lend(t, c.flags...)
			got := output(t, s.Host, onCard("sh", "-c", "ip -4 route show table all proto boot; echo --; ip -6 route show default; echo --; cat /sys/class/net/eth1/mtu")...)
			parts := strings.Split(got, "--\n")
			if len(parts) != 3 || strings.Count(parts[0], "\n") != len(c.want4) || len(lacks(parts[0], c.want4...)) > 0 || !strings.HasPrefix(parts[1], c.want6) || (parts[1] == "") != (c.want6 == "") || parts[2] != c.mtu+"\n" {
				t.Errorf("inside there are:\n%s\nwant routes %q and %q, MTU %s", got, c.want4, c.want6, c.mtu)
			}
			s.giveBack(t)
		})
	}
}

func TestTwoCardsAreLentAtOnce(t *testing.T) {
	s := newLANSite(t)
	second := s.Outside(t)
	portraits := map[string]map[string]any{}
	gates := map[string]*gate{}
	for card, peer := range map[string]netip.Addr{"eth1": s.lan.Addr4, "eth2": second.Addr4} {
		portraits[card] = s.portrait(t, card)
		dir := "/run/gatekit/" + card
		succeeds(t, s.netns(t, "create", "--interface="+card, "--user=ada", "--ns-dir="+dir, "--dns="+peer.String()))
		g := &gate{host: s.Host, stateDir: s.User.RuntimeDir + "/" + card}
		g.Process = s.Start(t, s.Command("gatekit", "--state-dir="+g.stateDir, "--net=hostnic", "--hostnic-dir="+dir, "sleep", "infinity"))
		g.awaitReady(t)
		g.run(t, "ping", "-c1", "-W5", peer.String())
		gates[card] = g
	}
	for card, g := range gates {
		if got, want := interfaces(t, g.run(t, "ip", "-json", "link")), []string{card, "lo"}; !slices.Equal(got, want) {
			t.Errorf("interfaces inside: %q, want %q", got, want)
		}
	}
	if got := succeeds(t, s.netns(t, "list")).Stdout; len(lacks(got, "/run/gatekit/eth1", "/run/gatekit/eth2")) > 0 {
		t.Errorf("the list lacks one: %s", got)
	}
	for card, g := range gates {
		g.stop(t)
		succeeds(t, s.netns(t, "destroy", "--ns-dir=/run/gatekit/"+card))
		s.unchanged(t, portraits[card], card)
	}
	s.clean(t)
}

func TestALentCardIsApartFromTheHost(t *testing.T) {
	s := newLANSite(t)
	loopback := serveTCP(t, s.Host, "127.0.0.1:0", func(*net.TCPConn) {})
	other := serveTCP(t, s.Host, netip.AddrPortFrom(s.world.HostAddr4, 0).String(), func(*net.TCPConn) {})
	s.lend(t)
	g := startGate(t, s.Host, onCard("sleep", "infinity")...)
	for addr, want := range map[netip.AddrPort]string{
		loopback: "Connection refused",
		other:    "Network is unreachable",
	} {
		r := s.Run(t, g.in("socat", "-u", "/dev/null", "TCP:"+addr.String()))
		if r.Code == 0 || !strings.Contains(r.Stderr, want) {
			t.Errorf("a connection to %v on the host: %v\nwant: %s", addr, r, want)
		}
	}
	if names := s.root(t, "ip -json link"); slices.Contains(interfaces(t, names), "eth1") {
		t.Errorf("the host has the card, too: %s", names)
	}
	g.stop(t)
}

func TestTheNamespacesOfALentCardBelongToTheUser(t *testing.T) {
	s := newLANSite(t)
	s.lend(t)
	u := s.User
	got := output(t, s.Host, onCard("cat", "/proc/self/uid_map", "/proc/self/gid_map")...)
	want := fmt.Sprintf("0 %d 1 1 %d 65536", u.UID, u.SubUIDs.Start)
	if fields := strings.Join(strings.Fields(got), " "); fields != want+" "+strings.ReplaceAll(want, fmt.Sprint(u.UID), fmt.Sprint(u.GID)) {
		t.Errorf("ids inside: %q, want %q for users and groups", fields, want)
	}
	owners := s.root(t, "for ns in userns netns; do lsns -n -o NETNSID $(readlink -f "+cardDir+"/$ns) 2>/dev/null || :; done; nsenter --user="+cardDir+"/userns --preserve-credentials cat /proc/self/uid_map")
	if !strings.Contains(owners, fmt.Sprint(u.UID)) {
		t.Errorf("the user namespace in the directory is another: %q", owners)
	}
	// Root's tools find both, and so does the user.
	for _, cmd := range []string{"cat " + cardDir + "/state.json", "test -r " + cardDir + "/userns", "test -r " + cardDir + "/netns"} {
		if r := s.Run(t, s.Command("sh", "-c", cmd)); r.Code != 0 {
			t.Errorf("the user: %s: %v", cmd, r)
		}
		if r := s.Run(t, s.asOther("sh", "-c", cmd)); r.Code == 0 {
			t.Errorf("another user: %s: %v", cmd, r)
		}
	}
	if r := s.Run(t, s.Command("sh", "-c", "rm -f "+cardDir+"/lock || echo x > "+cardDir+"/state.json")); r.Code == 0 {
		t.Errorf("the user changes root's files: %v", r)
	}
}

func TestAUserToWhomTheCardIsNotLentIsRefused(t *testing.T) {
	s := newLANSite(t)
	s.lend(t)
	runtime := s.User.RuntimeDir + "-other"
	s.root(t, fmt.Sprintf("install -d -o %d -m 700 %s", s.User.UID+500_000, runtime))
	try := func() testenv.Result {
		cmd := s.asOther("gatekit", onCard("true")...)
		cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+runtime)
		return s.Run(t, cmd)
	}
	r := try()
	if missing := lacks(r.Stderr, "permission denied", "another user"); r.Code != 1 || len(missing) > 0 || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("with the directory closed: %v\nlacks %q", r, missing)
	}
	s.root(t, "chmod 755 "+cardDir)
	r = try()
	if missing := lacks(r.Stderr, "eth1", "lent to ada"); r.Code != 1 || len(missing) > 0 || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("with the directory open: %v\nlacks %q", r, missing)
	}
	// And what the gate says is what the kernel does.
	r = s.Run(t, s.asOther("nsenter", "--user="+cardDir+"/userns", "--net="+cardDir+"/netns", "--preserve-credentials", "true"))
	if !strings.Contains(r.Stderr, "Operation not permitted") {
		t.Errorf("the kernel lets another user in: %v", r)
	}
	cmd := s.RootCommand("gatekit", onCard("true")...)
	if r := s.Run(t, cmd); r.Code != 1 || len(lacks(r.Stderr, "lent to ada")) > 0 {
		t.Errorf("root: %v", r)
	}
}

func TestACardComesBackAsItWas(t *testing.T) {
	const addresses = `
		ip address add 192.0.2.9/25 dev eth1 label eth1:x metric 77
		ip address add 192.0.2.10/25 dev eth1 noprefixroute
		ip address add 192.0.2.33 peer 192.0.2.44/32 dev eth1
		ip -6 address add 2001:db8:77::9/64 dev eth1 preferred_lft 0
		ip -6 address add 2001:db8:77::a/64 dev eth1 nodad noprefixroute`
	const routes = `
		ip route add default via 198.51.100.18 dev eth1 metric 4321 mtu lock 1300
		ip route add 203.0.113.0/26 via 198.51.100.18 dev eth1 table 77 proto static
		ip route add 203.0.113.64/26 dev eth1 scope link src 192.0.2.9
		ip route add 203.0.113.128/26 nexthop via 198.51.100.18 dev eth1 weight 3 nexthop via 198.51.100.2 dev eth0
		ip route add blackhole 203.0.113.192/26
		ip -6 route add default via 2001:db8:0:1::2 dev eth1 metric 4321
		ip -6 route add 2001:db8:88::/48 via 2001:db8:0:1::2 dev eth1 table 78 advmss 1200`
	for name, setup := range map[string]string{
		"as a plain card": "",
		"with everything set": `
			ip link set eth1 down
			ip link set eth1 address 02:00:5e:10:00:01 txqueuelen 321 alias 'the spare card' group 5 multicast off promisc on
			ip link set eth1 mtu 1442 up
			ip link property add dev eth1 altname enp9s0 altname spare0
			ip -6 address add 2001:db8:0:1::1/64 dev eth1 nodad
			echo 0 > /proc/sys/net/ipv6/conf/eth1/accept_ra
			echo 1 > /proc/sys/net/ipv4/conf/eth1/arp_filter
			echo 33 > /proc/sys/net/ipv4/neigh/eth1/delay_first_probe_time` + addresses + routes,
		"without IPv6": `echo 1 > /proc/sys/net/ipv6/conf/eth1/disable_ipv6`,
		"down":         `ip link set eth1 down; ip address add 192.0.2.9/25 dev eth1`,
	} {
		t.Run(name, func(t *testing.T) {
			s := newLANSite(t)
			s.root(t, setup)
			before := s.portrait(t, "eth1")
			s.lend(t)
			// A user who leaves the card as nobody should.
			runGate(t, s.Host, onCard("sh", "-c", `
				ip address flush dev eth1; ip link set eth1 down
				ip link property del dev eth1 altname spare0; ip link property add dev eth1 altname eth0
				ip link set eth1 name mine address 02:00:00:00:00:99 mtu 1300 promisc off
				ip link property add dev mine altname eth1
				ip link set mine alias other group 0 up; ip address add 192.0.2.200/24 dev mine
				ip link add eth1x type veth peer name eth0x
				echo 1 > /proc/sys/net/ipv6/conf/mine/forwarding`)...)
			s.giveBack(t)
			s.unchanged(t, before, "eth1")
			s.clean(t)
		})
	}
}

func TestALifetimeOfAnAddressGoesOn(t *testing.T) {
	s := newLANSite(t)
	s.root(t, "ip address add 192.0.2.9/24 dev eth1 valid_lft 10000 preferred_lft 9000; ip address add 192.0.2.10/24 dev eth1 valid_lft 1 preferred_lft 1")
	s.lend(t)
	testenv.Until(t, "the end of the short lifetime", func() bool {
		return !strings.Contains(output(t, s.Host, onCard("ip", "address")...), "192.0.2.10")
	})
	s.giveBack(t)
	var valid, preferred int
	for _, line := range strings.Split(s.root(t, "ip address show dev eth1 to 192.0.2.9"), "\n") {
		fmt.Sscanf(strings.TrimSpace(line), "valid_lft %dsec preferred_lft %dsec", &valid, &preferred)
	}
	if valid < 9900 || valid >= 10000 || preferred < 8900 || preferred >= 9000 {
		t.Errorf("valid for %d s, preferred for %d s: want some seconds less than 10000 and 9000", valid, preferred)
	}
	if got := s.root(t, "ip address show dev eth1"); strings.Contains(got, "192.0.2.10") {
		t.Errorf("an address whose time is over is back: %s", got)
	}
}

func TestACardIsForOneGateUnlessItIsShared(t *testing.T) {
	s := newLANSite(t)
	s.lend(t)
	first := startGate(t, s.Host, onCard("sleep", "infinity")...)
	for _, more := range [][]string{nil, {"--hostnic-shared"}} {
		r := runGate(t, s.Host, onCard(append(more, "true")...)...)
		if missing := lacks(r.Stderr, "eth1", "in use", "--hostnic-shared"); r.Code != 1 || len(missing) > 0 {
			t.Errorf("a second gate %q: %v\nlacks %q", more, r, missing)
		}
	}
	first.stop(t)

	shared := func(name string) *gate {
		g := &gate{host: s.Host, stateDir: s.User.RuntimeDir + "/" + name}
		g.Process = s.Start(t, s.Command("gatekit", append([]string{"--state-dir=" + g.stateDir},
			onCard("--hostnic-shared", "sh", "-c", "setsid sleep infinity & exec sleep infinity")...)...))
		g.awaitReady(t)
		return g
	}
	a, b := shared("a"), shared("b")
	var networks [2]string
	for i, g := range []*gate{a, b} {
		networks[i], _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/net", g.childPID))
	}
	if networks[0] != networks[1] || networks[0] == "" {
		t.Errorf("two gates that share a card are in the networks %q", networks)
	}
	if r := runGate(t, s.Host, onCard("true")...); r.Code != 1 || len(lacks(r.Stderr, "in use")) > 0 {
		t.Errorf("a gate that does not share, beside those that do: %v", r)
	}
	a.stop(t)
	if b.run(t, "echo", "here") != "here\n" || !b.Running() {
		t.Error("the end of one gate is the end of the other")
	}
	b.stop(t)
	s.NoProcesses(t)
	s.giveBack(t)
}

func TestACardInUseIsGivenBackByForceAlone(t *testing.T) {
	s := newLANSite(t)
	before := s.portrait(t, "eth1")
	s.lend(t)
	for what, start := range map[string]func() *testenv.Process{
		"a gate": func() *testenv.Process { return startGate(t, s.Host, onCard("sleep", "infinity")...).Process },
		"a process without a gate": func() *testenv.Process {
			p := s.Start(t, s.Command("nsenter", "--user="+cardDir+"/userns", "--net="+cardDir+"/netns", "--preserve-credentials", "sh", "-c", "echo inside; exec sleep infinity"))
			awaitLine(t, p, "(inside)")
			return p
		},
	} {
		p := start()
		r := s.netns(t, "destroy", "--ns-dir="+cardDir)
		if missing := lacks(r.Stderr, "eth1", "--force"); r.Code != 1 || len(missing) > 0 {
			t.Errorf("destroy with %s on the card: %v\nlacks %q", what, r, missing)
		}
		if !p.Running() {
			t.Errorf("%s was ended", what)
		}
		p.Kill()
		p.Wait(t)
		s.NoProcesses(t)
	}
	g := startGate(t, s.Host, onCard("sleep", "infinity")...)
	succeeds(t, s.netns(t, "destroy", "--ns-dir="+cardDir, "--force"))
	g.Wait(t)
	s.NoProcesses(t)
	s.unchanged(t, before, "eth1")
	s.clean(t)
}

func TestAForwardReachesAServiceOnALentCard(t *testing.T) {
	s := newLANSite(t)
	s.lend(t)
	g := startGate(t, s.Host, onCard("-p", "127.0.0.1:18080:80/tcp", "sleep", "infinity")...)
	g.witness(t, "tcp,0.0.0.0,80")
	if saw, _ := seen(t, "tcp", s.Host, "127.0.0.1:18080"); !saw.Addr().IsLoopback() {
		t.Errorf("by the forward the service sees %v", saw)
	}
	// And on the card's own address without one.
	if saw, _ := seen(t, "tcp", s.lan, s.lan.HostAddr4.String()+":80"); saw.Addr() != s.lan.Addr4 {
		t.Errorf("from the LAN the service sees %v, want %v", saw.Addr(), s.lan.Addr4)
	}
	g.stop(t)
}

func TestAMacvlanLeavesTheCardToTheHost(t *testing.T) {
	s := newLANSite(t)
	before := s.portrait(t, "eth1")
	s.serveDNS(t)
	s.lend(t, "--mode=macvlan", "--address=198.51.100.29/28", "--address=2001:db8:0:1::29/64", "--gateway="+s.lan.Addr4.String())
	g := startGate(t, s.Host, onCard("sleep", "infinity")...)
	if got, want := interfaces(t, g.run(t, "ip", "-json", "link")), []string{"eth1", "lo"}; !slices.Equal(got, want) {
		t.Errorf("interfaces inside: %q, want %q", got, want)
	}
	for _, target := range []string{s.lan.Addr4.String(), s.lan.Addr6.String()} {
		g.run(t, "ping", "-c1", "-W5", target)
	}
	if got := g.run(t, "dig", "+short", "www.lan.test"); got != s.lan.Addr4.String()+"\n" {
		t.Errorf("www.lan.test is %q", got)
	}
	r := s.netns(t, "create", "--interface=eth1", "--user=ada", "--ns-dir=/run/gatekit/whole")
	if missing := lacks(r.Stderr, "eth1", cardDir, "--force"); r.Code != 1 || len(missing) > 0 {
		t.Errorf("the card itself is lent: %v\nlacks %q", r, missing)
	}
	// The host still reaches the LAN by it, and the LAN sees two Ethernet addresses.
	s.root(t, "ping -c1 -W5 "+s.lan.Addr4.String())
	neighbours := s.lan.Run(t, s.lan.Command("ip", "-4", "neighbour", "show", "dev", "eth0"))
	macs := map[string]bool{}
	for line := range strings.Lines(neighbours.Stdout) {
		if f := strings.Fields(line); len(f) > 2 {
			macs[f[2]] = true
		}
	}
	if len(macs) != 2 {
		t.Errorf("the LAN's neighbours have %d Ethernet addresses, want 2:\n%s", len(macs), neighbours.Stdout)
	}
	g.stop(t)
	s.giveBack(t)
	s.unchanged(t, before, "eth1")
	s.clean(t)
}

func TestALentCardNeedsNoLeaveToMakeUserNamespaces(t *testing.T) {
	s := newLANSite(t)
	s.lend(t)
	s.Hide(t, "/usr/bin/newuidmap")
	s.SetSubIDs(t, "", "")
	if got := output(t, s.Host, onCard("id", "-u")...); got != "0\n" {
		t.Errorf("without newuidmap and subordinate ids: %q", got)
	}
	loggedOut := s.Command("gatekit", onCard("id", "-u")...)
	loggedOut.Env = slices.DeleteFunc(loggedOut.Env, func(v string) bool { return strings.HasPrefix(v, "XDG_RUNTIME_DIR=") })
	if r := s.Run(t, loggedOut); r.Code != 0 || r.Stdout != "0\n" {
		t.Errorf("of a user who is not logged in: %v", r)
	}
	var st unix.Stat_t
	if err := unix.Stat(s.Path(cardDir), &st); err != nil || st.Uid != 0 {
		t.Errorf("the directory is not root's: %d, %v", st.Uid, err)
	}
	if _, err := os.Stat(s.Path(cardDir + "/state.json.new")); err == nil {
		t.Error("an unfinished state file is left")
	}
}

func TestLentCardsAreListed(t *testing.T) {
	s := newLANSite(t)
	if got := succeeds(t, s.netns(t, "list", "--json")).Stdout; got != "[]\n" {
		t.Errorf("without a card: %q", got)
	}
	s.lend(t)
	g := startGate(t, s.Host, onCard("sleep", "infinity")...)
	got := succeeds(t, s.netns(t, "list")).Stdout
	lines := strings.Split(got, "\n")
	if want := []string{"eth1", "move", "ada", "ready", "198.51.100.17/28,2001:db8:0:1::1/64", "2", cardDir}; len(lines) != 3 || !slices.Equal(strings.Fields(lines[1]), want) {
		t.Errorf("with a gate on a card:\n%s\nwant a line of %q", got, want)
	}
	g.stop(t)
	// What died on its way is listed as well, wherever it is.
	s.giveBack(t)
	r := s.Run(t, s.RootCommand("probe", "lend-until", "7", "move"))
	if got := succeeds(t, s.netns(t, "list")).Stdout; !strings.Contains(got, "unfinished") {
		t.Errorf("after a crash (%v):\n%s", r, got)
	}
	succeeds(t, s.netns(t, "create", "--interface=eth1", "--user=ada", "--ns-dir=/srv/other", "--mode=macvlan", "--address=198.51.100.29/28", "--dns=198.51.100.18"))
	if got := succeeds(t, s.netns(t, "list", "--json")).Stdout; len(lacks(got, `"dir":"/srv/other"`, `"mode":"macvlan"`, `"addresses":["198.51.100.29/28"]`, `"ready":true`, `"processes":[]`)) > 0 {
		t.Errorf("in another directory: %s", got)
	}
	s.root(t, "umount /srv/other/netns")
	if got := succeeds(t, s.netns(t, "list")).Stdout; strings.Contains(got, "ready") {
		t.Errorf("without the network namespace of one: %s", got)
	}
	// One that cannot be read is named, and the others are listed.
	s.root(t, "mkdir /run/gatekit/broken; echo '{' > /run/gatekit/broken/state.json")
	r = s.netns(t, "list")
	if r.Code != 1 || len(lacks(r.Stderr, "/run/gatekit/broken/state.json")) > 0 || len(lacks(r.Stdout, "/srv/other", cardDir)) > 0 {
		t.Errorf("with a broken one: %v", r)
	}
	succeeds(t, s.netns(t, "destroy", "--ns-dir=/srv/other"))
	s.giveBack(t)
}
