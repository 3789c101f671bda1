package slirp

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
)

// resolvConfPath is the host's resolver configuration (resolv.conf(5)).
const resolvConfPath = "/etc/resolv.conf"

// Limits of what is read from a resolv.conf.
const (
	maxResolvConfSize = 64 << 10
	maxUpstreams      = 8
)

const dnsPort = 53

// resolvConf is what we use of a resolv.conf.
type resolvConf struct {
	upstreams []netip.AddrPort
	search    []string
	options   []string
}

// parseResolvConf reads a resolv.conf as resolv.conf(5) has it: the last of
// "search" and "domain" wins, options add up, and lines that make no sense are
// passed over. Without a name server it is the one on the host's loopback, as
// in the C library.
func parseResolvConf(data []byte) resolvConf {
	var c resolvConf
	for line := range bytes.Lines(data) {
		if i := bytes.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil && len(c.upstreams) < maxUpstreams {
				c.upstreams = append(c.upstreams, netip.AddrPortFrom(a.Unmap(), dnsPort))
			}
		case "search", "domain":
			c.search = fields[1:]
		case "options":
			c.options = append(c.options, fields[1:]...)
		}
	}
	if len(c.upstreams) == 0 {
		c.upstreams = []netip.AddrPort{netip.AddrPortFrom(loopbackIPv4, dnsPort)}
	}
	return c
}

// readResolvConf reads a file with parseResolvConf.
func readResolvConf(path string) (resolvConf, error) {
	f, err := os.Open(path)
	if err != nil {
		return resolvConf{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxResolvConfSize))
	if err == nil && len(data) == 0 {
		err = errEmpty
	}
	if err != nil {
		return resolvConf{}, err
	}
	return parseResolvConf(data), nil
}

// errEmpty is a file of which nothing is there yet: it is just being written.
var errEmpty = errors.New("the file is empty")
