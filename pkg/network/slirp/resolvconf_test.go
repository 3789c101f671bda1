package slirp

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseResolvConf(t *testing.T) {
	type conf struct{ Upstreams, Search, Options []string }
	for _, test := range []struct {
		name, in string
		want     conf
	}{
		{"empty", "", conf{Upstreams: []string{"127.0.0.1:53"}}},
		{"the usual", "# made by\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch a.example b.example\noptions edns0 trust-ad\n",
			conf{[]string{"192.0.2.1:53", "[2001:db8::1]:53"}, []string{"a.example", "b.example"}, []string{"edns0", "trust-ad"}}},
		{"a zone", "nameserver fe80::1%eth0", conf{Upstreams: []string{"[fe80::1%eth0]:53"}}},
		{"an IPv4-mapped server", "nameserver ::ffff:192.0.2.1", conf{Upstreams: []string{"192.0.2.1:53"}}},
		{"the last of search and domain", "search a\ndomain b\noptions x\noptions y\n", conf{[]string{"127.0.0.1:53"}, []string{"b"}, []string{"x", "y"}}},
		{"comments and tabs", "nameserver\t192.0.2.1 # first\n;nameserver 192.0.2.2\r\n", conf{Upstreams: []string{"192.0.2.1:53"}}},
		{"nonsense", "nameserver\nnameserver x\nnameserver 192.0.2.1\nfoo bar\n", conf{Upstreams: []string{"192.0.2.1:53"}}},
		{"too many servers", strings.Repeat("nameserver 192.0.2.1\n", 20), conf{Upstreams: strings.Fields(strings.Repeat("192.0.2.1:53 ", maxUpstreams))}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := parseResolvConf([]byte(test.in))
			got := conf{Search: c.search, Options: c.options}
			for _, u := range c.upstreams {
				got.Upstreams = append(got.Upstreams, u.String())
			}
			if diff := cmp.Diff(test.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\nsearch a b\noptions ndots:2\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := parseResolvConf(data)
		if n := len(c.upstreams); n == 0 || n > maxUpstreams {
			t.Errorf("%d upstreams", n)
		}
	})
}
