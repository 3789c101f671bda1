package port

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []Spec
	}{
		{"two ports listen everywhere and reach loopback", "8080:80/tcp",
			[]Spec{{Proto: "tcp", ParentPort: 8080, ChildPort: 80}}},
		{"an address before the parent port is the parent's", "127.0.0.1:8080:80/tcp4",
			[]Spec{{Proto: "tcp4", ParentIP: "127.0.0.1", ParentPort: 8080, ChildPort: 80}}},
		{"an address after the parent port is the child's", "53:10.0.2.100:5353/udp",
			[]Spec{{Proto: "udp", ParentPort: 53, ChildIP: "10.0.2.100", ChildPort: 5353}}},
		{"both sides may have addresses", "127.0.0.1:8080:10.0.2.100:80/tcp",
			[]Spec{{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 8080, ChildIP: "10.0.2.100", ChildPort: 80}}},
		{"IPv6 stands in brackets", "[::1]:8080:[fd00::100]:80/tcp6",
			[]Spec{{Proto: "tcp6", ParentIP: "::1", ParentPort: 8080, ChildIP: "fd00::100", ChildPort: 80}}},
		{"IPv6 for the child alone", "8080:[::1]:80/tcp",
			[]Spec{{Proto: "tcp", ParentPort: 8080, ChildIP: "::1", ChildPort: 80}}},
		{"link-local addresses name their interface", "[fe80::1%eth0]:8080:80/udp6",
			[]Spec{{Proto: "udp6", ParentIP: "fe80::1%eth0", ParentPort: 8080, ChildPort: 80}}},
		{"parent port 0 picks a free one", "127.0.0.1:0:80/tcp",
			[]Spec{{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 80}}},
		{"ranges are expanded in order", "8000-8002:9000-9002/udp4", []Spec{
			{Proto: "udp4", ParentPort: 8000, ChildPort: 9000},
			{Proto: "udp4", ParentPort: 8001, ChildPort: 9001},
			{Proto: "udp4", ParentPort: 8002, ChildPort: 9002}}},
		{"a range of one is one forward", "8000-8000:80/tcp",
			[]Spec{{Proto: "tcp", ParentPort: 8000, ChildPort: 80}}},
		{"ranges reach the last port", "65534-65535:65534-65535/tcp", []Spec{
			{Proto: "tcp", ParentPort: 65534, ChildPort: 65534},
			{Proto: "tcp", ParentPort: 65535, ChildPort: 65535}}},
		{"families may be crossed", "0.0.0.0:80:[::1]:80/tcp4",
			[]Spec{{Proto: "tcp4", ParentIP: "0.0.0.0", ParentPort: 80, ChildIP: "::1", ChildPort: 80}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ name, text, reason string }{
		{"nothing", "", "the protocol is missing"},
		{"a lone protocol", "/tcp", "a field is empty"},
		{"a missing protocol", "8080:80", "the protocol is missing"},
		{"an unknown protocol", "8080:80/sctp", `protocol "sctp" is none of tcp, tcp4`},
		{"an upper-case protocol", "8080:80/TCP", `protocol "TCP"`},
		{"two protocols", "8080:80/tcp/udp", `protocol "tcp/udp"`},
		{"one port", "8080/tcp", "want 2 to 4 fields between colons, not 1"},
		{"IPv6 without brackets", "::1:8080:80/tcp", "a field is empty"},
		{"a long IPv6 address without brackets", "fd00:1:2:3:4:5:6:7:8080:80/tcp", "IPv6 addresses stand in brackets"},
		{"a host name", "localhost:8080:80/tcp", `parent address "localhost" is not an IP address`},
		{"a child's host name", "8080:web:80/tcp", `child address "web"`},
		{"a bad address", "127.0.0.256:8080:80/tcp", `parent address "127.0.0.256"`},
		{"brackets around IPv4", "[127.0.0.1]:8080:80/tcp", "[127.0.0.1] is not an IPv6 address"},
		{"an open bracket", "[::1:8080:80/tcp", "a bracket does not close"},
		{"a stray bracket", "::1]:8080:80/tcp", "a field is empty"},
		{"brackets within brackets", "[[::1]]:8080:80/tcp", "a bracket opens in the middle"},
		{"text after a bracket", "[::1]x:8080:80/tcp", "a bracket closes in the middle"},
		{"a port too high", "65536:80/tcp", `parent port "65536" is not a number from 0 to 65535`},
		{"a negative port", "8080:-80/tcp", `child port "" is not a number`},
		{"a signed port", "+80:80/tcp", `"+80"`},
		{"child port 0", "8080:0/tcp", "child port 0 is not from 1 to 65535"},
		{"port 0 in a range", "0-1:80-81/tcp", "parent port 0 cannot start a range"},
		{"ranges of different length", "8000-8002:80-81/tcp", "3 parent ports but 2 child ports"},
		{"a range to one port", "8000-8002:80/tcp", "3 parent ports but 1 child ports"},
		{"a range that runs backwards", "8002-8000:80-82/tcp", "parent port range 8002-8000 runs backwards"},
		{"a range past the last port", "65535-65536:1-2/tcp", `parent port "65536"`},
		{"an IPv6 address for tcp4", "[::1]:8080:80/tcp4", "tcp4 cannot listen on the IPv6 address ::1"},
		{"an IPv4 address for udp6", "127.0.0.1:53:53/udp6", "udp6 cannot listen on the IPv4 address 127.0.0.1"},
		{"IPv4 in IPv6", "[::ffff:127.0.0.1]:8080:80/tcp", "write it as 127.0.0.1"},
		{"a multicast address", "224.0.0.1:8080:80/udp", "is not the address of one host"},
		{"the broadcast address", "255.255.255.255:8080:80/udp", "is not the address of one host"},
		{"a link-local address without its interface", "[fe80::1]:8080:80/tcp", "needs its interface"},
		{"an interface for a global address", "[2001:db8::1%eth0]:8080:80/tcp", "takes no interface"},
		{"an impossible interface", "[fe80::1%a b]:8080:80/tcp", "impossible interface"},
		{"spaces", " 8080:80/tcp", "is not a number"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			specs, err := Parse(tt.text)
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v, %v", specs, err)
			}
			if !strings.Contains(err.Error(), tt.reason) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want it to say %q in one line", err, tt.reason)
			}
			if !strings.Contains(err.Error(), form) {
				t.Errorf("%q does not say how a spec looks", err)
			}
		})
	}
}

func TestString(t *testing.T) {
	for _, text := range []string{
		"8080:80/tcp", "127.0.0.1:8080:80/tcp", "8080:10.0.2.100:80/udp4", "[::1]:8080:[fd00::100]:80/tcp6",
		"0:80/tcp", "[fe80::1%eth0]:8080:[fe80::2%3]:80/udp",
	} {
		specs, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := specs[0].String(); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Spec{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 8080, ChildIP: "::1", ChildPort: 80}
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		reason string // empty: valid
	}{
		{"a good spec is valid", func(*Spec) {}, ""},
		{"empty addresses are valid", func(s *Spec) { s.ParentIP, s.ChildIP = "", "" }, ""},
		{"parent port 0 is valid", func(s *Spec) { s.ParentPort = 0 }, ""},
		{"a proto must be known", func(s *Spec) { s.Proto = "" }, `protocol ""`},
		{"a name is no address", func(s *Spec) { s.ChildIP = "localhost" }, `child address "localhost"`},
		{"brackets belong to the text form only", func(s *Spec) { s.ChildIP = "[::1]" }, `child address "[::1]"`},
		{"ports are not negative", func(s *Spec) { s.ParentPort = -1 }, "parent port -1"},
		{"ports end at 65535", func(s *Spec) { s.ChildPort = 65536 }, "child port 65536"},
		{"the family must fit", func(s *Spec) { s.Proto = "tcp6" }, "tcp6 cannot listen on the IPv4 address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := good
			tt.change(&spec)
			err := spec.Validate()
			if tt.reason == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.reason) {
				t.Fatalf("got %v, want %q", err, tt.reason)
			}
		})
	}
}

func TestConflicts(t *testing.T) {
	for _, tt := range []struct {
		name, a, b string
		want       bool
	}{
		{"the same address and port", "127.0.0.1:80:80/tcp", "127.0.0.1:80:81/tcp", true},
		{"another port", "127.0.0.1:80:80/tcp", "127.0.0.1:81:80/tcp", false},
		{"another address", "127.0.0.1:80:80/tcp", "127.0.0.2:80:80/tcp", false},
		{"TCP and UDP", "80:80/tcp", "80:80/udp", false},
		{"an unspecified and a specific address", "80:80/tcp", "127.0.0.1:80:80/tcp", true},
		{"tcp4 and tcp6", "80:80/tcp4", "80:80/tcp6", false},
		{"tcp and tcp6", "80:80/tcp", "80:80/tcp6", true},
		{"tcp on 0.0.0.0 is on both families", "0.0.0.0:80:80/tcp", "[::1]:80:80/tcp", true},
		{"tcp4 and an IPv6 address", "80:80/tcp4", "[::1]:80:80/tcp", false},
		{"one address written in two ways", "[::1]:80:80/tcp", "[0:0::1]:80:80/tcp6", true},
		{"two interfaces", "[fe80::1%a]:80:80/tcp", "[fe80::1%b]:80:80/tcp", false},
		{"all and an interface", "80:80/udp6", "[fe80::1%b]:80:80/udp", true},
		{"free ports", "0:80/tcp", "0:80/tcp", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := mustParse(t, tt.a), mustParse(t, tt.b)
			if got := Conflicts(a, b); got != tt.want {
				t.Errorf("%s and %s: %v", a, b, got)
			}
			if got := Conflicts(b, a); got != tt.want {
				t.Errorf("%s and %s: %v", b, a, got)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	for _, tt := range []struct {
		name, spec string
		client     Families
		want       []string
	}{
		{"an IPv4 client reaches IPv4 loopback first", "80:80/tcp", IPv4, []string{"127.0.0.1:80", "[::1]:80"}},
		{"an IPv6 client reaches IPv6 loopback first", "80:80/udp", IPv6, []string{"[::1]:80", "127.0.0.1:80"}},
		{"tcp4 reaches IPv4 alone", "80:80/tcp4", IPv4, []string{"127.0.0.1:80"}},
		{"udp6 reaches IPv6 alone", "80:80/udp6", IPv6, []string{"[::1]:80"}},
		{"a loopback address of its own comes first", "127.0.0.2:80:80/tcp", IPv4, []string{"127.0.0.2:80", "127.0.0.1:80", "[::1]:80"}},
		{"and so with tcp4", "127.0.0.2:80:80/tcp4", IPv4, []string{"127.0.0.2:80", "127.0.0.1:80"}},
		{"the usual loopback is there once", "127.0.0.1:80:80/udp", IPv4, []string{"127.0.0.1:80", "[::1]:80"}},
		{"an address that would leave the namespace is not dialled", "198.51.100.1:80:80/tcp4", IPv4, []string{"127.0.0.1:80"}},
		{"the child's address goes before the host's", "127.0.0.2:80:10.0.2.100:80/tcp", IPv4, []string{"10.0.2.100:80"}},
		{"the child's address is used as given", "80:[fd00::1]:80/tcp4", IPv4, []string{"[fd00::1]:80"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, target := range mustParse(t, tt.spec).Targets(tt.client) {
				got = append(got, target.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func mustParse(t *testing.T, text string) Spec {
	t.Helper()
	specs, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return specs[0]
}

// FuzzParse checks that what Parse takes is valid, and that String gives back
// what was parsed.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"8080:80/tcp", "127.0.0.1:8080:80/tcp4", "[::1]:8000-8002:[fd00::1]:9000-9002/udp", "[fe80::1%eth0]:0:80/tcp6",
		"1:2:3:4/udp6", "[]:1:1/tcp", "-:-/tcp", "0-65535:0-65535/tcp",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		specs, err := Parse(text)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: %v does not wrap ErrInvalid", text, err)
			}
			return
		}
		for _, i := range []int{0, len(specs) - 1} {
			if err := specs[i].Validate(); err != nil {
				t.Fatalf("%q gave an invalid spec: %v", text, err)
			}
			again, err := Parse(specs[i].String())
			if err != nil || len(again) != 1 || again[0] != specs[i] {
				t.Fatalf("%q gave %+v, which comes back from %q as %+v, %v", text, specs[i], specs[i], again, err)
			}
		}
	})
}

func TestAReverseSpecListensInside(t *testing.T) {
	for _, c := range []struct {
		text            string
		listens, target string // of a client of IPv6
		refused         string
	}{
		{text: "127.0.0.1:5432:5433/tcp", listens: "[127.0.0.1 ::1]", target: "127.0.0.1:5432"},
		{text: "5432:5433/tcp", listens: "[127.0.0.1 ::1]", target: "[::1]:5432"},
		{text: "5432:5433/udp4", listens: "[127.0.0.1]", target: "[::1]:5432"},
		{text: "[::1]:5432:0.0.0.0:5433/tcp", listens: "[0.0.0.0 ::]", target: "[::1]:5432"},
		{text: "[2001:db8::1]:5432:172.17.0.1:5433/tcp4", listens: "[172.17.0.1]", target: "[2001:db8::1]:5432"},
		{text: "0:5433/tcp", refused: "parent port 0"},
		{text: "0.0.0.0:5432:5433/tcp", refused: "0.0.0.0 is every address"},
		{text: "5432:[::1]:5433/tcp4", refused: "tcp4 cannot listen on the IPv6 address ::1"},
	} {
		specs, err := ParseReverse(c.text)
		if c.refused != "" {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v", c.text, err)
			}
			continue
		}
		if err != nil || specs[0].Validate() != nil || specs[0].String() != "reverse "+c.text {
			t.Fatal(err, specs)
		}
		spec := specs[0]
		if got := fmt.Sprint(spec.Listens()); got != c.listens || spec.ListenPort() != 5433 {
			t.Errorf("%s listens on %s, port %d", c.text, got, spec.ListenPort())
		}
		if got := spec.Targets(IPv6)[0].String(); got != c.target || spec.Target(IPv6).String() != c.target {
			t.Errorf("%s leads to %s", c.text, got)
		}
		other := spec
		other.ParentPort++
		ahead := spec
		ahead.ParentPort, ahead.Reverse = spec.ChildPort, false
		if !Conflicts(spec, other) || Conflicts(spec, ahead) {
			t.Errorf("%s conflicts with what it should not, or not", c.text)
		}
	}
}

// FuzzValidate checks that a valid spec survives its text form, whatever its
// fields came from.
func FuzzValidate(f *testing.F) {
	f.Add("tcp", "127.0.0.1", 8080, "::1", 80, false)
	f.Add("udp6", "fe80::1%eth0", 0, "", 1, false)
	f.Add("tcp4", "::1", 5432, "0.0.0.0", 5432, true)
	f.Fuzz(func(t *testing.T, proto, parentIP string, parentPort int, childIP string, childPort int, reverse bool) {
		spec := Spec{Proto: proto, ParentIP: parentIP, ParentPort: parentPort, ChildIP: childIP, ChildPort: childPort, Reverse: reverse}
		if spec.Validate() != nil {
			return
		}
		parse, text := Parse, spec.String()
		if reverse {
			parse, text = ParseReverse, strings.TrimPrefix(text, "reverse ")
		}
		again, err := parse(text)
		if err != nil || len(again) != 1 || again[0] != spec {
			t.Fatalf("%+v comes back from %q as %+v, %v", spec, spec, again, err)
		}
		for _, addr := range spec.Listens() {
			if addr == (netip.Addr{}) {
				t.Fatalf("%+v listens nowhere", spec)
			}
		}
		for _, family := range []Families{IPv4, IPv6} {
			if targets := spec.Targets(family); len(targets) == 0 || len(targets) > maxTargets || targets[0] != spec.Target(family) {
				t.Fatalf("%+v leads to %v", spec, targets)
			}
		}
	})
}
