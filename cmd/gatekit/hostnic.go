package main

import (
	"errors"
	"log/slog"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/network/hostnic"
)

// newHostnic makes the driver for a network card.
func newHostnic(c *cli.Context, log *slog.Logger) (network.Driver, error) {
	dir, card := c.String("hostnic-dir"), c.String("hostnic-interface")
	switch {
	case card != "" && c.Bool("hostnic-shared"):
		return nil, errors.New("--hostnic-interface lends the card to one gate: it cannot go with --hostnic-shared")
	case card != "":
		return hostnic.NewAround(hostnic.AroundOptions{Interface: card, Dir: dir, Logger: log})
	case dir == "":
		return nil, errors.New("--net=hostnic needs a card: --hostnic-dir, the directory in which root has lent one, such as /run/gatekit/eth1; or, for root, --hostnic-interface")
	}
	return hostnic.New(hostnic.Options{Dir: dir, Shared: c.Bool("hostnic-shared")})
}
