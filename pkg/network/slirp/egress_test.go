package slirp

import (
	"net/netip"
	"testing"

	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
)

func TestEgressKnowsEverySpellingOfLoopback(t *testing.T) {
	ports, err := ParseHostLoopback("80")
	if err != nil {
		t.Fatal(err)
	}
	filter, err := policy.New(network.Policy{})
	if err != nil {
		t.Fatal(err)
	}
	e := &egress{subnets: testInspector(t).subnets, loopback: ports, leads: &leads{}, policy: filter}
	for asked, want := range map[string]string{
		"198.51.100.7:80":          "198.51.100.7:80",
		"[2001:db8::7]:80":         "[2001:db8::7]:80",
		"169.254.169.254:80":       "169.254.169.254:80",
		"10.0.3.2:80":              "10.0.3.2:80",
		"10.0.2.2:80":              "127.0.0.1:80",
		"[fd67:6174:656b::2]:80":   "[::1]:80",
		"10.0.2.2:81":              "",
		"[fd67:6174:656b::2]:81":   "",
		"10.0.2.3:80":              "",
		"10.0.2.100:80":            "",
		"10.0.2.255:80":            "",
		"[fd67:6174:656b::100]:80": "",
		"127.0.0.1:80":             "",
		"127.8.9.10:80":            "",
		"0.0.0.0:80":               "",
		"0.1.2.3:80":               "",
		"255.255.255.255:80":       "",
		"224.0.0.1:80":             "",
		"[::1]:80":                 "",
		"[::]:80":                  "",
		"[::ffff:127.0.0.1]:80":    "",
		"[::ffff:0.0.0.0]:80":      "",
		"[::ffff:198.51.100.7]:80": "",
		"[::ffff:10.0.2.2]:80":     "",
		"[::127.0.0.1]:80":         "",
		"[64:ff9b::127.0.0.1]:80":  "[64:ff9b::7f00:1]:80", // NAT64 is a router's, elsewhere
		"[fe80::1]:80":             "",
		"[ff02::1]:80":             "",
	} {
		t.Run(asked, func(t *testing.T) {
			w, ruling := e.destination(policy.TCP, netip.MustParseAddrPort(asked))
			got := w.to
			ok := ruling == letOut
			if ok != (want != "") || ok && got.String() != want {
				t.Errorf("got %v, %v, want %q", got, ok, want)
			}
			if ok && e.source(got) != netip.MustParseAddrPort(asked) {
				t.Errorf("%v comes back as %v", got, e.source(got))
			}
		})
	}
}
