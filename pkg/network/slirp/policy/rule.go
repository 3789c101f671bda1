package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/gatekit/gatekit/pkg/network"
)

// Proto is the protocol of a flow. In a rule, Any is every protocol.
type Proto uint8

// The protocols. ICMP stands for echo over both families.
const (
	Any Proto = iota
	TCP
	UDP
	ICMP
)

// protos are the names of the protocols, by value.
var protos = [...]string{Any: "any", TCP: "tcp", UDP: "udp", ICMP: "icmp"}

// String is the name that rules have for a protocol.
func (p Proto) String() string { return protos[p] }

// hostTarget is the target that stands for the addresses of the host itself.
const hostTarget = "@host"

// rule is one rule. Of the targets, one is set; none of them is everything.
type rule struct {
	proto  Proto
	prefix netip.Prefix
	name   string // in lower case, without the last dot
	below  bool   // the names below name, and not name itself
	host   bool
	ports  []portRange // none are all
}

// portRange holds the ports from first to last.
type portRange struct{ first, last uint16 }

// parseRule reads a rule; the package comment has the grammar.
func parseRule(s string) (rule, error) {
	bad := func(why string) (rule, error) {
		return rule{}, fmt.Errorf("%w: rule %q: %s; want PROTO://TARGET[:PORTS], such as tcp://*.example.com:443 or any://[2001:db8::/32]", network.ErrPolicy, s, why)
	}
	proto, rest, ok := strings.Cut(s, "://")
	if !ok {
		return bad("it has no ://")
	}
	var r rule
	if proto == "*" {
		proto = protos[Any]
	}
	i := slices.Index(protos[:], strings.ToLower(proto))
	if i < 0 {
		return bad(fmt.Sprintf("%q is no protocol: it is tcp, udp, icmp or any", proto))
	}
	r.proto = Proto(i)
	target, ports, hasPorts, err := splitTarget(rest)
	if err == nil {
		err = r.setTarget(target)
	}
	if err == nil && hasPorts {
		err = r.setPorts(ports)
	}
	if err != nil {
		return bad(err.Error())
	}
	return r, nil
}

// splitTarget takes the ports off. An IPv6 address is in brackets, with the
// length of its prefix in them or after them.
func splitTarget(s string) (target, ports string, hasPorts bool, err error) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		address, after, ok := strings.Cut(inner, "]")
		if !ok {
			return "", "", false, errors.New("] is missing")
		}
		bits, ports, hasPorts := strings.Cut(after, ":")
		if bits != "" && bits[0] != '/' || !strings.Contains(address, ":") {
			return "", "", false, errors.New("brackets are for an IPv6 address or network")
		}
		return address + bits, ports, hasPorts, nil
	}
	target, ports, hasPorts = strings.Cut(s, ":")
	if strings.Contains(ports, ":") {
		return "", "", false, errors.New("an IPv6 address stands in brackets")
	}
	return target, ports, hasPorts, nil
}

// setTarget reads *, @host, an address, a network or a name.
func (r *rule) setTarget(s string) error {
	switch s {
	case "":
		return errors.New("the target is missing")
	case "*":
		return nil
	case hostTarget:
		r.host = true
		return nil
	}
	if prefix, ok := parsePrefix(s); ok {
		if prefix.Addr().Is4In6() {
			return errors.New("write an IPv4-mapped address as IPv4")
		}
		r.prefix = prefix.Masked()
		return nil
	}
	if strings.Contains(s, "/") {
		return fmt.Errorf("%q is no network", s)
	}
	name, below := strings.CutPrefix(strings.ToLower(s), "*.")
	name = strings.TrimSuffix(name, ".")
	if !validName(name) {
		return fmt.Errorf("%q is no address, network or DNS name", s)
	}
	r.name, r.below = name, below
	return nil
}

// parsePrefix reads a network, or an address as a network of one.
func parsePrefix(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p, err == nil
}

// validName says whether s is a name of letters, digits, "-" and "_", and not a
// mistyped address: the last label is not a number (RFC 1123, 2.1; RFC 3696, 2).
func validName(s string) bool {
	if len(s) > 253 {
		return false
	}
	labels := strings.Split(s, ".")
	for _, label := range labels {
		if len(label) == 0 || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

// setPorts reads ports and ranges of ports, separated by commas.
func (r *rule) setPorts(s string) error {
	if r.proto == ICMP {
		return errors.New("icmp has no ports")
	}
	for field := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(field, "-")
		if !isRange {
			high = low
		}
		first, err1 := strconv.ParseUint(low, 10, 16)
		last, err2 := strconv.ParseUint(high, 10, 16)
		if err1 != nil || err2 != nil || first == 0 || first > last {
			return fmt.Errorf("%q is neither a port nor a range of ports", field)
		}
		r.ports = append(r.ports, portRange{uint16(first), uint16(last)})
	}
	return nil
}

// String formats r so that parseRule reads it.
func (r rule) String() string {
	var b strings.Builder
	b.WriteString(r.proto.String() + "://")
	switch {
	case r.prefix.IsValid():
		text := r.prefix.String()
		if r.prefix.IsSingleIP() {
			text = r.prefix.Addr().String()
		}
		if r.prefix.Addr().Is6() {
			text = "[" + text + "]"
		}
		b.WriteString(text)
	case r.host:
		b.WriteString(hostTarget)
	case r.below:
		b.WriteString("*." + r.name)
	case r.name != "":
		b.WriteString(r.name)
	default:
		b.WriteByte('*')
	}
	separator := byte(':')
	for _, p := range r.ports {
		b.WriteByte(separator)
		separator = ','
		b.WriteString(strconv.Itoa(int(p.first)))
		if p.last != p.first {
			b.WriteString("-" + strconv.Itoa(int(p.last)))
		}
	}
	return b.String()
}

// covers says whether a rule is about a protocol and port at all. A rule with
// ports is about nothing that has none.
func (r *rule) covers(proto Proto, port uint16) bool {
	if r.proto != Any && r.proto != proto {
		return false
	}
	if len(r.ports) == 0 {
		return true
	}
	return proto != ICMP && slices.ContainsFunc(r.ports, func(p portRange) bool {
		return p.first <= port && port <= p.last
	})
}

// coversName says whether a rule is about a name, which is in lower case.
func (r *rule) coversName(name string) bool {
	if r.name == "" {
		return false
	}
	if !r.below {
		return name == r.name
	}
	rest, ok := strings.CutSuffix(name, r.name)
	return ok && strings.HasSuffix(rest, ".")
}
