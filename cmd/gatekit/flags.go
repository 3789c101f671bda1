package main

import (
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/internal/persona"
	"github.com/gatekit/gatekit/internal/version"
	"github.com/gatekit/gatekit/pkg/network/hostnic"
	"github.com/gatekit/gatekit/pkg/parent"
)

// newApp makes the command line of a persona. action gets the options that it
// asked for; it is not called for --help and --version.
func newApp(p persona.Persona, action func(parent.Options) error) *cli.App {
	return &cli.App{
		Name:      p.Gate,
		Usage:     "be root in namespaces of your own, with a network",
		UsageText: p.Gate + " [OPTIONS] COMMAND [ARG...]",
		Metadata:  map[string]any{personaKey: p},
		Version:   version.Version,
		Description: "COMMAND runs as root in new user and mount namespaces. For example:\n\n" +
			p.Gate + " --net=slirp --copy-up=/etc bash",
		Flags:                     flags(p),
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true,
		Writer:                    os.Stdout,
		ErrWriter:                 io.Discard, // what goes wrong is said once, by main
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return fmt.Errorf("%w: %w; see %s --help", parent.ErrUsage, err, p.Gate)
		},
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if part := c.String("print-semver"); part != "" {
				return printSemver(c.App.Writer, part)
			}
			o, err := options(c)
			if err != nil {
				return err
			}
			return action(o)
		},
	}
}

// personaKey is where the command line's metadata has its persona.
const personaKey = "persona"

func personaOf(c *cli.Context) persona.Persona { return c.App.Metadata[personaKey].(persona.Persona) }

// flags are the flags in the order of docs/reference.md, with a persona's
// defaults.
func flags(p persona.Persona) []cli.Flag {
	const (
		state   = "1 state"
		network = "2 network"
		ports   = "3 ports"
		mounts  = "4 mounts"
		spaces  = "5 namespaces and processes"
		ids     = "6 ids"
		logs    = "7 logs and version"
		helpers = "8 flags of RootlessKit that are accepted and mean nothing, as its helpers are built in"
	)
	mtu := &cli.IntFlag{Category: network, Name: "mtu", Value: 1500, Usage: "MTU of the interface in the namespace, 576 to 65520 `BYTES`"}
	if p.DriversMTU {
		mtu.Value, mtu.DefaultText = 0, "65520 with --net=slirp4netns or pasta, else 1500"
	}
	portDriver := "port `DRIVER`: builtin or none"
	if p.PortDriver == "" {
		portDriver += " (default: builtin with --net=slirp and hostnic, else none)"
	}
	all := []cli.Flag{
		&cli.StringFlag{Category: state, Name: "state-dir", Usage: "`DIR` for the files of this gate (default: a new directory under $XDG_RUNTIME_DIR/gatekit)"},
		&cli.StringFlag{Category: state, Name: "name", Usage: "a `NAME` for gatectl --gate"},

		&cli.StringFlag{Category: network, Name: "net", Value: "host", Usage: "network `DRIVER`: host, none, slirp or hostnic"},
		mtu,
		&cli.StringFlag{Category: network, Name: "cidr", Usage: "IPv4 `NETWORK`: the child is .100, the gateway .2, the DNS .3 (default: 10.0.2.0/24, or the next that the host does not use)"},
		&cli.StringFlag{Category: network, Name: "cidr6", Usage: "IPv6 `NETWORK`: the child is ::100, the gateway ::2, the DNS ::3 (default: fd67:6174:656b::/64, or the next that the host does not use)"},
		&cli.StringFlag{Category: network, Name: "ifname", Value: "tap0", Usage: "`NAME` of the interface in the namespace"},
		&cli.BoolFlag{Category: network, Name: "ipv6", Value: p.IPv6, Usage: "IPv6 beside IPv4 in the namespace"},
		&cli.StringFlag{Category: network, Name: "host-loopback", Value: p.HostLoopback, Usage: "what of the host's 127.0.0.1 and ::1 the gateway address reaches: none, all, or `PORTS` as 5432,8000-8010"},
		&cli.BoolFlag{Category: network, Name: "disable-host-loopback", Usage: "the same as --host-loopback=none"},
		&cli.BoolFlag{Category: network, Name: "detach-netns", Usage: "keep the network namespace at <state-dir>/netns and run COMMAND in the host's"},
		&cli.StringSliceFlag{Category: network, Name: "dns", Usage: "upstream `ADDR[:PORT]` instead of the host's, repeatable"},
		&cli.StringSliceFlag{Category: network, Name: "dns-search", Usage: "search `DOMAIN` instead of the host's, repeatable"},
		&cli.StringSliceFlag{Category: network, Name: "outbound-addr", Usage: "source `ADDRESS` of outgoing connections, one of each family, repeatable"},
		&cli.StringFlag{Category: network, Name: "outbound-interface", Usage: "`NAME` of the host's interface that outgoing connections leave by"},
		&cli.StringFlag{Category: network, Name: "egress-default", Value: "allow", Usage: "allow or deny: `WHAT` becomes of flows that no egress rule matches"},
		&cli.StringSliceFlag{Category: network, Name: "egress-allow", Usage: "`RULE` as tcp://*.example.com:443 or any://[2001:db8::/32], repeatable; of tcp, udp, icmp or any; for an address, network, DNS name, @host or *"},
		&cli.StringSliceFlag{Category: network, Name: "egress-deny", Usage: "`RULE` as --egress-allow, and stronger, repeatable"},
		&cli.StringFlag{Category: network, Name: "udp-filtering", Value: "address-and-port", Usage: "`WHO` may send to a UDP socket inside that has sent: address-and-port (whom it has sent to), address (any port of those), or none (everybody)"},
		&cli.StringFlag{Category: network, Name: "hostnic-dir", Usage: "with --net=hostnic, the card that root has lent in `DIR` (gatectl netns create)"},
		&cli.StringFlag{Category: network, Name: "hostnic-interface", Usage: "with --net=hostnic, the host's card of this `NAME`, lent for this gate alone; by root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN"},
		&cli.StringFlag{Category: network, Name: "hostnic-mode", Value: "move", Usage: "`HOW` --hostnic-interface is lent: move lends the card itself, macvlan an interface beside it with an address by DHCP; or lxc-user-nic, an interface in --hostnic-bridge with an address by DHCP"},
		&cli.StringFlag{Category: network, Name: "hostnic-bridge", Aliases: []string{"lxc-user-nic-bridge"}, Value: hostnic.DefaultBridge, Usage: "with --hostnic-mode=lxc-user-nic, the `NAME` of the host's bridge"},
		&cli.BoolFlag{Category: network, Name: "hostnic-shared", Usage: "with --hostnic-dir, beside other gates that say so; runs in a PID namespace"},
		&cli.StringSliceFlag{Category: network, Name: "add-host", Usage: "`NAME:IP` for /etc/hosts, repeatable"},

		&cli.StringFlag{Category: ports, Name: "port-driver", Value: p.PortDriver, Usage: portDriver},
		&cli.StringSliceFlag{Category: ports, Name: "publish", Usage: "forward at start: `SPEC` as [PARENTIP:]PARENTPORT[-END]:[CHILDIP:]CHILDPORT[-END]/PROTO, or auto, repeatable"},
		// Not an alias: the library refuses two forms of a flag on one line.
		&cli.StringSliceFlag{Category: ports, Name: "p", Usage: "the same as --publish, for a `SPEC`"},
		&cli.StringFlag{Category: ports, Name: "source-ip", Value: "preserve", Usage: "the client `ADDRESS` that the service sees, with --net=slirp: preserve is the client's own, off the loopback's"},
		&cli.BoolFlag{Category: ports, Name: "source-ip-transparent", Value: true, Usage: "RootlessKit's name of --source-ip"},
		&cli.BoolFlag{Category: ports, Name: "restore-ports", Usage: "bring back the forwards of the last run in this --state-dir"},

		&cli.StringSliceFlag{Category: mounts, Name: "copy-up", Usage: "make a host's `DIR` writable in the namespace, repeatable"},
		&cli.StringFlag{Category: mounts, Name: "copy-up-mode", Value: "tmpfs+symlink", Usage: "`MODE` of copy-up: tmpfs+symlink or overlay"},
		&cli.StringFlag{Category: mounts, Name: "propagation", Value: "rprivate", Usage: "mount propagation `TYPE`: private, rprivate, slave, rslave, shared or rshared"},

		&cli.BoolFlag{Category: spaces, Name: "pidns", Usage: "a PID namespace, with its own /proc"},
		&cli.BoolFlag{Category: spaces, Name: "cgroupns", Usage: "a cgroup namespace"},
		&cli.BoolFlag{Category: spaces, Name: "utsns", Usage: "a UTS namespace"},
		&cli.BoolFlag{Category: spaces, Name: "ipcns", Usage: "an IPC namespace"},
		&cli.StringFlag{Category: spaces, Name: "reaper", Value: "auto", Usage: "reap orphans: auto (with --pidns), true or false `WHEN`"},
		&cli.StringFlag{Category: spaces, Name: "evacuate-cgroup2", Usage: "move the gate to the cgroup `NAME` below its own; needs --pidns and --cgroupns"},

		&cli.StringFlag{Category: ids, Name: "subid-source", Value: "auto", Usage: "`SOURCE` of subordinate ids: auto, dynamic (getsubids) or static (/etc/subuid and /etc/subgid)"},
		&cli.StringSliceFlag{Category: ids, Name: "uidmap", Usage: "`INSIDE:OUTSIDE:SIZE` instead of 0 to the caller and 1 to all subordinate ids, repeatable"},
		&cli.StringSliceFlag{Category: ids, Name: "gidmap", Usage: "`INSIDE:OUTSIDE:SIZE`, as --uidmap"},
		&cli.BoolFlag{Category: ids, Name: "single-id", Usage: "map the caller alone: needs no subordinate ids and no newuidmap"},

		&cli.BoolFlag{Category: logs, Name: "debug", Usage: "log what happens"},
		&cli.StringFlag{Category: logs, Name: "log-format", Value: "text", Usage: "`FORMAT` of logs on stderr: text or json"},
		&cli.StringFlag{Category: logs, Name: "print-semver", Usage: "print a `PART` of the version: major, minor or patch"},
	}
	for _, f := range persona.HelperFlags {
		all = append(all, &cli.StringFlag{Category: helpers, Name: f.Name, Usage: f.Meaning})
	}
	return all
}

// printSemver prints one number of the version (semver.org).
func printSemver(w io.Writer, part string) error {
	n, ok := version.Part(part)
	if !ok {
		return fmt.Errorf("%w: --print-semver=%s: want major, minor or patch", parent.ErrUsage, part)
	}
	_, err := fmt.Fprintln(w, n)
	return err
}
