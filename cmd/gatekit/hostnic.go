package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/network/hostnic"
)

// modeBridge is the value of --hostnic-mode for hostnic.Bridge.
const modeBridge = "lxc-user-nic"

// newHostnic makes the driver for a network card.
func newHostnic(c *cli.Context, log *slog.Logger) (network.Driver, error) {
	dir, card, mode := c.String("hostnic-dir"), c.String("hostnic-interface"), c.String("hostnic-mode")
	if c.String("net") == modeBridge { // RootlessKit's way to say both
		if c.IsSet("hostnic-mode") && mode != modeBridge {
			return nil, fmt.Errorf("--net=lxc-user-nic and --hostnic-mode=%s contradict each other", mode)
		}
		mode = modeBridge
	}
	switch {
	case mode == modeBridge && (card != "" || dir != "" || c.Bool("hostnic-shared")):
		return nil, errors.New("--hostnic-mode=lxc-user-nic takes an interface in --hostnic-bridge, and no card: it cannot go with the other flags of hostnic")
	case mode == modeBridge:
		return hostnic.NewBridge(hostnic.BridgeOptions{Bridge: c.String("hostnic-bridge"), Helper: c.String("lxc-user-nic-binary"), Logger: log}), nil
	case mode != hostnic.ModeMove && mode != hostnic.ModeMacvlan:
		return nil, fmt.Errorf("--hostnic-mode=%s: want move, macvlan or lxc-user-nic", mode)
	case c.IsSet("hostnic-bridge"):
		return nil, errors.New("--hostnic-bridge needs --hostnic-mode=lxc-user-nic")
	case card != "" && c.Bool("hostnic-shared"):
		return nil, errors.New("--hostnic-interface lends the card to one gate: it cannot go with --hostnic-shared")
	case card != "":
		return hostnic.NewAround(hostnic.AroundOptions{Interface: card, Mode: mode, Dir: dir, Logger: log})
	case c.IsSet("hostnic-mode"):
		return nil, errors.New("--hostnic-mode says how --hostnic-interface lends a card; the one in --hostnic-dir is lent already")
	case dir == "":
		return nil, errors.New("--net=hostnic needs a card: --hostnic-dir, the directory in which root has lent one, such as /run/gatekit/eth1; or, for root, --hostnic-interface; or --hostnic-mode=lxc-user-nic")
	}
	return hostnic.New(hostnic.Options{Dir: dir, Shared: c.Bool("hostnic-shared"), Logger: log})
}
