package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/pkg/port"
)

func removePortsCommand() *cli.Command {
	return &cli.Command{
		Name:      "remove-ports",
		Usage:     "take published ports away, and print their ids",
		UsageText: "gatectl remove-ports [--drain DURATION] ID...",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "drain", Value: port.DefaultDrain, Usage: "reset TCP connections after `DURATION`, as 30s or 1h; 0s at once"},
		},
		Action: removePorts,
	}
}

// removePorts goes on after a failure: the ids that it prints are those that are
// gone, whatever its exit code says.
func removePorts(c *cli.Context) error {
	if err := someArguments(c, "an id"); err != nil {
		return err
	}
	drain := c.Duration("drain")
	if drain < 0 {
		return usageError(c, fmt.Errorf("--drain=%s: want a duration that is not negative", drain), true)
	}
	var ids []int
	for _, arg := range c.Args().Slice() {
		id, err := strconv.Atoi(arg)
		if err != nil {
			return usageError(c, fmt.Errorf("an id is a number as list-ports shows it, not %q", arg), true)
		}
		ids = append(ids, id)
	}
	api, err := connect(c)
	if err != nil {
		return err
	}
	defer api.CloseIdleConnections()
	var errs []error
	for _, id := range ids {
		if err := api.DrainPort(c.Context, id, drain); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(c.App.Writer, id)
	}
	return errors.Join(errs...)
}
