package slirp

import (
	"fmt"
	"strconv"
	"strings"
)

// HostLoopback says which ports of the host's 127.0.0.1 and ::1 the namespace
// reaches at the gateway's address. The zero value opens none.
type HostLoopback struct {
	// All opens every port. False opens those of ParseHostLoopback.
	All bool

	ports []portRange
}

// portRange holds the ports from first to last.
type portRange struct{ first, last uint16 }

// ParseHostLoopback reads "none", "all", or ports and ranges of ports such as
// "5432,8000-8010". The error wraps ErrUsage.
func ParseHostLoopback(s string) (HostLoopback, error) {
	switch s {
	case "", "none":
		return HostLoopback{}, nil
	case "all":
		return HostLoopback{All: true}, nil
	}
	var h HostLoopback
	for field := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(field, "-")
		if !isRange {
			high = low
		}
		first, err1 := parsePort(low)
		last, err2 := parsePort(high)
		if err1 != nil || err2 != nil || first > last {
			return HostLoopback{}, fmt.Errorf("%w: host loopback %q: %q is neither a port nor a range of ports; use none, all, or ports such as 5432,8000-8010", ErrUsage, s, field)
		}
		h.ports = append(h.ports, portRange{first, last})
	}
	return h, nil
}

// parsePort reads a port from 1 to 65535.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

// String formats h so that ParseHostLoopback reads it.
func (h HostLoopback) String() string {
	switch {
	case h.All:
		return "all"
	case len(h.ports) == 0:
		return "none"
	}
	var b strings.Builder
	for i, r := range h.ports {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(r.first)))
		if r.last != r.first {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(r.last)))
		}
	}
	return b.String()
}

// allows says whether a port is open.
func (h HostLoopback) allows(port uint16) bool {
	if h.All {
		return true
	}
	for _, r := range h.ports {
		if r.first <= port && port <= r.last {
			return true
		}
	}
	return false
}
