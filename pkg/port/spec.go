package port

// A port spec as people write it:
//
//	[PARENTIP:]PARENTPORT[-END]:[CHILDIP:]CHILDPORT[-END]/PROTO
//
//	8080:80/tcp                        every host address, both families
//	127.0.0.1:8080:80/tcp              one host address
//	[::1]:8080:[fd00::100]:80/tcp6     IPv6 stands in brackets
//	8000-8009:9000-9009/udp            ranges of the same length: ten forwards
//	127.0.0.1:0:80/tcp                 a free port of the host's
//
// The last part is the protocol, and what is before it is split at the colons
// outside brackets into two to four fields. With three fields the first tells
// which address was left out: it is a port or an address.
//
// PROTO limits the host's side alone: "tcp4" listens on IPv4, and may well
// forward to an IPv6 address in the namespace. A link-local address names an
// interface of its own side, by name or index: fe80::1%eth0.

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// form is what errors show as the form of a spec.
const form = "a port spec is [PARENTIP:]PARENTPORT[-END]:[CHILDIP:]CHILDPORT[-END]/PROTO, as in 127.0.0.1:8080:80/tcp"

// maxPort is the highest port number.
const maxPort = 65535

// protos lists the values of Spec.Proto.
var protos = [...]string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6"}

// Protos returns the values that Spec.Proto may take.
func Protos() []string { return append([]string(nil), protos[:]...) }

// Parse reads a port spec as people write it (see Spec and docs/reference.md)
// and returns the forwards that it asks for: one, or as many as its ranges are
// long, in the order of their ports. Addresses are kept as they were written,
// without brackets. Errors wrap ErrInvalid.
func Parse(s string) ([]Spec, error) { return parseAs(s, Spec{}) }

// ParseReverse is Parse for specs that are reversed.
func ParseReverse(s string) ([]Spec, error) { return parseAs(s, Spec{Reverse: true}) }

func parseAs(s string, spec Spec) ([]Spec, error) {
	specs, err := parse(s, spec)
	if err != nil {
		return nil, fmt.Errorf("%w %q: %w; %s", ErrInvalid, s, err, form)
	}
	return specs, nil
}

// parse fills in spec.
func parse(s string, spec Spec) ([]Spec, error) {
	rest, proto, ok := strings.Cut(s, "/")
	if !ok {
		return nil, fmt.Errorf("the protocol is missing")
	}
	fields, err := splitFields(rest)
	if err != nil {
		return nil, err
	}
	spec.Proto = proto
	var parentPorts, childPorts string
	switch len(fields) {
	case 2:
		parentPorts, childPorts = fields[0], fields[1]
	case 3:
		if looksLikePorts(fields[0]) {
			parentPorts, spec.ChildIP, childPorts = fields[0], fields[1], fields[2]
		} else {
			spec.ParentIP, parentPorts, childPorts = fields[0], fields[1], fields[2]
		}
	case 4:
		spec.ParentIP, parentPorts, spec.ChildIP, childPorts = fields[0], fields[1], fields[2], fields[3]
	default:
		return nil, fmt.Errorf("want 2 to 4 fields between colons, not %d (IPv6 addresses stand in brackets)", len(fields))
	}
	if spec.ParentIP, err = unbracket(spec.ParentIP); err != nil {
		return nil, err
	}
	if spec.ChildIP, err = unbracket(spec.ChildIP); err != nil {
		return nil, err
	}
	return expand(spec, parentPorts, childPorts)
}

// expand returns spec once for each pair of ports in the two ranges.
func expand(spec Spec, parentPorts, childPorts string) ([]Spec, error) {
	parent, parentEnd, err := parsePorts("parent", parentPorts)
	if err != nil {
		return nil, err
	}
	child, childEnd, err := parsePorts("child", childPorts)
	if err != nil {
		return nil, err
	}
	if np, nc := parentEnd-parent+1, childEnd-child+1; np != nc {
		return nil, fmt.Errorf("%d parent ports but %d child ports", np, nc)
	}
	spec.ParentPort, spec.ChildPort = parent, child
	if err := spec.check(); err != nil {
		return nil, err
	}
	if parent == 0 && parentEnd != 0 {
		return nil, fmt.Errorf("parent port 0 cannot start a range")
	}
	specs := make([]Spec, 0, parentEnd-parent+1)
	for ; spec.ParentPort <= parentEnd; spec.ParentPort++ {
		specs = append(specs, spec)
		spec.ChildPort++
	}
	return specs, nil
}

// splitFields splits s at the colons outside brackets. No field is empty.
func splitFields(s string) ([]string, error) {
	var fields []string
	start, bracket := 0, false
	for i := 0; i <= len(s); i++ {
		switch {
		case i < len(s) && s[i] == '[':
			if bracket || i != start {
				return nil, fmt.Errorf("a bracket opens in the middle of a field")
			}
			bracket = true
		case i < len(s) && s[i] == ']':
			if !bracket || i+1 < len(s) && s[i+1] != ':' {
				return nil, fmt.Errorf("a bracket closes in the middle of a field")
			}
			bracket = false
		case i == len(s) || s[i] == ':' && !bracket:
			if i == start {
				return nil, fmt.Errorf("a field is empty")
			}
			fields = append(fields, s[start:i])
			start = i + 1
		}
	}
	if bracket {
		return nil, fmt.Errorf("a bracket does not close")
	}
	return fields, nil
}

// unbracket takes the brackets off an address of one, and refuses brackets
// around anything but IPv6.
func unbracket(field string) (string, error) {
	if !strings.HasPrefix(field, "[") {
		return field, nil
	}
	inner := strings.TrimSuffix(field[1:], "]")
	if !strings.Contains(inner, ":") {
		return "", fmt.Errorf("%s is not an IPv6 address", field)
	}
	return inner, nil
}

// looksLikePorts tells a port or a range from an address.
func looksLikePorts(field string) bool {
	return strings.Trim(field, "0123456789-") == ""
}

// parsePorts reads PORT or FIRST-LAST.
func parsePorts(side, field string) (first, last int, err error) {
	from, to, isRange := strings.Cut(field, "-")
	if first, err = parsePort(side, from); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return first, first, nil
	}
	if last, err = parsePort(side, to); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("%s port range %s runs backwards", side, field)
	}
	return first, last, nil
}

func parsePort(side, text string) (int, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%s port %q is not a number from 0 to %d", side, text, maxPort)
	}
	return int(port), nil
}

// String formats s so that Parse gives it back, but for the word "reverse" before
// one that is.
func (s Spec) String() string {
	var b strings.Builder
	if s.Reverse {
		b.WriteString("reverse ")
	}
	writeSide(&b, s.ParentIP, s.ParentPort)
	b.WriteByte(':')
	writeSide(&b, s.ChildIP, s.ChildPort)
	b.WriteByte('/')
	b.WriteString(s.Proto)
	return b.String()
}

func writeSide(b *strings.Builder, ip string, port int) {
	switch {
	case strings.Contains(ip, ":"):
		b.WriteString("[" + ip + "]:")
	case ip != "":
		b.WriteString(ip + ":")
	}
	b.WriteString(strconv.Itoa(port))
}

// Validate says whether s can work on some host: its protocol, its ports and
// its addresses are well formed and fit each other. Host names are refused, so
// that nothing has to be resolved. The error wraps ErrInvalid.
func (s Spec) Validate() error {
	if err := s.check(); err != nil {
		return fmt.Errorf("%w %q: %w", ErrInvalid, s.String(), err)
	}
	return nil
}

func (s Spec) check() error {
	if _, _, ok := s.proto(); !ok {
		return fmt.Errorf("protocol %q is none of %s", s.Proto, strings.Join(protos[:], ", "))
	}
	parent, err := checkAddr("parent", s.ParentIP)
	if err != nil {
		return err
	}
	child, err := checkAddr("child", s.ChildIP)
	if err != nil {
		return err
	}
	listens := parent
	if s.Reverse {
		listens = child
	}
	switch _, family, _ := s.proto(); {
	case family == IPv4 && listens.Is6():
		return fmt.Errorf("%s cannot listen on the IPv6 address %s", s.Proto, listens)
	case family == IPv6 && listens.Is4():
		return fmt.Errorf("%s cannot listen on the IPv4 address %s", s.Proto, listens)
	case s.Reverse && parent.IsUnspecified():
		return fmt.Errorf("%s is every address of the host, not one to connect to", s.ParentIP)
	case s.Reverse && s.ParentPort == 0:
		return fmt.Errorf("parent port 0 is none to connect to")
	}
	if s.ParentPort < 0 || s.ParentPort > maxPort {
		return fmt.Errorf("parent port %d is not from 0 to %d", s.ParentPort, maxPort)
	}
	if s.ChildPort < 1 || s.ChildPort > maxPort {
		return fmt.Errorf("child port %d is not from 1 to %d", s.ChildPort, maxPort)
	}
	return nil
}

// checkAddr reads an address of a spec; an empty one is the zero Addr.
func checkAddr(side, text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return addr, fmt.Errorf("%s address %q is not an IP address (names are not resolved)", side, text)
	case addr.Is4In6():
		return addr, fmt.Errorf("%s address %s is IPv4 in IPv6; write it as %s", side, text, addr.Unmap())
	case addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return addr, fmt.Errorf("%s address %s is not the address of one host", side, text)
	case addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "":
		return addr, fmt.Errorf("%s address %s is link-local and needs its interface, as in %s%%eth0", side, text, text)
	case addr.Zone() != "" && !addr.IsLinkLocalUnicast():
		return addr, fmt.Errorf("%s address %s is not link-local and takes no interface", side, text)
	case strings.ContainsFunc(addr.Zone(), notInZone):
		return addr, fmt.Errorf("%s address %q names an impossible interface", side, text)
	}
	return addr, nil
}

// notInZone reports whether r cannot be in the name of an interface, or could
// not be read back from a spec.
func notInZone(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("[]/:%", r) }
