package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/internal/flagnames"
	"github.com/gatekit/gatekit/internal/persona"
)

// netnsCommand has a command for each thing to do with network cards that are lent
// to users. They are for root, and need no gate.
func netnsCommand() *cli.Command {
	return &cli.Command{
		Name:      "netns",
		Usage:     "lend network cards to users, for gatekit --net=hostnic (run as root)",
		UsageText: "gatectl netns COMMAND",
		Action: func(c *cli.Context) error {
			if name := c.Args().First(); name != "" {
				return usageError(c, fmt.Errorf("netns: no such command: %s", name), true)
			}
			return usageError(c, errors.New("netns: a command is missing: create, destroy or list"), true)
		},
		Subcommands: []*cli.Command{netnsCreateCommand(), netnsDestroyCommand(), netnsListCommand()},
	}
}

// asRoot refuses who is not root.
func asRoot(c *cli.Context) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fmt.Errorf("netns %s is for root: run it as root", c.Command.Name)
}

// debugFlag is the flag of commands that tell of their steps.
func debugFlag() cli.Flag {
	return &cli.BoolFlag{Name: "debug", Usage: "log each step"}
}

// stepLogger logs to standard error.
func stepLogger(c *cli.Context) *slog.Logger {
	level := slog.LevelWarn
	if c.Bool("debug") {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: flagnames.SpellAttr(persona.Gatekit.Control)}))
}

// required returns the value of a flag that has to be there.
func required(c *cli.Context, name, example string) (string, error) {
	if v := c.String(name); v != "" {
		return v, nil
	}
	return "", usageError(c, fmt.Errorf("%s: --%s is missing, for example --%s=%s", c.Command.Name, name, name, example), true)
}
