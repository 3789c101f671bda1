package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/gatekit/gatekit/pkg/api/client"
	"github.com/gatekit/gatekit/pkg/port"
)

func removePortsCommand() *cli.Command {
	return &cli.Command{
		Name:      "remove-ports",
		Usage:     "take published ports away, and print their ids",
		UsageText: "gatectl remove-ports [--drain DURATION] ID...\ngatectl remove-ports auto",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "drain", Value: port.DefaultDrain, Usage: "reset TCP connections after `DURATION`, as 30s or 1h; 0s at once"},
		},
		Action: removePorts,
	}
}

// removePorts goes on after a failure: the ids that it prints are those that are
// gone, whatever its exit code says.
func removePorts(c *cli.Context) error {
	if err := listedArguments(c, "an id"); err != nil {
		return err
	}
	drain := c.Duration("drain")
	if drain < 0 {
		return usageError(c, fmt.Errorf("--drain=%s: want a duration that is not negative", drain), true)
	}
	args := c.Args().Slice()
	ids := make([]int, len(args))
	for i, arg := range args {
		id, err := strconv.Atoi(arg)
		if err != nil && arg != auto {
			return usageError(c, fmt.Errorf("an id is a number as list-ports shows it, not %q", arg), true)
		}
		ids[i] = id
	}
	return withGate(c, func(gate *client.Client) error {
		errs := removeAll(c.Context, gate, args, ids, drain)
		for i, arg := range args {
			switch {
			case errs[i] != nil:
			case arg == auto:
				fmt.Fprintln(c.App.Writer, auto)
			default:
				fmt.Fprintln(c.App.Writer, ids[i])
			}
		}
		return errors.Join(errs...)
	})
}

// removalsAtOnce is how many forwards are removed at the same time: the gate writes
// ports.json once for all that come while it is writing.
const removalsAtOnce = 64

// removeAll removes the forwards with these ids and then, where an argument says so,
// the automatic ones. Each argument has its own error.
func removeAll(ctx context.Context, gate *client.Client, args []string, ids []int, drain time.Duration) []error {
	errs := make([]error, len(args))
	var group errgroup.Group
	group.SetLimit(removalsAtOnce)
	for i, arg := range args {
		if arg != auto {
			group.Go(func() error {
				errs[i] = gate.DrainPort(ctx, ids[i], drain)
				return nil
			})
		}
	}
	_ = group.Wait() // errs has the errors
	for i, arg := range args {
		if arg == auto {
			errs[i] = gate.AutoPorts(ctx, false)
		}
	}
	return errs
}
