// Package slirp is the user-mode network: the engine on the host that speaks,
// to the TAP in the network namespace, for the gateway, the DNS server and all
// of the outside, and the child half that makes and configures that TAP.
//
//	namespace        |  host
//	                 |
//	command          |            +-- tcpForwarder -- relay ------------------+
//	   |             |            |                                           |
//	kernel -- TAP ---|-- device --+                                           +-- host sockets
//	                 |   link     |                                           |   (non-blocking,
//	                 |  inspector +-- udpRelay, echoRelay --------------------+    epoll: loop)
//	                 |            |                                           |
//	                 |            +-- dnsForwarder ---------------------------+
//	                 |            +-- gVisor stack: ARP, NDP, the gateway's ICMP, reassembly
//	                 |            +-- guests: DHCP, router advertisements
//	                 |            |
//	       lo  <-----|------------+-- inbound <------------------------------ clients of forwards
//
// A frame that the inspector (frame.go) lets pass goes to the stack or, when it
// holds a TCP segment, a whole UDP datagram or an echo request, straight to the relay for
// it. The end of a TCP connection of the namespace is a tcp.Conn. Machines
// that are bridged to the interface are told by guests (guests.go) what the child was
// given. What the host's side cannot do is told by ICMP errors (unreachable.go). Where a flow goes is
// decided by egress (egress.go), once. The other way, flows are opened into the
// namespace in the names of clients (inbound.go), for a port driver.
//
// It is fast at an MTU of 1500 because frames are not of that size: the TAP has
// a virtio-net header, so that both kernels' TCP and ours exchange segments of
// up to 64 KiB with checksums that nobody computes. Bytes are copied by the
// kernel only, between its sockets and the frames.
//
// What belongs here is the network; publishing ports into the namespace is the
// port drivers'.
package slirp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/network/slirp/policy"
	"github.com/gatekit/gatekit/pkg/port"
)

// DriverName is the driver's name in a network.Plan and in GET /v1/info.
const DriverName = "slirp"

// Defaults and limits of Options.
const (
	DefaultMTU    = 1500
	MinMTU        = 576   // every IPv4 host takes this much (RFC 791)
	MaxMTU        = 65520 // the largest multiple of 16 that leaves room for headers
	DefaultIfname = "tap0"
)

// minIPv6MTU is the least that a link with IPv6 must carry (RFC 8200, 5).
const minIPv6MTU = 1280

// Options configure New.
type Options struct {
	// IPv4 and IPv6 are the networks of the namespace. The child has host .100
	// (::100), the gateway .2 (::2) and the DNS server .3 (::3). The zero values
	// are 10.0.2.0/24 and fd67:6174:656b::/64, or the next that the host is not
	// in itself (FreeNetworks).
	IPv4, IPv6 netip.Prefix

	// DisableIPv6 leaves IPv6 out. False is dual stack, if the MTU is at least
	// 1280, which IPv6 needs.
	DisableIPv6 bool

	// MTU of the interface in bytes, 576 to 65520. 0 is 1500.
	MTU int

	// Ifname is the name of the interface in the namespace. Empty is "tap0".
	Ifname string

	// HostLoopback says which ports of the host's loopback the gateway's address
	// reaches. The zero value is none.
	HostLoopback HostLoopback

	// Upstreams are the DNS servers that are asked, in order. Empty follows the
	// host's /etc/resolv.conf, also when it changes.
	Upstreams []netip.AddrPort

	// Search and Options are for the namespace's resolv.conf. When empty they are
	// the host's, also when that changes. "rotate", "timeout" and "attempts" are
	// for how the upstreams are asked, too.
	Search, Options []string

	// Policy says what the namespace may reach. The zero value is everything.
	Policy network.Policy

	// OutboundAddrs are the source of what leaves the host, at most one of each
	// family; what goes to the host's loopback has its own. Empty leaves it to the
	// host's routing.
	OutboundAddrs []netip.Addr

	// OutboundInterface is the host's interface by which that leaves. Empty leaves
	// it to the host's routing.
	OutboundInterface string

	// SourceIP prepares the namespace for flows in the names of clients
	// (Network.Connect). False leaves the namespace as it is, and opens none.
	SourceIP bool

	// UDPFiltering says which datagrams from outside reach a socket that has sent.
	// The zero value lets in what comes from where it has sent to.
	UDPFiltering Filtering

	// Logger takes what the engine has to say. Nil discards it.
	Logger *slog.Logger
}

// Network is the slirp driver. It implements network.Driver.
type Network struct {
	plan         network.Plan
	subnets      [2]subnet // IPv4 and IPv6
	hostLoopback HostLoopback
	leads        leads
	filtering    Filtering
	source       *upstreamSource
	policy       *policy.Filter
	outbound     outbound
	childMAC     macAddr      // of the interface
	sockets      port.Sockets // of the namespace; may be nil
	log          *slog.Logger
	clock        tcpip.Clock              // of TCP; nil is the machine's
	engine       atomic.Pointer[engine]   // nil but while Run serves
	inbound      atomic.Pointer[inbound]  // nil but while Run serves
	last         atomic.Pointer[Counters] // of the end; nil until Run returns
}

var _ network.Driver = (*Network)(nil)

// New checks the options and returns the driver, which holds nothing until Run.
// The error wraps ErrUsage when the options can never work.
func New(o Options) (*Network, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	filter, err := policy.New(o.Policy)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	out, err := newOutbound(o.OutboundAddrs, o.OutboundInterface)
	if err != nil {
		return nil, err
	}
	n := &Network{
		hostLoopback: o.HostLoopback,
		filtering:    o.UDPFiltering,
		source:       newUpstreamSource(o, resolvConfPath),
		policy:       filter,
		outbound:     out,
		log:          o.Logger,
	}
	n.childMAC = newChildMAC()
	nic := &network.Interface{Name: o.Ifname, MTU: o.MTU, HardwareAddr: net.HardwareAddr(n.childMAC[:]).String()}
	n.plan = network.Plan{
		Driver:    DriverName,
		Namespace: true,
		Interface: nic,
		SourceIP:  o.SourceIP,
	}
	for i, prefix := range []netip.Prefix{o.IPv4, o.IPv6} {
		if i == 1 && o.DisableIPv6 {
			continue
		}
		s, err := newSubnet(prefix)
		if err != nil {
			return nil, err
		}
		n.subnets[i] = s
		nic.Addresses = append(nic.Addresses, netip.PrefixFrom(s.child, prefix.Bits()))
		nic.Gateways = append(nic.Gateways, s.gateway)
		n.plan.Nameservers = append(n.plan.Nameservers, s.dns)
	}
	return n, nil
}

// complete puts the defaults in and checks what needs no other look.
func (o *Options) complete() error {
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	if o.MTU < MinMTU || o.MTU > MaxMTU {
		return fmt.Errorf("%w: MTU %d: it must be between %d and %d", ErrUsage, o.MTU, MinMTU, MaxMTU)
	}
	if o.MTU < minIPv6MTU {
		if o.IPv6.IsValid() && !o.DisableIPv6 {
			return fmt.Errorf("%w: MTU %d: IPv6 needs %d", ErrUsage, o.MTU, minIPv6MTU)
		}
		o.DisableIPv6 = true
	}
	if o.Ifname == "" {
		o.Ifname = DefaultIfname
	}
	if err := checkIfname(o.Ifname); err != nil {
		return err
	}
	if o.IPv4.IsValid() && !o.IPv4.Addr().Is4() {
		return fmt.Errorf("%w: %v is not an IPv4 network", ErrUsage, o.IPv4)
	}
	if o.IPv6.IsValid() && !o.IPv6.Addr().Is6() {
		return fmt.Errorf("%w: %v is not an IPv6 network", ErrUsage, o.IPv6)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.completeNetworks()
	return nil
}

// completeNetworks picks the networks that were not given.
func (o *Options) completeNetworks() {
	if o.IPv4.IsValid() && (o.IPv6.IsValid() || o.DisableIPv6) {
		return
	}
	var host []netip.Addr
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		o.Logger.Warn("cannot list the host's addresses; the default networks may overlap with its own", "error", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			host = append(host, p.Addr())
		}
	}
	ipv4, ipv6 := FreeNetworks(host)
	if !o.IPv4.IsValid() {
		o.IPv4 = ipv4
	}
	if !o.IPv6.IsValid() {
		o.IPv6 = ipv6
	}
}

// checkIfname applies the kernel's rules (dev_valid_name; all and default are taken
// by the directories of settings for all interfaces, devinet_sysctl_register).
func checkIfname(name string) error {
	const ifnamsiz = 16
	bad := len(name) >= ifnamsiz || name == "." || name == ".." || name == "lo" || name == "all" || name == "default"
	for _, c := range []byte(name) {
		bad = bad || c <= ' ' || c == '/' || c == ':' || c == '%' || c >= 0x7f
	}
	if bad {
		return fmt.Errorf("%w: interface name %q: use up to %d letters and digits, and not lo, all or default", ErrUsage, name, ifnamsiz-1)
	}
	return nil
}

// Check returns an error, with its remedy, when Setup could not open a TAP, or
// the host does not have what is to be the source of what leaves it. The parent
// asks before it makes anything.
func (n *Network) Check() error {
	if err := n.outbound.check(); err != nil {
		return err
	}
	return linux.CheckTUN()
}

// Plan implements network.Driver. Search and Options are those of now.
func (n *Network) Plan() network.Plan {
	plan := n.plan
	conf := n.source.conf()
	plan.Search, plan.Options = conf.search, conf.options
	return plan
}

// Follow calls changed with the plan whenever the host's resolv.conf has changed,
// or is another file, whether that has changed the plan or not, until ctx is done.
// It is for one caller. Only while Run runs does anything change.
func (n *Network) Follow(ctx context.Context, changed func(network.Plan)) {
	for {
		select {
		case <-n.source.changed:
			changed(n.Plan())
		case <-ctx.Done():
			return
		}
	}
}

// Policy returns what the namespace may reach, with rules as they are understood.
func (n *Network) Policy() network.Policy { return n.policy.Policy() }

// SetPolicy changes what the namespace may reach, and ends the flows that are no
// longer allowed. The error wraps network.ErrPolicy, and then nothing has changed.
func (n *Network) SetPolicy(p network.Policy) error {
	if err := n.policy.Set(p); err != nil {
		return err
	}
	if e := n.engine.Load(); e != nil {
		e.revoke()
	}
	return nil
}

// Info implements network.Driver.
func (n *Network) Info() network.Info {
	return network.Info{Driver: DriverName, DNS: n.plan.Nameservers, ChildIP: n.subnets[0].child}
}

// Run implements network.Driver. files are what Setup returned.
func (n *Network) Run(ctx context.Context, files []*os.File, ready func()) error {
	if len(files) != 1 {
		for _, f := range files {
			f.Close()
		}
		return fmt.Errorf("slirp: got %d files from the child, want the TAP", len(files))
	}
	dev, err := newTAP(files[0])
	if err != nil {
		files[0].Close()
		return fmt.Errorf("slirp: %w", err)
	}
	if !dev.vnet {
		n.log.Warn("the TAP has no segmentation offload on this host; the network will be slower")
	}
	logPingSockets(n.log)
	if err := n.run(ctx, dev, ready); err != nil {
		return fmt.Errorf("slirp: %w", err)
	}
	return nil
}
