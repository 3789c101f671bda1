package slirp

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
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
func readResolvConf(path string) (resolvConf, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return resolvConf{}, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return resolvConf{}, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxResolvConfSize))
	if err != nil {
		return resolvConf{}, nil, err
	}
	return parseResolvConf(data), info, nil
}

// resolvConfCheckInterval is how long an answer of upstreamSource is good. The
// host's file is looked at no more often, and only when a query comes.
const resolvConfCheckInterval = time.Second

// upstreamSource knows the DNS servers to ask: a fixed list, or those of the
// host's resolv.conf, which is read again when the file has changed.
type upstreamSource struct {
	fixed []netip.AddrPort
	path  string

	mu      sync.Mutex // guards all below
	checked time.Time
	info    os.FileInfo
	current []netip.AddrPort
}

// upstreams returns the servers in the order in which to ask them. The slice is
// not to be changed. A file that vanished leaves the servers as they were.
func (u *upstreamSource) upstreams() []netip.AddrPort {
	if len(u.fixed) > 0 {
		return u.fixed
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	if u.current != nil && now.Sub(u.checked) < resolvConfCheckInterval {
		return u.current
	}
	u.checked = now
	info, err := os.Stat(u.path)
	if err == nil && u.info != nil && sameVersion(info, u.info) {
		return u.current
	}
	conf, info, err := readResolvConf(u.path)
	switch {
	case err == nil:
		u.info, u.current = info, conf.upstreams
	case u.current == nil:
		u.current = parseResolvConf(nil).upstreams
	}
	return u.current
}

// sameVersion says whether two looks at a file saw the same content.
func sameVersion(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
