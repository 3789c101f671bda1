package main

import (
	"fmt"
	"net/netip"
	"os/signal"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/pkg/network/hostnic"
	"github.com/gatekit/gatekit/pkg/parent"
)

func netnsCreateCommand() *cli.Command {
	return &cli.Command{
		Name:      "create",
		Usage:     "lend a network card to a user",
		UsageText: "gatectl netns create --interface NAME --user USER --ns-dir DIR [OPTIONS]",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "interface", Usage: "`NAME` of the card"},
			&cli.StringFlag{Name: "user", Usage: "`USER` to whom it is lent, by name or uid"},
			&cli.StringFlag{Name: "ns-dir", Usage: "`DIR` that is made for it, such as /run/gatekit/eth1"},
			&cli.StringFlag{Name: "mode", Value: hostnic.ModeMove, Usage: "`HOW`: move lends the card itself, macvlan an interface beside it"},
			&cli.StringSliceFlag{Name: "address", Usage: "`ADDRESS/LENGTH` of the card inside, repeatable (default: those that it has)"},
			&cli.BoolFlag{Name: "dhcp", Usage: "ask a DHCP server for address, gateway and DNS instead"},
			&cli.StringSliceFlag{Name: "gateway", Usage: "`ADDRESS` of the default gateway inside, one of each family (default: the host's by this card)"},
			&cli.StringSliceFlag{Name: "dns", Usage: "`ADDRESS` of a DNS server, repeatable (default: the host's)"},
			&cli.StringSliceFlag{Name: "dns-search", Usage: "search `DOMAIN`, repeatable (default: the host's)"},
			&cli.BoolFlag{Name: "force", Usage: "lend a card that the host, or this SSH connection, depends on"},
			debugFlag(),
		},
		Action: netnsCreate,
	}
}

func netnsCreate(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	o := hostnic.CreateOptions{
		Mode:   c.String("mode"),
		DHCP:   c.Bool("dhcp"),
		Search: c.StringSlice("dns-search"),
		Force:  c.Bool("force"),
		Logger: stepLogger(c),
	}
	var user string
	for _, flag := range []struct {
		name, example string
		value         *string
	}{{"interface", "eth1", &o.Interface}, {"user", "vagrant", &user}, {"ns-dir", "/run/gatekit/eth1", &o.Dir}} {
		var err error
		if *flag.value, err = required(c, flag.name, flag.example); err != nil {
			return err
		}
	}
	if o.Mode != hostnic.ModeMove && o.Mode != hostnic.ModeMacvlan {
		return usageError(c, fmt.Errorf("create: --mode=%s: want move or macvlan", o.Mode), true)
	}
	if err := parseEach(c, "address", "an address with the length of its network, such as 192.168.211.7/24", netip.ParsePrefix, &o.Addresses); err != nil {
		return err
	}
	if err := parseEach(c, "gateway", "an address, such as 192.168.211.1", netip.ParseAddr, &o.Gateways); err != nil {
		return err
	}
	if err := parseEach(c, "dns", "an address, such as 192.168.211.53", netip.ParseAddr, &o.Nameservers); err != nil {
		return err
	}
	if err := asRoot(c); err != nil {
		return err
	}
	owner, err := parent.FindOwner(c.Context, user)
	if err != nil {
		return err
	}
	o.Owner = hostnic.Owner{Name: owner.Name, UID: owner.UID, GID: owner.GID, MapIDs: owner.MapIDs}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	err = hostnic.Create(ctx, o)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("interrupted: %s is not lent: %w", o.Interface, err)
	}
	return err
}

// parseEach parses the values of a flag.
func parseEach[T any](c *cli.Context, name, want string, parse func(string) (T, error), to *[]T) error {
	for _, s := range c.StringSlice(name) {
		v, err := parse(s)
		if err != nil {
			return usageError(c, fmt.Errorf("%s: --%s=%s: want %s", c.Command.Name, name, s, want), true)
		}
		*to = append(*to, v)
	}
	return nil
}
