package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/gatekit/gatekit/pkg/network"
)

// clock is a filter's time.
type clock struct{ now time.Time }

// newFilter returns a filter and its clock.
func newFilter(t testing.TB, p network.Policy) (*Filter, *clock) {
	t.Helper()
	f, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{time.Unix(1_000_000, 0)}
	f.now = func() time.Time { return c.now }
	f.isHost = func(a netip.Addr) (bool, error) {
		if a == netip.MustParseAddr("192.0.2.99") {
			return false, errors.New("the kernel says nothing")
		}
		return a == netip.MustParseAddr("192.0.2.10") || a == netip.MustParseAddr("2001:db8:1::10"), nil
	}
	return f, c
}

func TestFlowsAreJudged(t *testing.T) {
	const allow, deny = true, false
	type flow struct {
		proto Proto
		to    string
		want  bool
	}
	for name, c := range map[string]struct {
		policy network.Policy
		flows  []flow
	}{
		"no policy allows everything": {network.Policy{}, []flow{
			{TCP, "198.51.100.7:80", allow}, {UDP, "[2001:db8::7]:53", allow}, {ICMP, "198.51.100.7:0", allow},
		}},
		"a default of deny alone denies everything": {network.Policy{Default: "deny"}, []flow{
			{TCP, "198.51.100.7:80", deny}, {UDP, "[2001:db8::7]:53", deny}, {ICMP, "198.51.100.7:0", deny},
		}},
		"a rule is for its protocol and ports": {network.Policy{Default: "deny", Allow: []string{"tcp://198.51.100.0/24:80,1000-1001"}}, []flow{
			{TCP, "198.51.100.7:80", allow}, {TCP, "198.51.100.7:1001", allow}, {TCP, "198.51.100.7:81", deny},
			{UDP, "198.51.100.7:80", deny}, {ICMP, "198.51.100.7:80", deny}, {TCP, "198.51.101.7:80", deny},
		}},
		"any with ports is tcp and udp": {network.Policy{Default: "deny", Allow: []string{"any://*:80"}}, []flow{
			{TCP, "198.51.100.7:80", allow}, {UDP, "198.51.100.7:80", allow}, {ICMP, "198.51.100.7:80", deny},
		}},
		"icmp is echo of both families": {network.Policy{Deny: []string{"icmp://*"}}, []flow{
			{ICMP, "198.51.100.7:0", deny}, {ICMP, "[2001:db8::7]:0", deny}, {TCP, "198.51.100.7:80", allow},
		}},
		"deny wins over allow": {network.Policy{Allow: []string{"any://198.51.100.7"}, Deny: []string{"any://198.51.100.0/24"}}, []flow{
			{TCP, "198.51.100.7:80", deny}, {TCP, "198.51.101.7:80", allow},
		}},
		"families do not mix": {network.Policy{Default: "deny", Allow: []string{"any://0.0.0.0/0"}}, []flow{
			{TCP, "198.51.100.7:80", allow}, {TCP, "[2001:db8::7]:80", deny},
		}},
		"a denied IPv4 address is denied behind NAT64 too": {network.Policy{Deny: []string{"any://192.168.0.0/16"}}, []flow{
			{TCP, "[64:ff9b::192.168.1.1]:80", deny}, {TCP, "[64:ff9b::198.51.100.7]:80", allow},
		}},
		"the host's own addresses": {network.Policy{Deny: []string{"tcp://@host"}}, []flow{
			{TCP, "192.0.2.10:22", deny}, {TCP, "[2001:db8:1::10]:22", deny}, {UDP, "192.0.2.10:22", allow}, {TCP, "192.0.2.11:22", allow},
		}},
		"what may be the host's own is denied": {network.Policy{Deny: []string{"tcp://@host"}}, []flow{
			{TCP, "192.0.2.99:22", deny}, {UDP, "192.0.2.99:22", allow},
		}},
		"what may be the host's own is not allowed": {network.Policy{Default: "deny", Allow: []string{"tcp://@host"}}, []flow{
			{TCP, "192.0.2.10:22", allow}, {TCP, "192.0.2.99:22", deny},
		}},
		"a name that was not looked up has no address": {network.Policy{Default: "deny", Allow: []string{"any://example.com"}}, []flow{
			{TCP, "198.51.100.7:80", deny},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := newFilter(t, c.policy)
			for _, flow := range c.flows {
				to := netip.MustParseAddrPort(flow.to)
				if f.Allows(flow.proto, to) != flow.want || f.AllowsStill(flow.proto, to) != flow.want {
					t.Errorf("%v to %v: allowed is not %v", flow.proto, to, flow.want)
				}
			}
		})
	}
}

// record is a resource of a test's answer.
type record struct {
	owner, value string // an address or an alias
	ttl          uint32
}

// lookUp makes a query and its answer.
func lookUp(t testing.TB, name string, records ...record) (query, msg []byte) {
	t.Helper()
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	query, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	m.Response = true
	for _, r := range records {
		h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(r.owner), Class: dnsmessage.ClassINET, TTL: r.ttl}
		var body dnsmessage.ResourceBody
		if a, err := netip.ParseAddr(r.value); err != nil {
			body = &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(r.value)}
		} else if a.Is4() {
			body = &dnsmessage.AResource{A: a.As4()}
		} else {
			body = &dnsmessage.AAAAResource{AAAA: a.As16()}
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: body})
	}
	if msg, err = m.Pack(); err != nil {
		t.Fatal(err)
	}
	return query, msg
}

func TestNamesAreHeldToTheAddressesOfAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		rule    string
		asked   string
		records []record
		to      string
		want    bool
	}{
		"an exact name":                           {"any://example.com", "example.com.", []record{{"example.com.", "198.51.100.7", 60}}, "198.51.100.7:80", true},
		"in another case":                         {"any://example.com", "eXample.COM.", []record{{"ExamplE.com.", "198.51.100.7", 60}}, "198.51.100.7:80", true},
		"over IPv6":                               {"any://example.com", "example.com.", []record{{"example.com.", "2001:db8::7", 60}}, "[2001:db8::7]:80", true},
		"another address":                         {"any://example.com", "example.com.", []record{{"example.com.", "198.51.100.7", 60}}, "198.51.100.8:80", false},
		"another name":                            {"any://example.com", "example.org.", []record{{"example.org.", "198.51.100.7", 60}}, "198.51.100.7:80", false},
		"a name below an exact one":               {"any://example.com", "www.example.com.", []record{{"www.example.com.", "198.51.100.7", 60}}, "198.51.100.7:80", false},
		"a name below":                            {"any://*.example.com", "a.b.example.com.", []record{{"a.b.example.com.", "198.51.100.7", 60}}, "198.51.100.7:80", true},
		"not the name itself":                     {"any://*.example.com", "example.com.", []record{{"example.com.", "198.51.100.7", 60}}, "198.51.100.7:80", false},
		"a name that only ends so":                {"any://*.example.com", "badexample.com.", []record{{"badexample.com.", "198.51.100.7", 60}}, "198.51.100.7:80", false},
		"by an alias":                             {"any://example.com", "example.com.", []record{{"example.com.", "cdn.example.net.", 60}, {"cdn.example.net.", "198.51.100.7", 60}}, "198.51.100.7:80", true},
		"the alias was not asked for":             {"any://cdn.example.net", "example.com.", []record{{"example.com.", "cdn.example.net.", 60}, {"cdn.example.net.", "198.51.100.7", 60}}, "198.51.100.7:80", false},
		"a record that has nothing to do with it": {"any://example.com", "example.com.", []record{{"example.net.", "198.51.100.7", 60}}, "198.51.100.7:80", false},
		"the port counts":                         {"tcp://example.com:443", "example.com.", []record{{"example.com.", "198.51.100.7", 60}}, "198.51.100.7:80", false},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := newFilter(t, network.Policy{Default: Deny, Allow: []string{c.rule}})
			f.Learn(lookUp(t, c.asked, c.records...))
			if got := f.Allows(TCP, netip.MustParseAddrPort(c.to)); got != c.want {
				t.Errorf("allowed: %v", got)
			}
		})
	}
}

func TestAllowedNamesEndWithTheirAnswers(t *testing.T) {
	f, clock := newFilter(t, network.Policy{Default: Deny, Allow: []string{"tcp://example.com"}})
	f.Learn(lookUp(t, "example.com.", record{"example.com.", "cdn.example.", 60}, record{"cdn.example.", "198.51.100.7", 300}))
	to := netip.MustParseAddrPort("198.51.100.7:443")
	clock.now = clock.now.Add(59 * time.Second)
	if !f.Allows(TCP, to) {
		t.Error("refused after 59 of 60 seconds")
	}
	clock.now = clock.now.Add(time.Second)
	if f.Allows(TCP, to) {
		t.Error("allowed after the shortest TTL of the chain")
	}
	if !f.AllowsStill(TCP, to) {
		t.Error("a flow that was let out ends with the answer")
	}
	f.Learn(lookUp(t, "example.com.", record{"example.com.", "198.51.100.7", 0}))
	if !f.Allows(TCP, to) {
		t.Error("an answer that is good for 0 seconds is of no use")
	}
}

func TestDeniedNamesDoNotEndWithTheirAnswers(t *testing.T) {
	f, clock := newFilter(t, network.Policy{Deny: []string{"any://*.example.com"}})
	f.Learn(lookUp(t, "www.example.com.", record{"www.example.com.", "198.51.100.7", 1}))
	clock.now = clock.now.Add(time.Hour)
	if f.Allows(UDP, netip.MustParseAddrPort("198.51.100.7:443")) {
		t.Error("allowed after the answer's time")
	}
	if !f.Allows(UDP, netip.MustParseAddrPort("198.51.100.8:443")) {
		t.Error("another address is refused")
	}
}

func TestTheTableOfNamesIsBounded(t *testing.T) {
	f, _ := newFilter(t, network.Policy{Default: Deny, Allow: []string{"any://*.example.com"}})
	last := netip.MustParseAddr("198.51.100.1")
	f.Learn(lookUp(t, "first.example.com.", record{"first.example.com.", "192.0.2.1", 10}))
	for i := range maxHeld {
		name := fmt.Sprintf("n%d.example.com.", i)
		last = last.Next()
		f.Learn(lookUp(t, name, record{name, last.String(), uint32(20 + i%2)}))
	}
	if f.allowed.count != maxHeld {
		t.Errorf("%d addresses are held, want %d", f.allowed.count, maxHeld)
	}
	if f.AllowsStill(TCP, netip.MustParseAddrPort("192.0.2.1:80")) {
		t.Error("what ends first did not make room")
	}
	if !f.Allows(TCP, netip.AddrPortFrom(last, 80)) {
		t.Error("the last is not held")
	}
}

func TestNothingIsHeldWithoutARuleForIt(t *testing.T) {
	f, _ := newFilter(t, network.Policy{Default: Deny, Allow: []string{"any://example.com"}})
	f.Learn(lookUp(t, "example.org.", record{"example.org.", "198.51.100.7", 60}))
	if f.allowed.count+f.denied.count != 0 {
		t.Error("an answer is held that no rule is about")
	}
	// A rule for it that comes later holds from the next answer on.
	if err := f.Set(network.Policy{Default: Deny, Allow: []string{"any://example.org"}}); err != nil {
		t.Fatal(err)
	}
	f.Learn(lookUp(t, "example.org.", record{"example.org.", "198.51.100.7", 60}))
	if !f.Allows(TCP, netip.MustParseAddrPort("198.51.100.7:80")) {
		t.Error("refused")
	}
}

func TestAPolicyThatCannotBeReadChangesNothing(t *testing.T) {
	f, _ := newFilter(t, network.Policy{Default: Deny, Allow: []string{"tcp://198.51.100.7/24:80"}})
	for _, p := range []network.Policy{
		{Default: "maybe"},
		{Allow: []string{"x"}},
		{Deny: []string{"tcp://*", "x"}},
		{Deny: slices.Repeat([]string{"tcp://*"}, MaxRules+1)},
	} {
		if err := f.Set(p); !errors.Is(err, network.ErrPolicy) {
			t.Errorf("%.60v: error %v", p, err)
		}
	}
	got := f.Policy()
	if got.Default != Deny || !slices.Equal(got.Allow, []string{"tcp://198.51.100.0/24:80"}) || got.Deny == nil || len(got.Deny) != 0 {
		t.Errorf("the policy is %+v", got)
	}
}

// Answers come from outside.
func FuzzLearn(f *testing.F) {
	query, msg := lookUp(f, "www.example.com.", record{"www.example.com.", "a.example.", 60}, record{"a.example.", "198.51.100.7", 60}, record{"a.example.", "2001:db8::7", 60})
	f.Add(query, msg)
	f.Fuzz(func(t *testing.T, query, msg []byte) {
		filter, _ := newFilter(t, network.Policy{Default: Deny, Allow: []string{"any://*.com"}})
		filter.Learn(query, msg)
		if filter.allowed.count > len(msg)/16 {
			t.Errorf("%d addresses of %d bytes", filter.allowed.count, len(msg))
		}
	})
}

func BenchmarkAllows(b *testing.B) {
	f, _ := newFilter(b, network.Policy{Default: Deny, Allow: []string{"tcp://198.51.100.0/24:443", "tcp://*.example.com:443", "udp://*:53"}})
	f.Learn(lookUp(b, "www.example.com.", record{"www.example.com.", "192.0.2.7", 60}))
	to := netip.MustParseAddrPort("192.0.2.7:443")
	b.ReportAllocs()
	for b.Loop() {
		if !f.Allows(TCP, to) {
			b.Fatal("refused")
		}
	}
}
