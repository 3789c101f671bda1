package slirp

import (
	"net"
	"strconv"
)

// zoneID returns the index of an interface for the zone of an IPv6 address
// (RFC 4007), 0 for none.
func zoneID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	nic, err := net.InterfaceByName(zone)
	if err != nil {
		return 0
	}
	return uint32(nic.Index)
}
