// Package policy decides which flows may leave the namespace. It knows rules and
// the names of addresses; who asks, and what becomes of a flow that may not leave,
// is the network's.
//
// A rule is PROTO://TARGET[:PORTS]:
//
//	PROTO   tcp, udp, icmp (echo), or any (also written *)
//	TARGET  an address or a network: 198.51.100.7, 198.51.100.0/24,
//	        [2001:db8::7], [2001:db8::/32]
//	        a DNS name, or all names below one: example.com, *.example.com
//	        @host: all addresses of the host itself, now: those of its
//	        interfaces, and of its routes of type local
//	        *: everything
//	PORTS   ports and ranges: 443 or 80,443,8000-8010; none are all. A rule of
//	        any with ports is one for tcp and udp
//
// Deny rules go first: a flow that one of them matches is refused, whatever
// others say. Then allow rules: a flow that one matches leaves. For all else the
// default decides. The order of rules does not matter.
//
// Names are held to addresses. A rule with a name matches a flow to an address
// that our DNS answered the name with: in an allow rule for as long as the answer
// is good (its TTL, 5 seconds at least and a day at most), in a deny rule for as
// long as there is room, so that waiting does not get around it. So an allowed
// name opens no address that the guest did not look up, and what was not looked
// up in our DNS has no name: where names are to be a wall, the default is deny.
// Answers are looked at only while a rule has their name.
package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gatekit/gatekit/pkg/network"
)

// The values of network.Policy's Default.
const (
	Allow = "allow"
	Deny  = "deny"
)

// MaxRules is how many rules a policy may have.
const MaxRules = 4096

// Filter is a policy that is in force. It is safe for concurrent use.
type Filter struct {
	rules           atomic.Pointer[rules]
	allowed, denied names // by rules of either kind
	now             func() time.Time
	isHost          func(netip.Addr) (bool, error)
}

// rules are a policy that was read. They do not change.
type rules struct {
	deny        []rule
	allow       []rule
	allowByRest bool // the default
	hasNames    bool
}

// New returns the filter for a policy. The zero policy allows everything. The
// error wraps network.ErrPolicy.
func New(p network.Policy) (*Filter, error) {
	f := &Filter{now: time.Now, isHost: isHost}
	if err := f.Set(p); err != nil {
		return nil, err
	}
	return f, nil
}

// Set puts another policy in force, or none of it when there is an error, which
// wraps network.ErrPolicy.
func (f *Filter) Set(p network.Policy) error {
	r := &rules{}
	switch p.Default {
	case Allow, "":
		r.allowByRest = true
	case Deny:
	default:
		return fmt.Errorf("%w: the default is %q; want allow or deny", network.ErrPolicy, p.Default)
	}
	if n := len(p.Allow) + len(p.Deny); n > MaxRules {
		return fmt.Errorf("%w: %d rules; at most %d are taken", network.ErrPolicy, n, MaxRules)
	}
	for _, list := range []struct {
		text  []string
		rules *[]rule
	}{{p.Allow, &r.allow}, {p.Deny, &r.deny}} {
		for _, s := range list.text {
			one, err := parseRule(s)
			if err != nil {
				return err
			}
			r.hasNames = r.hasNames || one.name != ""
			*list.rules = append(*list.rules, one)
		}
	}
	f.rules.Store(r)
	return nil
}

// Policy is the policy in force, with its rules as they are understood: masked
// networks, names in lower case.
func (f *Filter) Policy() network.Policy {
	r := f.rules.Load()
	p := network.Policy{Default: Deny, Allow: texts(r.allow), Deny: texts(r.deny)}
	if r.allowByRest {
		p.Default = Allow
	}
	return p
}

func texts(rules []rule) []string {
	out := make([]string, len(rules))
	for i, r := range rules {
		out[i] = r.String()
	}
	return out
}

// Allows says whether a new flow may leave, to an address as the namespace knows
// it. The port of an ICMP flow is not looked at.
func (f *Filter) Allows(proto Proto, to netip.AddrPort) bool { return f.allows(proto, to, f.now()) }

// AllowsStill says the same of a flow that was let out before, under a policy
// that may be another now: names that it was let out by do not end with their
// answers.
func (f *Filter) AllowsStill(proto Proto, to netip.AddrPort) bool {
	return f.allows(proto, to, time.Time{})
}

func (f *Filter) allows(proto Proto, to netip.AddrPort, now time.Time) bool {
	r := f.rules.Load()
	for i := range r.deny {
		rule := &r.deny[i]
		if !rule.covers(proto, to.Port()) {
			continue
		}
		if f.matches(rule, to.Addr(), &f.denied, time.Time{}) {
			return false
		}
		if a := translated(to.Addr()); a.IsValid() && f.matches(rule, a, &f.denied, time.Time{}) {
			return false
		}
	}
	for i := range r.allow {
		if rule := &r.allow[i]; rule.covers(proto, to.Port()) && f.matches(rule, to.Addr(), &f.allowed, now) {
			return true
		}
	}
	return r.allowByRest
}

// matches says whether an address is the target of a rule. Where that cannot be told
// the answer is the one that lets less out.
func (f *Filter) matches(r *rule, addr netip.Addr, held *names, now time.Time) bool {
	switch {
	case r.prefix.IsValid():
		return r.prefix.Contains(addr)
	case r.host:
		is, err := f.isHost(addr)
		return is || err != nil && held == &f.denied
	case r.name != "":
		return held.has(addr, now, r.coversName)
	}
	return true
}

// nat64 is the prefix under which routers translate IPv6 to IPv4 (RFC 6052, 2.1).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// translated is the IPv4 address that a router would make of an address, so that
// a deny rule for it holds. It is invalid for all others.
func translated(a netip.Addr) netip.Addr {
	if !nat64.Contains(a) {
		return netip.Addr{}
	}
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

// Learn takes note of an answer of our DNS to a query, both as bytes.
func (f *Filter) Learn(query, msg []byte) {
	r := f.rules.Load()
	if !r.hasNames {
		return
	}
	a, ok := readAnswer(query, msg)
	if !ok {
		return
	}
	until := f.now().Add(max(minHold, a.ttl))
	for _, kind := range []struct {
		rules []rule
		held  *names
	}{{r.allow, &f.allowed}, {r.deny, &f.denied}} {
		if !slices.ContainsFunc(kind.rules, func(r rule) bool { return r.coversName(a.name) }) {
			continue
		}
		for _, addr := range a.addrs {
			kind.held.hold(addr, strings.Clone(a.name), until)
		}
	}
}
