package slirp

import (
	"errors"
	"net/netip"
	"testing"
)

func TestParseHostLoopback(t *testing.T) {
	for _, test := range []struct {
		in, out        string
		open, notOpen  []uint16
		wantUsageError bool
	}{
		{in: "", out: "none", notOpen: []uint16{1, 80, 65535}},
		{in: "none", out: "none", notOpen: []uint16{1, 80, 65535}},
		{in: "all", out: "all", open: []uint16{1, 80, 65535}},
		{in: "5432", out: "5432", open: []uint16{5432}, notOpen: []uint16{5431, 5433}},
		{in: "5432,8000-8010", out: "5432,8000-8010", open: []uint16{5432, 8000, 8005, 8010}, notOpen: []uint16{7999, 8011}},
		{in: "5432, 80", out: "5432,80", open: []uint16{80}},
		{in: "0", wantUsageError: true},
		{in: "65536", wantUsageError: true},
		{in: "9-8", wantUsageError: true},
		{in: "1,", wantUsageError: true},
		{in: "1-", wantUsageError: true},
		{in: "ssh", wantUsageError: true},
		{in: "ALL", wantUsageError: true},
	} {
		t.Run(test.in, func(t *testing.T) {
			h, err := ParseHostLoopback(test.in)
			if errors.Is(err, ErrUsage) != test.wantUsageError {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				return
			}
			if h.String() != test.out {
				t.Errorf("formatted as %q, want %q", h, test.out)
			}
			for _, p := range test.open {
				if !h.allows(p) {
					t.Errorf("port %d is not open", p)
				}
			}
			for _, p := range test.notOpen {
				if h.allows(p) {
					t.Errorf("port %d is open", p)
				}
			}
		})
	}
}

func TestEgressKnowsEverySpellingOfLoopback(t *testing.T) {
	ports, err := ParseHostLoopback("80")
	if err != nil {
		t.Fatal(err)
	}
	e := &egress{subnets: testInspector(t).subnets, loopback: ports}
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
			got, ok := e.destination(netip.MustParseAddrPort(asked))
			if ok != (want != "") || ok && got.String() != want {
				t.Errorf("got %v, %v, want %q", got, ok, want)
			}
			if ok && e.source(got) != netip.MustParseAddrPort(asked) {
				t.Errorf("%v comes back as %v", got, e.source(got))
			}
		})
	}
}
