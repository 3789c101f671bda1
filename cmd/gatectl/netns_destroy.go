package main

import (
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/pkg/network/hostnic"
)

func netnsDestroyCommand() *cli.Command {
	return &cli.Command{
		Name:      "destroy",
		Usage:     "give a card back to the host, as it was",
		UsageText: "gatectl netns destroy --ns-dir DIR [--force]",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "ns-dir", Usage: "`DIR` of the card"},
			&cli.BoolFlag{Name: "force", Usage: "end the gates on it first, and do without what cannot be restored"},
			debugFlag(),
		},
		Action: netnsDestroy,
	}
}

func netnsDestroy(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	dir, err := required(c, "ns-dir", "/run/gatekit/eth1")
	if err != nil {
		return err
	}
	if err := asRoot(c); err != nil {
		return err
	}
	return hostnic.Destroy(c.Context, hostnic.DestroyOptions{Dir: filepath.Clean(dir), Force: c.Bool("force"), Logger: stepLogger(c)})
}
