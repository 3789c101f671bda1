package test

import (
	"slices"
	"strings"
	"testing"
)

// netns prints the network namespace of a command.
var netns = []string{"readlink", "/proc/self/ns/net"}

func TestNetHostIsTheHostsNetwork(t *testing.T) {
	s := newSite(t)
	port := serveTCP(t, s.Host, "127.0.0.1:0", echoTCP)
	for name, flags := range map[string][]string{"by default": {}, "when asked for": {"--net=host"}} {
		t.Run(name, func(t *testing.T) {
			want := s.Run(t, s.Command(netns[0], netns[1])).Stdout
			if got := output(t, s.Host, append(flags, netns...)...); got != want {
				t.Errorf("the command is in %s, want %s", got, want)
			}
			output(t, s.Host, append(flags, "probe", "exchange", port.String(), "100000")...)
			if got, want := output(t, s.Host, append(flags, "cat", "/etc/resolv.conf")...), s.ReadFile(t, "/etc/resolv.conf"); got != want {
				t.Errorf("resolv.conf inside is %q, want the host's, %q", got, want)
			}
		})
	}
}

func TestNetNoneHasLoopbackAlone(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=none", "probe", "service", "tcp", "127.0.0.1:80", "[::1]:80")
	g.awaitOutput(t, "serving")
	links := g.links(t)
	if lo := links["lo"]; len(links) != 1 || !slices.Contains(lo.Flags, "UP") {
		t.Errorf("the interfaces are %+v, want lo, up", links)
	}
	if got := g.gateways(t); got != nil {
		t.Errorf("the default routes are %q", got)
	}
	g.run(t, "probe", "exchange", "127.0.0.1:80", "100000")
	g.run(t, "probe", "exchange", "[::1]:80", "100000")
	for _, addr := range []string{at(s.outside.HostAddr4, 80), at(s.outside.Addr6, 80)} {
		if got := g.run(t, "probe", "connect", addr); got != addr+" network is unreachable\n" {
			t.Error(got)
		}
	}
}

// With --detach-netns the command is in the host's network, and the gate's own
// is a file, which others enter.
func TestADetachedNetworkReachesTheOutside(t *testing.T) {
	s := newSite(t)
	s.names(t, zone...)
	s.resolvConf(t, "nameserver "+s.outside.Addr4.String())
	tcp := serveTCP(t, s.outside, "[::]:0", echoTCP).Port()
	udp := serveUDP(t, s.outside, at(s.outside.Addr4, 0), echoUDP)
	loopback := serveTCP(t, s.Host, "127.0.0.1:0", echoTCP)
	g := startGate(t, s.Host, "--net=slirp", "--detach-netns", "sh", "-c",
		"readlink /proc/self/ns/net; probe exchange "+loopback.String()+" 1000; cat /etc/resolv.conf; echo done; exec sleep infinity")
	g.awaitOutput(t, "done\n")
	want := s.Run(t, s.Command(netns[0], netns[1])).Stdout + "ok\n" + s.ReadFile(t, "/etc/resolv.conf") + "done\n"
	if got := g.Stdout(); got != want {
		t.Errorf("the command says %q, want it to be in the host's network: %q", got, want)
	}
	if got := g.run(t, netns...); strings.HasPrefix(want, got) {
		t.Error("netns in the state dir is the host's network")
	}
	g.run(t, "probe", "exchange", at(s.outside.Addr4, int(tcp)), "1000000")
	g.run(t, "probe", "exchange", at(s.outside.Addr6, int(tcp)), "1000000")
	g.run(t, "probe", "echo", addrOf(udp).String())
	if got := g.run(t, "dig", "+short", "@"+dns4, "web.example.test"); got != "198.51.100.80\n" {
		t.Errorf("the gateway's DNS says %q", got)
	}
	if conf := s.ReadFile(t, g.stateDir+"/resolv.conf"); !strings.Contains(conf, "nameserver "+dns4+"\n") {
		t.Errorf("resolv.conf in the state dir is %q", conf)
	}
	g.stop(t)
}
