package test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestACardThatCannotBeLentIsRefusedAndNothingChanges(t *testing.T) {
	s := newLANSite(t)
	s.root(t, `
		ip link add br0 type bridge
		ip link add member type veth peer name member-peer
		ip link set member master br0 up
		ip link set br0 up
		ip -6 route add default via 2001:db8:0:1::2 dev eth1 metric 4321
		ip link add base type veth peer name base-peer
		ip link add link base name base.10 type macvlan
		mkdir -p /run/gatekit/there`)
	state := func() string {
		return s.root(t, "ip address; ip route show table all; ip -6 route show table all; ls -R /run/gatekit; cat /proc/self/mountinfo")
	}
	s.settle(t, "")
	before := state()
	for name, c := range map[string]struct {
		args []string
		says []string
		code int
	}{
		"without an interface":        {[]string{"--interface="}, []string{"--interface is missing"}, 2},
		"no such interface":           {[]string{"--interface=eth7"}, []string{`no interface called "eth7"`, "eth1"}, 1},
		"the loopback":                {[]string{"--interface=lo"}, []string{"lo", "loopback"}, 1},
		"a member of a bridge":        {[]string{"--interface=member"}, []string{"member of the bridge br0", "nomaster"}, 1},
		"a bridge":                    {[]string{"--interface=br0", "--address=192.0.2.1/24"}, []string{"br0 cannot leave its network namespace"}, 1},
		"the only default route":      {[]string{"--interface=eth0"}, []string{"eth0", "only default route of IPv4", "--force"}, 1},
		"a carrier of others":         {[]string{"--interface=base"}, []string{"base carries", "base.10", "--force"}, 1},
		"a gateway of another family": {[]string{"--gateway=2001:db8:9::1"}, []string{"--gateway=2001:db8:9::1", "198.51.100.16/28"}, 1},
		"a gateway elsewhere":         {[]string{"--gateway=192.0.2.1"}, []string{"--gateway=192.0.2.1", "198.51.100.16/28"}, 1},
		"a gateway beside --address":  {[]string{"--address=192.0.2.5/24", "--gateway=198.51.100.18"}, []string{"--gateway=198.51.100.18", "192.0.2.0/24"}, 1},
		"a gateway that is the card":  {[]string{"--gateway=198.51.100.17"}, []string{"--gateway=198.51.100.17", "own address"}, 1},
		"no address at all":           {[]string{"--address=0.0.0.0/0"}, []string{"--address=0.0.0.0/0", "no card"}, 1},
		"an address of the loopback":  {[]string{"--address=198.51.100.29/28", "--address=::1/128"}, []string{"--address=::1/128", "no card"}, 1},
		"two gateways of a family":    {[]string{"--gateway=198.51.100.18", "--gateway=198.51.100.19"}, []string{"198.51.100.19", "one"}, 1},
		"a gateway that is none":      {[]string{"--gateway=here"}, []string{"--gateway=here"}, 2},
		"an unknown user":             {[]string{"--user=mallory"}, []string{`no user called "mallory"`}, 1},
		"a user without ids":          {[]string{"--user=daemon"}, []string{"daemon", "subordinate", "usermod"}, 1},
		"a directory that exists":     {[]string{"--ns-dir=/run/gatekit/there"}, []string{"/run/gatekit/there exists", "destroy"}, 1},
		"a relative directory":        {[]string{"--ns-dir=eth1"}, []string{"--ns-dir=eth1", "absolute"}, 1},
		"a macvlan without address":   {[]string{"--mode=macvlan"}, []string{"--mode=macvlan", "--address"}, 1},
		"an unknown mode":             {[]string{"--mode=steal"}, []string{"--mode=steal", "move or macvlan"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"create", "--interface=eth1", "--user=ada", "--ns-dir=" + cardDir}
			for _, a := range c.args {
				if flag, _, _ := strings.Cut(a, "="); flag == "--interface" || flag == "--user" || flag == "--ns-dir" {
					for i, old := range args {
						if strings.HasPrefix(old, flag+"=") {
							args[i] = a
						}
					}
					continue
				}
				args = append(args, a)
			}
			r := s.netns(t, args...)
			if missing := lacks(r.Stderr, c.says...); r.Code != c.code || len(missing) > 0 || strings.Count(r.Stderr, "\n") != 1 {
				t.Errorf("%v\nwant code %d and one line; lacks %q", r, c.code, missing)
			}
			if diff := cmp.Diff(before, state()); diff != "" {
				t.Errorf("something has changed (-before +after):\n%s", diff)
			}
		})
	}
	for command, args := range map[string][]string{
		"create":  {"--interface=eth1", "--user=ada", "--ns-dir=" + cardDir},
		"destroy": {"--ns-dir=" + cardDir},
		"list":    nil,
	} {
		t.Run(command+" by a user", func(t *testing.T) {
			r := s.Run(t, s.Command("gatectl", append([]string{"netns", command}, args...)...))
			if missing := lacks(r.Stderr, "netns "+command, "as root"); r.Code != 1 || len(missing) > 0 {
				t.Errorf("%v\nlacks %q", r, missing)
			}
		})
	}
}

func TestACardThatCarriesTheSSHConnectionIsLentByForceAlone(t *testing.T) {
	s := newLANSite(t)
	create := []string{"gatectl", "netns", "create", "--interface=eth1", "--user=ada", "--ns-dir=" + cardDir, "--dns=" + s.lan.Addr4.String()}
	for name, environment := range map[string]string{
		"directly":                       "SSH_CONNECTION=198.51.100.18 50000 198.51.100.17 22",
		"by IPv6":                        "SSH_CONNECTION=2001:db8:0:1::2 50000 2001:db8:0:1::1 22",
		"by a link-local address":        "SSH_CONNECTION=fe80::1%eth1 50000 fe80::2%eth1 22",
		"to its address by another card": "SSH_CONNECTION=203.0.113.7 50000 198.51.100.17 22",
		"below sudo(8)":                  "SSH_CONNECTION=198.51.100.18 50000 198.51.100.17 22",
	} {
		t.Run(name, func(t *testing.T) {
			cmd := s.RootCommand(create[0], create[1:]...)
			if name == "below sudo(8)" {
				cmd = s.RootCommand("sh", "-c", "env -u SSH_CONNECTION "+strings.Join(create, " ")+"; exit $?")
			}
			cmd.Env = append(cmd.Env, environment)
			r := s.Run(t, cmd)
			if missing := lacks(r.Stderr, "eth1", "SSH connection", "--force"); r.Code != 1 || len(missing) > 0 || s.isLent() {
				t.Errorf("%v\nlacks %q", r, missing)
			}
		})
	}
	t.Run("by another card", func(t *testing.T) {
		cmd := s.RootCommand(create[0], create[1:]...)
		cmd.Env = append(cmd.Env, "SSH_CONNECTION=198.51.100.2 50000 198.51.100.1 22")
		succeeds(t, s.Run(t, cmd))
		s.giveBack(t)
	})
	t.Run("by force", func(t *testing.T) {
		cmd := s.RootCommand(create[0], append(create[1:], "--force")...)
		cmd.Env = append(cmd.Env, "SSH_CONNECTION=198.51.100.18 50000 198.51.100.17 22")
		succeeds(t, s.Run(t, cmd))
		s.giveBack(t)
	})
	t.Run("the only default route, by force", func(t *testing.T) {
		before := s.portrait(t, "eth0")
		succeeds(t, s.netns(t, "create", "--interface=eth0", "--user=ada", "--ns-dir="+cardDir, "--dns=198.51.100.2", "--force"))
		s.giveBack(t)
		s.unchanged(t, before, "eth0")
	})
}

func TestDNSServersOnTheLoopbackAreLeftOutWithAWord(t *testing.T) {
	s := newLANSite(t)
	s.WriteFile(t, "/etc/resolv.conf", "nameserver 127.0.0.53\nnameserver 198.51.100.18\nnameserver ::1\nsearch lan.test\n", 0o644)
	r := s.netns(t, "create", "--interface=eth1", "--user=ada", "--ns-dir="+cardDir)
	if missing := lacks(r.Stderr, "127.0.0.53", "::1", "--dns"); r.Code != 0 || len(missing) > 0 || strings.Contains(r.Stderr, "198.51.100.18") {
		t.Errorf("%v\nlacks %q", r, missing)
	}
	if got, want := output(t, s.Host, onCard("cat", "/etc/resolv.conf")...), "search lan.test\nnameserver 198.51.100.18\n"; got != want {
		t.Errorf("resolv.conf inside is %q, want %q", got, want)
	}
	s.giveBack(t)
}

func TestWhatWasNotLentIsNotGivenBack(t *testing.T) {
	s := newLANSite(t)
	s.root(t, "mkdir -p /run/gatekit/other; touch /run/gatekit/other/file")
	for dir, says := range map[string][]string{
		"/run/gatekit/nowhere": {"no /run/gatekit/nowhere", "netns list"},
		"/run/gatekit/other":   {"/run/gatekit/other", "not made by", "file"},
	} {
		r := s.netns(t, "destroy", "--ns-dir="+dir)
		if missing := lacks(r.Stderr, says...); r.Code != 1 || len(missing) > 0 {
			t.Errorf("%v\nlacks %q", r, missing)
		}
	}
	s.root(t, "ls /run/gatekit/other/file")
	// Nor by one command while another is at work.
	s.root(t, "mkdir /run/gatekit/half; touch /run/gatekit/half/lock")
	r := s.Run(t, s.RootCommand("flock", "/run/gatekit/half/lock", "gatectl", "netns", "destroy", "--ns-dir=/run/gatekit/half"))
	if missing := lacks(r.Stderr, "/run/gatekit/half", "at work"); r.Code != 1 || len(missing) > 0 {
		t.Errorf("%v\nlacks %q", r, missing)
	}
	succeeds(t, s.netns(t, "destroy", "--ns-dir=/run/gatekit/half"))
	// Nor by somebody in another network.
	s.lend(t)
	r = s.Run(t, s.RootCommand("unshare", "--net", "gatectl", "netns", "destroy", "--ns-dir="+cardDir))
	if missing := lacks(r.Stderr, "another network namespace"); r.Code != 1 || len(missing) > 0 {
		t.Errorf("%v\nlacks %q", r, missing)
	}
	s.giveBack(t)
}
