package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/pkg/network"
)

func TestRulesAreReadAndWrittenTheSame(t *testing.T) {
	for in, want := range map[string]string{
		"tcp://198.51.100.7:443":             "",
		"tcp://198.51.100.7":                 "",
		"udp://198.51.100.0/24:53,1000-2000": "",
		"icmp://*":                           "",
		"any://*":                            "",
		"any://*:80":                         "",
		"any://[2001:db8::7]":                "",
		"any://[2001:db8::/32]:443":          "",
		"tcp://example.com:443":              "",
		"tcp://*.example.com":                "",
		"tcp://a_b.x-y.example":              "",
		"any://@host":                        "",
		"*://example.com":                    "any://example.com",
		"TCP://Example.COM.:1-1":             "tcp://example.com:1",
		"tcp://198.51.100.7/24":              "tcp://198.51.100.0/24",
		"tcp://198.51.100.7/32":              "tcp://198.51.100.7",
		"tcp://[2001:db8::]/32:443":          "tcp://[2001:db8::/32]:443",
		"tcp://[2001:db8::1/128]":            "tcp://[2001:db8::1]",
		"tcp://localhost":                    "",
	} {
		if want == "" {
			want = in
		}
		r, err := parseRule(in)
		if err != nil || r.String() != want {
			t.Errorf("%s: %q, %v, want %q", in, r, err, want)
		}
	}
}

func TestWhatIsNoRuleIsRefused(t *testing.T) {
	for _, in := range []string{
		"", "tcp", "tcp:", "tcp://", "://x", "sctp://x", "tcp://:80", "tcp://x:", "tcp://x:0", "tcp://x:65536",
		"tcp://x:2-1", "tcp://x:1,", "tcp://x:http", "tcp://x:+1", "icmp://x:1", "tcp://2001:db8::1", "tcp://2001:db8::1:443",
		"tcp://[2001:db8::1", "tcp://[x]", "tcp://[198.51.100.7]", "tcp://[2001:db8::1]x", "tcp://[::1%lo]",
		"tcp://[::ffff:198.51.100.7]", "tcp://198.51.100.7/33", "tcp://300.1.1.1", "tcp://10.1", "tcp://a..b",
		"tcp://a*.example", "tcp://*.*.example", "tcp://*.", "tcp://exämple.com", "tcp://a b", "tcp://example.com/24",
		"tcp://" + strings.Repeat("a", 64) + ".example", "tcp://" + strings.Repeat("a.", 127) + "example", "tcp://@x",
	} {
		if r, err := parseRule(in); !errors.Is(err, network.ErrPolicy) {
			t.Errorf("%q is read as %v, error %v", in, r, err)
		}
	}
}

func FuzzRule(f *testing.F) {
	for _, s := range []string{"tcp://198.51.100.0/24:80,443-445", "any://[2001:db8::/32]:1", "udp://*.example.com", "icmp://@host", "*://*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseRule(s)
		if err != nil {
			return
		}
		again, err := parseRule(r.String())
		if err != nil || again.String() != r.String() {
			t.Errorf("%q is written as %q, which is read as %q, %v", s, r, again, err)
		}
	})
}
