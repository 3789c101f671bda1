package test

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
)

// allowPings lets everybody on the Host have ping sockets.
func (s site) allowPings(t *testing.T) {
	t.Helper()
	s.Do(t, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0o644)
	})
}

func TestPingsGoOutAndComeBackWithWhatWasSent(t *testing.T) {
	s := newSite(t)
	s.allowPings(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "60")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		for _, size := range []string{"16", "56", "1472", "4000"} {
			out := g.run(t, "ping", "-c", "3", "-i", "0.01", "-W", "10", "-s", size, "-p", "c0ffee", outside.String())
			if !strings.Contains(out, "3 packets transmitted, 3 received, 0% packet loss") || strings.Contains(out, "wrong data") {
				t.Errorf("%s bytes: %s", size, out)
			}
			// One hop less than it had on the wire.
			if ttl := regexp.MustCompile(`ttl=63\b`).FindAllString(out, -1); len(ttl) != 3 {
				t.Errorf("%s bytes: %s\nwant a time to live of 63", size, out)
			}
		}
	})
	g.stop(t)
}

func TestPingsAreNeverForged(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "60")
	part := func(t *testing.T, to netip.Addr, answered bool) {
		for _, size := range []string{"56", "4000"} {
			r := s.Run(t, g.in("ping", "-c", "2", "-i", "0.01", "-W", "1", "-s", size, to.String()))
			if got := r.Code == 0; got != answered {
				t.Errorf("%s bytes to %v: %v\nwant answered: %v", size, to, r, answered)
			}
		}
	}
	// This Host has no ping sockets for its user.
	s.both(t, func(t *testing.T, outside, _ netip.Addr) { part(t, outside, false) })
	part(t, netip.MustParseAddr("10.0.2.2"), true)
	part(t, netip.MustParseAddr("fd67:6174:656b::2"), true)
	g.stop(t)

	s.allowPings(t)
	g = startGate(t, s.Host, "--net=slirp", "sleep", "60")
	for _, hole := range blackholes {
		t.Run(fmt.Sprint(hole), func(t *testing.T) { part(t, hole, false) })
	}
	g.stop(t)
}
