package main

import (
	"fmt"
	"io"
	"os"
	"slices"

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

// Categories of flags, in the order of docs/reference.md.
const (
	inState   = "1 state"
	inNetwork = "2 network"
	inPorts   = "3 ports"
	inMounts  = "4 mounts"
	inSpaces  = "5 namespaces and processes"
	inIDs     = "6 ids"
	inLogs    = "7 logs and version"
	inHelpers = "8 flags of RootlessKit that are accepted and mean nothing, as its helpers are built in"
)

// flags are the flags in the order of docs/reference.md, with a persona's
// defaults.
func flags(p persona.Persona) []cli.Flag {
	return slices.Concat(stateFlags(), networkFlags(p), hostnicFlags(), portFlags(p), mountFlags(), spaceFlags(), idFlags(), logFlags(), helperFlags())
}

// stateFlags say where the files of the gate are.
func stateFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Category: inState, Name: "state-dir", Usage: "`DIR` for the files of this gate (default: a new directory under $XDG_RUNTIME_DIR/gatekit)"},
		&cli.StringFlag{Category: inState, Name: "name", Usage: "a `NAME` for gatectl --gate"},
	}
}

// networkFlags say how the namespace is connected; those of hostnic's are apart.
func networkFlags(p persona.Persona) []cli.Flag {
	mtu := &cli.IntFlag{Category: inNetwork, Name: "mtu", Value: 1500, Usage: "MTU of the interface in the namespace, 576 to 65520 `BYTES`"}
	if p.DriversMTU {
		mtu.Value, mtu.DefaultText = 0, "65520 with --net=slirp4netns or pasta, else 1500"
	}
	return []cli.Flag{
		&cli.StringFlag{Category: inNetwork, Name: "net", Value: "host", Usage: "network `DRIVER`: host, none, slirp or hostnic"},
		mtu,
		&cli.StringFlag{Category: inNetwork, Name: "cidr", Usage: "IPv4 `NETWORK`: the child is .100, the gateway .2, the DNS .3 (default: 10.0.2.0/24, or the next that the host does not use)"},
		&cli.StringFlag{Category: inNetwork, Name: "cidr6", Usage: "IPv6 `NETWORK`: the child is ::100, the gateway ::2, the DNS ::3 (default: fd67:6174:656b::/64, or the next that the host does not use)"},
		&cli.StringFlag{Category: inNetwork, Name: "ifname", Value: "tap0", Usage: "`NAME` of the interface in the namespace"},
		&cli.BoolFlag{Category: inNetwork, Name: "ipv6", Value: p.IPv6, Usage: "IPv6 beside IPv4 in the namespace"},
		&cli.StringFlag{Category: inNetwork, Name: "host-loopback", Value: p.HostLoopback, Usage: "what of the host's 127.0.0.1 and ::1 the gateway address reaches: none, all, or `PORTS` as 5432,8000-8010"},
		&cli.BoolFlag{Category: inNetwork, Name: "disable-host-loopback", Usage: "the same as --host-loopback=none"},
		&cli.BoolFlag{Category: inNetwork, Name: "detach-netns", Usage: "keep the network namespace at <state-dir>/netns and run COMMAND in the host's"},
		&cli.StringSliceFlag{Category: inNetwork, Name: "dns", Usage: "upstream `ADDR[:PORT]` instead of the host's, repeatable"},
		&cli.StringSliceFlag{Category: inNetwork, Name: "dns-search", Usage: "search `DOMAIN` instead of the host's, repeatable"},
		&cli.StringSliceFlag{Category: inNetwork, Name: "outbound-addr", Usage: "source `ADDRESS` of outgoing connections, one of each family, repeatable"},
		&cli.StringFlag{Category: inNetwork, Name: "outbound-interface", Usage: "`NAME` of the host's interface that outgoing connections leave by"},
		&cli.StringFlag{Category: inNetwork, Name: "egress-default", Value: "allow", Usage: "allow or deny: `WHAT` becomes of flows that no egress rule matches"},
		&cli.StringSliceFlag{Category: inNetwork, Name: "egress-allow", Usage: "`RULE` as tcp://*.example.com:443 or any://[2001:db8::/32], repeatable; of tcp, udp, icmp or any; for an address, network, DNS name, @host or *"},
		&cli.StringSliceFlag{Category: inNetwork, Name: "egress-deny", Usage: "`RULE` as --egress-allow, and stronger, repeatable"},
		&cli.StringFlag{Category: inNetwork, Name: "udp-filtering", Value: "address-and-port", Usage: "`WHO` may send to a UDP socket inside that has sent: address-and-port (whom it has sent to), address (any port of those), or none (everybody)"},
		&cli.StringSliceFlag{Category: inNetwork, Name: "add-host", Usage: "`NAME:IP` for /etc/hosts, repeatable"},
	}
}

// hostnicFlags say which card of the host is the namespace's.
func hostnicFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Category: inNetwork, Name: "hostnic-dir", Usage: "with --net=hostnic, the card that root has lent in `DIR` (gatectl netns create)"},
		&cli.StringFlag{Category: inNetwork, Name: "hostnic-interface", Usage: "with --net=hostnic, the host's card of this `NAME`, lent for this gate alone; by root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN"},
		&cli.StringFlag{Category: inNetwork, Name: "hostnic-mode", Value: "move", Usage: "`HOW` --hostnic-interface is lent: move lends the card itself, macvlan an interface beside it with an address by DHCP; or lxc-user-nic, an interface in --hostnic-bridge with an address by DHCP"},
		&cli.StringFlag{Category: inNetwork, Name: "hostnic-bridge", Aliases: []string{"lxc-user-nic-bridge"}, Value: hostnic.DefaultBridge, Usage: "with --hostnic-mode=lxc-user-nic, the `NAME` of the host's bridge"},
		&cli.StringFlag{Category: inNetwork, Name: "lxc-user-nic-binary", Usage: "with --hostnic-mode=lxc-user-nic, the `PATH` of that program (default: where distributions have it)"},
		&cli.BoolFlag{Category: inNetwork, Name: "hostnic-shared", Usage: "with --hostnic-dir, beside other gates that say so; runs in a PID namespace"},
	}
}

// portFlags say what is forwarded.
func portFlags(p persona.Persona) []cli.Flag {
	portDriver := "port `DRIVER`: builtin or none"
	if p.PortDriver == "" {
		portDriver += " (default: builtin with --net=slirp and hostnic, else none)"
	}
	return []cli.Flag{
		&cli.StringFlag{Category: inPorts, Name: "port-driver", Value: p.PortDriver, Usage: portDriver},
		&cli.StringSliceFlag{Category: inPorts, Name: "publish", Usage: "forward at start: `SPEC` as [PARENTIP:]PARENTPORT[-END]:[CHILDIP:]CHILDPORT[-END]/PROTO, or auto, repeatable"},
		// Not an alias: the library refuses two forms of a flag on one line.
		&cli.StringSliceFlag{Category: inPorts, Name: "p", Usage: "the same as --publish, for a `SPEC`"},
		&cli.StringFlag{Category: inPorts, Name: "source-ip", Value: "preserve", Usage: "the client `ADDRESS` that the service sees, with --net=slirp: preserve is the client's own, off the loopback's"},
		&cli.BoolFlag{Category: inPorts, Name: "source-ip-transparent", Value: true, Usage: "RootlessKit's name of --source-ip"},
		&cli.BoolFlag{Category: inPorts, Name: "restore-ports", Usage: "bring back the forwards of the last run in this --state-dir"},
	}
}

// mountFlags say what of the file system is writable, and how mounts spread.
func mountFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Category: inMounts, Name: "copy-up", Usage: "make a host's `DIR` writable in the namespace, repeatable"},
		&cli.StringFlag{Category: inMounts, Name: "copy-up-mode", Value: "tmpfs+symlink", Usage: "`MODE` of copy-up: tmpfs+symlink or overlay"},
		&cli.StringFlag{Category: inMounts, Name: "propagation", Value: "rprivate", Usage: "mount propagation `TYPE`: private, rprivate, slave, rslave, shared or rshared"},
	}
}

// spaceFlags say which further namespaces there are, and who reaps.
func spaceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Category: inSpaces, Name: "pidns", Usage: "a PID namespace, with its own /proc"},
		&cli.BoolFlag{Category: inSpaces, Name: "cgroupns", Usage: "a cgroup namespace"},
		&cli.BoolFlag{Category: inSpaces, Name: "utsns", Usage: "a UTS namespace"},
		&cli.BoolFlag{Category: inSpaces, Name: "ipcns", Usage: "an IPC namespace"},
		&cli.StringFlag{Category: inSpaces, Name: "reaper", Value: "auto", Usage: "reap orphans: auto (with --pidns), true or false `WHEN`"},
		&cli.StringFlag{Category: inSpaces, Name: "evacuate-cgroup2", Usage: "move the gate to the cgroup `NAME` below its own; needs --pidns and --cgroupns"},
	}
}

// idFlags say which ids are mapped.
func idFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Category: inIDs, Name: "subid-source", Value: "auto", Usage: "`SOURCE` of subordinate ids: auto, dynamic (getsubids) or static (/etc/subuid and /etc/subgid)"},
		&cli.StringSliceFlag{Category: inIDs, Name: "uidmap", Usage: "`INSIDE:OUTSIDE:SIZE` instead of 0 to the caller and 1 to all subordinate ids, repeatable"},
		&cli.StringSliceFlag{Category: inIDs, Name: "gidmap", Usage: "`INSIDE:OUTSIDE:SIZE`, as --uidmap"},
		&cli.BoolFlag{Category: inIDs, Name: "single-id", Usage: "map the caller alone: needs no subordinate ids and no newuidmap"},
	}
}

// logFlags say what is printed.
func logFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Category: inLogs, Name: "debug", Usage: "log what happens"},
		&cli.StringFlag{Category: inLogs, Name: "log-format", Value: "text", Usage: "`FORMAT` of logs on stderr: text or json"},
		&cli.StringFlag{Category: inLogs, Name: "print-semver", Usage: "print a `PART` of the version: major, minor or patch"},
	}
}

// helperFlags are those that choose RootlessKit's helpers.
func helperFlags() []cli.Flag {
	var all []cli.Flag
	for _, f := range persona.HelperFlags {
		all = append(all, &cli.StringFlag{Category: inHelpers, Name: f.Name, Usage: f.Meaning})
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
