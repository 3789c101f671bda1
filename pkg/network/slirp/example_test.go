package slirp_test

import (
	"fmt"
	"net/netip"

	"github.com/gatekit/gatekit/pkg/network/slirp"
)

// The driver holds nothing until parent.Run runs it, as Options.Network; what the
// namespace will have is known before.
func ExampleNew() {
	network, err := slirp.New(slirp.Options{
		IPv4:         netip.MustParsePrefix("10.41.0.0/16"),
		DisableIPv6:  true,
		HostLoopback: slirp.HostLoopback{All: true}, // 127.0.0.1 of the host, at the gateway's address
		SourceIP:     true,                          // services see their clients' addresses
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	plan := network.Plan()
	fmt.Println(plan.Interface.Name, plan.Interface.MTU, plan.Interface.Addresses, plan.Interface.Gateways, plan.Nameservers)
	// Output: tap0 1500 [10.41.0.100/16] [10.41.0.2] [10.41.0.3]
}
