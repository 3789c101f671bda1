package main

import (
	"errors"
	"log/slog"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/network/hostnic"
)

// newHostnic makes the driver for a network card.
func newHostnic(c *cli.Context, _ *slog.Logger) (network.Driver, error) {
	dir := c.String("hostnic-dir")
	if dir == "" {
		return nil, errors.New("--net=hostnic needs --hostnic-dir: the directory in which root has lent a card, such as /run/gatekit/eth1")
	}
	return hostnic.New(hostnic.Options{Dir: dir, Shared: c.Bool("hostnic-shared")})
}
