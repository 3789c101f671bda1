package auto

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// firstEphemeral is the lowest port that the kernel picks for clients, in a new
// network namespace (net.ipv4.ip_local_port_range, ip-sysctl.rst).
const firstEphemeral = 32768

// listening returns what listens in the namespace by other sockets than own, and the
// ChildIP of each.
func (p *Publisher) listening(own map[socket]bool) (map[service]string, error) {
	found := map[service]string{}
	for _, kind := range [...]struct {
		transport string
		query     linux.InetQuery
	}{
		{"tcp", linux.InetQuery{Protocol: unix.IPPROTO_TCP, States: linux.StateListen}},
		{"udp", linux.InetQuery{Protocol: unix.IPPROTO_UDP, States: linux.StateClose}},
	} {
		for _, family := range [...]int{unix.AF_INET, unix.AF_INET6} {
			kind.query.Family = family
			sockets, err := p.diag.Inet(kind.query)
			if err != nil {
				return nil, err
			}
			for _, s := range sockets {
				if !own[socket{kind.transport, s.Local}] {
					note(found, kind.transport, s.Local)
				}
			}
		}
	}
	return found, nil
}

// note adds a socket. Of several on one port, one that is reached by loopback
// counts, else the one with the lowest address: a choice that does not change
// from one look to the next.
func note(found map[service]string, transport string, local netip.AddrPort) {
	s := service{transport, int(local.Port())}
	if s.port == 0 || transport == "udp" && s.port >= firstEphemeral {
		return
	}
	ip, ok := childIP(local.Addr())
	if !ok {
		return
	}
	if other, there := found[s]; !there || ip < other {
		found[s] = ip
	}
}

// childIP is the ChildIP of a forward to a service on addr: none where the usual
// loopback addresses reach it. It reports whether addr counts.
func childIP(addr netip.Addr) (ip string, ok bool) {
	switch {
	case addr.IsMulticast() || addr.IsLinkLocalUnicast() && addr.Is6():
		return "", false
	case addr.IsUnspecified(), addr == netip.AddrFrom4([4]byte{127, 0, 0, 1}), addr == netip.IPv6Loopback():
		return "", true
	}
	return addr.String(), true
}
