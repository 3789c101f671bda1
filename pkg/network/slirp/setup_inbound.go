package slirp

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network"
)

// OpenLoopback opens the way into the namespace by its loopback interface, and has
// the kernel take what comes there and send the answers out on the interface of the
// plan. It runs inside the namespaces, as Setup does, for the parent half's first
// question for a packet socket (Network.UseSockets). It fails where packet sockets
// are forbidden by a sandbox, or /proc/sys is read-only, as in a container.
func OpenLoopback(plan network.Plan) (*os.File, error) {
	if plan.Interface == nil || !plan.SourceIP {
		return nil, unix.EPERM
	}
	if err := allowLoopbackRoutes(plan.Interface.Name); err != nil {
		return nil, err
	}
	return linux.OpenPacketSender("lo")
}

// OpenTally opens the i-th of the files in which the kernel tells what it has counted in
// the network namespace of the calling thread: /proc/net/snmp, netstat and snmp6. It runs
// inside the namespaces, for the parent half's question for files of AF_UNSPEC
// (Network.UseSockets). A file goes on telling of that namespace, whoever reads it.
func OpenTally(i int) (*os.File, error) {
	if i >= tallyFiles {
		return nil, unix.EINVAL
	}
	return os.Open("/proc/thread-self/net/" + [tallyFiles]string{"snmp", "netstat", "snmp6"}[i])
}

// allowLoopbackRoutes sets what IPv4 needs in the network namespace of the calling
// thread, which is the one that /proc/sys/net shows (ip-sysctl in the kernel's
// Documentation/networking). IPv6 needs nothing.
//
//	route_localnet  on lo, to take a packet for 127.0.0.1 that was not routed
//	                there; on the interface, to send one from 127.0.0.1. Nobody
//	                but us is on that link.
//	rp_filter       2, loose, on lo: a strict one, which some hosts hand down to
//	                new namespaces and some programs set, drops what came in by lo
//	                and would be answered by the interface. The kernel takes the
//	                larger one of lo's and that of all, and loose is the largest.
func allowLoopbackRoutes(ifname string) error {
	return errors.Join(
		setIPv4Conf("lo", "route_localnet", "1"),
		setIPv4Conf(ifname, "route_localnet", "1"),
		setIPv4Conf("lo", "rp_filter", "2"))
}

// setIPv4Conf sets what holds for an interface.
func setIPv4Conf(ifname, name, value string) error {
	return os.WriteFile("/proc/sys/net/ipv4/conf/"+ifname+"/"+name, []byte(value), 0)
}
