package parent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/pkg/network"
)

func TestParseAddHost(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tc := range []struct {
		name, in string
		want     HostEntry
		fails    string
	}{
		{"IPv4", "db:192.0.2.7", HostEntry{"db", netip.MustParseAddr("192.0.2.7")}, ""},
		{"a domain", "a_b.example-1.com:192.0.2.7", HostEntry{"a_b.example-1.com", netip.MustParseAddr("192.0.2.7")}, ""},
		{"IPv6", "db:2001:db8::1", HostEntry{"db", netip.MustParseAddr("2001:db8::1")}, ""},
		{"IPv6 in brackets", "db:[::1]", HostEntry{"db", netip.MustParseAddr("::1")}, ""},
		{"a label of 63 bytes", long + ":::1", HostEntry{long, netip.MustParseAddr("::1")}, ""},
		{"no address", "db", HostEntry{}, `"db" is not NAME:IP`},
		{"an empty address", "db:", HostEntry{}, `"" in "db:" is not an IP address`},
		{"an empty name", ":192.0.2.7", HostEntry{}, `"" in ":192.0.2.7" is not a host name`},
		{"an empty label", "a..b:::1", HostEntry{}, "is not a host name"},
		{"a dash in front", "-a:::1", HostEntry{}, "is not a host name"},
		{"a label of 64 bytes", long + "a:::1", HostEntry{}, "is not a host name"},
		{"a name of 255 bytes", strings.Repeat(long+".", 4)[:255] + ":::1", HostEntry{}, "is not a host name"},
		{"a line more", "a\nb:::1", HostEntry{}, "is not a host name"},
		{"a space", "a b:::1", HostEntry{}, "is not a host name"},
		{"a zone", "db:fe80::1%eth0", HostEntry{}, "is not an IP address"},
		{"a port", "db:192.0.2.7:80", HostEntry{}, "is not an IP address"},
		{"IPv4 in brackets", "db:[192.0.2.7]", HostEntry{}, "is not an IP address"},
		{"a name for an address", "db:localhost", HostEntry{}, "is not an IP address"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseAddHost(tc.in)
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Fatalf("got %v, %v; want an error with %q", got, err, tc.fails)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("got %v, %v; want %v", got, err, tc.want)
			}
		})
	}
}

func FuzzAddedHostIsOneLine(f *testing.F) {
	f.Add("db:192.0.2.7")
	f.Add("db:[2001:db8::1%x\ny]")
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseAddHost(s)
		if err != nil {
			return
		}
		got := string(hostsFile(nil, "", []HostEntry{e}))
		if strings.Count(got, "\n") != 1 || len(strings.Fields(got)) != 2 || strings.Contains(got, "#") {
			t.Errorf("%q became %q", s, got)
		}
	})
}

func TestHostsFile(t *testing.T) {
	extra := []HostEntry{{"db", netip.MustParseAddr("192.0.2.7")}, {"db", netip.MustParseAddr("2001:db8::7")}}
	for _, tc := range []struct {
		name, host, machine string
		extra               []HostEntry
		want                string
	}{
		{"the machine comes last", "127.0.0.1 localhost\n", "box", nil, "127.0.0.1 localhost\n127.0.0.1 box\n::1 box\n"},
		{"a last line without an end gets one", "127.0.0.1 localhost", "box", nil, "127.0.0.1 localhost\n127.0.0.1 box\n::1 box\n"},
		{"further entries come first", "192.0.2.1 db\n", "box", extra, "192.0.2.7 db\n2001:db8::7 db\n192.0.2.1 db\n127.0.0.1 box\n::1 box\n"},
		{"a host without the file", "", "box", nil, "127.0.0.1 box\n::1 box\n"},
		{"a machine without a name", "127.0.0.1 localhost\n", "", nil, "127.0.0.1 localhost\n"},
		{"a name that the file cannot hold", "", "(none)", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := string(hostsFile([]byte(tc.host), tc.machine, tc.extra)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestResolvConf(t *testing.T) {
	for _, tc := range []struct {
		name string
		plan network.Plan
		want string
	}{
		{"servers alone", network.Plan{Nameservers: []netip.Addr{netip.MustParseAddr("10.0.2.3")}}, "nameserver 10.0.2.3\n"},
		{"all", network.Plan{
			Nameservers: []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("fd00::3")},
			Search:      []string{"corp.example", "example"},
			Options:     []string{"ndots:2", "edns0"},
		}, "search corp.example example\nnameserver 10.0.2.3\nnameserver fd00::3\noptions ndots:2 edns0\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := string(resolvConf(tc.plan)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestAFileIsRewrittenInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver 10.0.2.3\nsearch a.test b.test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"nameserver 10.0.2.3\n", "nameserver 10.0.2.3\nsearch c.test\noptions ndots:2\n"} {
		if err := rewrite(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("it holds %q, %v, want %q", got, err, content)
		}
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("it is another file: %v", err)
	}
	if err := rewrite(path+"x", nil); err == nil {
		t.Error("a file that is not there is made")
	}
}
