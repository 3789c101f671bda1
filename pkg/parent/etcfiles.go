package parent

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/gatekit/gatekit/pkg/network"
)

// The files resolv.conf and hosts of the state dir, which the child binds over
// those in /etc.

// HostEntry is a name with an address, for /etc/hosts (hosts(5)).
type HostEntry struct {
	Name string
	IP   netip.Addr
}

// ParseAddHost parses NAME:IP, where an IPv6 address may stand in brackets and
// has no zone.
func ParseAddHost(s string) (HostEntry, error) {
	name, ip, found := strings.Cut(s, ":")
	if !found {
		return HostEntry{}, fmt.Errorf("%q is not NAME:IP, such as db.example:192.0.2.7", s)
	}
	if !hostname(name) {
		return HostEntry{}, fmt.Errorf("%q in %q is not a host name", name, s)
	}
	bare := ip
	if strings.HasPrefix(ip, "[") && strings.HasSuffix(ip, "]") {
		bare = ip[1 : len(ip)-1]
	}
	addr, err := netip.ParseAddr(bare)
	// A zone names an interface of the host.
	if err != nil || addr.Zone() != "" || (bare != ip && !addr.Is6()) {
		return HostEntry{}, fmt.Errorf("%q in %q is not an IP address", ip, s)
	}
	return HostEntry{name, addr}, nil
}

// hostname says whether name can stand in /etc/hosts: labels of letters, digits,
// "-" and, as many use it, "_" (RFC 1123, section 2.1), at most 253 bytes in all.
func hostname(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return true
}

// hostsFile is the host's /etc/hosts with the name of this machine on both
// loopback addresses. Extra entries come first, as the first line that has a
// name wins.
func hostsFile(hostCopy []byte, machine string, extra []HostEntry) []byte {
	var b bytes.Buffer
	for _, e := range extra {
		fmt.Fprintf(&b, "%s %s\n", e.IP, e.Name)
	}
	b.Write(hostCopy)
	if len(hostCopy) > 0 && !bytes.HasSuffix(hostCopy, []byte("\n")) {
		b.WriteByte('\n')
	}
	if hostname(machine) { // Linux allows others, which hosts(5) cannot hold
		fmt.Fprintf(&b, "127.0.0.1 %s\n::1 %s\n", machine, machine)
	}
	return b.Bytes()
}

// rewrite changes the content of a file in place, because it is bound over another
// one. Who reads it meanwhile never finds it empty.
func rewrite(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Truncate(int64(len(content)))
	}
	return errors.Join(err, f.Close())
}

// resolvConf is the resolv.conf(5) that a plan asks for.
func resolvConf(plan network.Plan) []byte {
	var b bytes.Buffer
	if len(plan.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(plan.Search, " "))
	}
	for _, ns := range plan.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", ns)
	}
	if len(plan.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(plan.Options, " "))
	}
	return b.Bytes()
}

// hostsPath is the host's own hosts file.
const hostsPath = "/etc/hosts"

// writeEtcFiles writes the state dir's resolv.conf and hosts.
func (g *gate) writeEtcFiles() error {
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	host, err := os.ReadFile(hostsPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(g.dir.Hosts(), hostsFile(host, hostname, g.o.AddHosts), 0o644); err != nil {
		return err
	}
	plan := g.o.Network.Plan()
	if len(plan.Nameservers) == 0 && !plan.DHCP {
		return nil
	}
	return os.WriteFile(g.dir.ResolvConf(), resolvConf(plan), 0o644)
}
