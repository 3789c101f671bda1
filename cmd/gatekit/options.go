package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/internal/flagnames"
	"github.com/gatekit/gatekit/internal/persona"
	"github.com/gatekit/gatekit/internal/version"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/network/hostnic"
	"github.com/gatekit/gatekit/pkg/network/slirp"
	"github.com/gatekit/gatekit/pkg/parent"
	"github.com/gatekit/gatekit/pkg/port"
)

// options turns flags into options. Its errors are of usage.
func options(c *cli.Context) (parent.Options, error) {
	o := parent.Options{
		Command:         c.Args().Slice(),
		StateDir:        c.String("state-dir"),
		Name:            c.String("name"),
		Version:         version.Version,
		RestorePorts:    c.Bool("restore-ports"),
		CopyUpDirs:      personaOf(c).List(c.StringSlice("copy-up")),
		CopyUpMode:      c.String("copy-up-mode"),
		Propagation:     c.String("propagation"),
		DetachNetNS:     c.Bool("detach-netns"),
		CreatePIDNS:     c.Bool("pidns"),
		CreateCgroupNS:  c.Bool("cgroupns"),
		CreateUTSNS:     c.Bool("utsns"),
		CreateIPCNS:     c.Bool("ipcns"),
		EvacuateCgroup2: c.String("evacuate-cgroup2"),
		SubIDSource:     c.String("subid-source"),
		SingleID:        c.Bool("single-id"),
	}
	for _, set := range []func(*cli.Context, *parent.Options) error{
		setLogger, logHelpers, setNetwork, setPorts, setReaper, setMaps, setAddHosts,
	} {
		if err := set(c, &o); err != nil {
			return o, fmt.Errorf("%w: %w", parent.ErrUsage, err)
		}
	}
	if err := o.Validate(); err != nil {
		return o, err
	}
	// Descriptors are taken last: whoever has the options closes them.
	o.ListenFiles = activation.Files(false)
	return o, nil
}

func setLogger(c *cli.Context, o *parent.Options) error {
	level, format := "warn", c.String("log-format")
	if c.Bool("debug") {
		level = "debug"
	}
	log, err := newLogger(level, format)
	if err != nil {
		return err
	}
	o.Logger = log
	o.ChildArgs = []string{level, format}
	return nil
}

// childLogger makes the child's logger of the arguments that setLogger gave it.
func childLogger(args []string) *slog.Logger {
	if len(args) == 2 {
		if log, err := newLogger(args[0], args[1]); err == nil {
			return log.With("process", "child")
		}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil))
}

func newLogger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, err
	}
	options := &slog.HandlerOptions{Level: l, ReplaceAttr: flagnames.SpellAttr(persona.Gatekit.Gate)}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, options)), nil
	}
	return nil, fmt.Errorf("--log-format=%s: want text or json", format)
}

// logHelpers says which flags are about helpers that are built in.
func logHelpers(c *cli.Context, o *parent.Options) error {
	var flags []string
	if _, helper := personaOf(c).Network(c.String("net")); helper {
		flags = append(flags, "--net="+c.String("net"))
	}
	if _, helper := persona.PortDriver(c.String("port-driver")); helper {
		flags = append(flags, "--port-driver="+c.String("port-driver"))
	}
	for _, f := range persona.HelperFlags {
		if c.IsSet(f.Name) {
			flags = append(flags, "--"+f.Name+"="+c.String(f.Name))
		}
	}
	if len(flags) > 0 {
		o.Logger.Debug("no helper is run: its work is done by --net=slirp and --port-driver=builtin", "flags", flags)
	}
	return nil
}

// drivers are the network drivers by name. A driver is a folder below
// pkg/network, a line here, and one in pkg/child.
var drivers = map[string]func(*cli.Context, *slog.Logger) (network.Driver, error){
	"host":  func(*cli.Context, *slog.Logger) (network.Driver, error) { return network.Host(), nil },
	"none":  func(*cli.Context, *slog.Logger) (network.Driver, error) { return network.None(), nil },
	"slirp": newSlirp,

	hostnic.DriverName: newHostnic,
}

// flagsOfNetworks are those that are about one network. With another, some have nothing
// to say; without the others, a gate would be more open, or elsewhere, than it was asked
// to be.
var flagsOfNetworks = []struct {
	network      string
	idle, needed []string
}{
	{
		"slirp",
		[]string{"mtu", "cidr", "cidr6", "ifname", "ipv6", "host-loopback", "disable-host-loopback", "dns", "dns-search", "source-ip", "source-ip-transparent", "udp-filtering"},
		[]string{"egress-default", "egress-allow", "egress-deny", "outbound-addr", "outbound-interface"},
	},
	{
		hostnic.DriverName,
		[]string{"hostnic-bridge", "lxc-user-nic-binary"},
		[]string{"hostnic-dir", "hostnic-interface", "hostnic-mode", "hostnic-shared"},
	},
}

func setNetwork(c *cli.Context, o *parent.Options) (err error) {
	name, _ := personaOf(c).Network(c.String("net"))
	newDriver, ok := drivers[name]
	if !ok {
		return fmt.Errorf("--net=%s: want host, none, slirp or hostnic", name)
	}
	for _, f := range flagsOfNetworks {
		if name == f.network {
			continue
		}
		for _, flag := range f.idle {
			if c.IsSet(flag) {
				o.Logger.Debug("this flag means nothing without --net="+f.network, "flag", flag)
			}
		}
		for _, flag := range f.needed {
			if c.IsSet(flag) {
				return fmt.Errorf("--%s needs --net=%s", flag, f.network)
			}
		}
	}
	o.Network, err = newDriver(c, o.Logger)
	return err
}

// newSlirp makes the user-mode network of its flags.
func newSlirp(c *cli.Context, log *slog.Logger) (network.Driver, error) {
	o := slirp.Options{
		DisableIPv6: !c.Bool("ipv6"),
		MTU:         personaOf(c).MTU(c.Int("mtu"), c.String("net")),
		Ifname:      c.String("ifname"),
		Search:      c.StringSlice("dns-search"),
		Logger:      log,
	}
	var err error
	if o.SourceIP, err = preservesSource(c); err != nil {
		return nil, err
	}
	if o.IPv4, o.IPv6, err = networks(c); err != nil {
		return nil, err
	}
	loopback := c.String("host-loopback")
	if c.Bool("disable-host-loopback") {
		if c.IsSet("host-loopback") && loopback != "none" {
			return nil, errors.New("--disable-host-loopback and --host-loopback contradict each other")
		}
		loopback = "none"
	}
	if o.HostLoopback, err = slirp.ParseHostLoopback(loopback); err != nil {
		return nil, fmt.Errorf("--host-loopback: %w", err)
	}
	filtering, ok := udpFilterings[c.String("udp-filtering")]
	if !ok {
		return nil, fmt.Errorf("--udp-filtering=%s: want address-and-port, address or none", c.String("udp-filtering"))
	}
	o.UDPFiltering = filtering
	for _, s := range o.Search {
		// A line of resolv.conf(5) holds them, with blanks in between.
		if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return nil, fmt.Errorf("--dns-search=%q: want a domain such as corp.example; repeat the flag for more", s)
		}
	}
	for _, s := range c.StringSlice("dns") {
		upstream, err := parseUpstream(s)
		if err != nil {
			return nil, err
		}
		o.Upstreams = append(o.Upstreams, upstream)
	}
	o.Policy = network.Policy{
		Default: c.String("egress-default"),
		Allow:   c.StringSlice("egress-allow"),
		Deny:    c.StringSlice("egress-deny"),
	}
	o.OutboundInterface = c.String("outbound-interface")
	for _, s := range c.StringSlice("outbound-addr") {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("--outbound-addr=%s: want an address of the host, such as 198.51.100.7 or 2001:db8::7", s)
		}
		o.OutboundAddrs = append(o.OutboundAddrs, addr)
	}
	return slirp.New(o)
}

// udpFilterings are the values of --udp-filtering (RFC 4787, 5).
var udpFilterings = map[string]slirp.Filtering{
	"address-and-port": slirp.FilterAddressAndPort,
	"address":          slirp.FilterAddress,
	"none":             slirp.FilterNone,
}

// networks are those of the flags; the driver finds others for zero ones.
func networks(c *cli.Context) (v4, v6 netip.Prefix, err error) {
	for _, flag := range []struct {
		name, example string
		prefix        *netip.Prefix
	}{{"cidr", "10.0.2.0/24", &v4}, {"cidr6", "fd67:6174:656b::/64", &v6}} {
		s := c.String(flag.name)
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4() != (flag.prefix == &v4) {
			return v4, v6, fmt.Errorf("--%s=%s: want a network such as %s", flag.name, s, flag.example)
		}
		*flag.prefix = p.Masked()
	}
	return v4, v6, nil
}

// parseUpstream parses ADDR or ADDR:PORT; IPv6 goes in brackets before a port.
func parseUpstream(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return a, fmt.Errorf("--dns=%s: want ADDR or ADDR:PORT, for example 198.51.100.53 or [2001:db8::53]:5353", s)
	}
	return a, nil
}

func setPorts(c *cli.Context, o *parent.Options) error {
	for _, s := range personaOf(c).List(append(c.StringSlice("publish"), c.StringSlice("p")...)) {
		if s == "auto" {
			o.PublishAuto = true
			continue
		}
		specs, err := port.Parse(s)
		if err != nil {
			return fmt.Errorf("--publish: %w", err)
		}
		o.Publish = append(o.Publish, specs...)
	}
	if _, err := preservesSource(c); err != nil { // which is slirp's, but checked with any network
		return err
	}
	driver, _ := persona.PortDriver(c.String("port-driver"))
	if driver == "" {
		driver = "none"
		if network, _ := personaOf(c).Network(c.String("net")); network == "slirp" || network == hostnic.DriverName {
			driver = "builtin"
		}
	}
	switch driver {
	case "builtin":
		if plan := o.Network.Plan(); !plan.Namespace {
			return fmt.Errorf("--port-driver=builtin needs a network of its own: --net=%s has none; use slirp, or --port-driver=none", plan.Driver)
		}
	case "none":
		o.DisablePorts = true
	default:
		return fmt.Errorf("--port-driver=%s: want builtin or none", driver)
	}
	return nil
}

// preservesSource reads --source-ip, and RootlessKit's name of it.
func preservesSource(c *cli.Context) (bool, error) {
	preserve := false
	switch source := c.String("source-ip"); source {
	case "preserve":
		preserve = true
	case "off":
	default:
		return false, fmt.Errorf("--source-ip=%s: want preserve or off", source)
	}
	if !c.IsSet("source-ip-transparent") {
		return preserve, nil
	}
	if c.IsSet("source-ip") && c.Bool("source-ip-transparent") != preserve {
		return false, errors.New("--source-ip and --source-ip-transparent contradict each other")
	}
	return c.Bool("source-ip-transparent"), nil
}

func setReaper(c *cli.Context, o *parent.Options) error {
	yes, no := true, false
	switch when := c.String("reaper"); when {
	case "auto":
	case "true":
		o.Reaper = &yes
	case "false":
		o.Reaper = &no
	default:
		return fmt.Errorf("--reaper=%s: want auto, true or false", when)
	}
	return nil
}

func setMaps(c *cli.Context, o *parent.Options) error {
	for flag, maps := range map[string]*[]parent.IDMap{"uidmap": &o.UIDMap, "gidmap": &o.GIDMap} {
		for _, s := range c.StringSlice(flag) {
			m, err := parent.ParseIDMap(s)
			if err != nil {
				return fmt.Errorf("--%s=%w", flag, err)
			}
			*maps = append(*maps, m)
		}
	}
	return nil
}

func setAddHosts(c *cli.Context, o *parent.Options) error {
	for _, s := range c.StringSlice("add-host") {
		entry, err := parent.ParseAddHost(s)
		if err != nil {
			return fmt.Errorf("--add-host: %w", err)
		}
		o.AddHosts = append(o.AddHosts, entry)
	}
	return nil
}
