package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

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
	var removals []removal
	for _, arg := range c.Args().Slice() {
		id, err := strconv.Atoi(arg)
		if err != nil && arg != auto {
			return usageError(c, fmt.Errorf("an id is a number as list-ports shows it, not %q", arg), true)
		}
		removals = append(removals, removal{id, arg == auto})
	}
	return withGate(c, func(gate *client.Client) error {
		var errs []error
		for _, r := range removals {
			if err := r.make(c.Context, gate, drain); err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintln(c.App.Writer, r)
		}
		return errors.Join(errs...)
	})
}

// removal is of one forward, or of the automatic ones.
type removal struct {
	id   int
	auto bool
}

func (r removal) make(ctx context.Context, gate *client.Client, drain time.Duration) error {
	if r.auto {
		return gate.AutoPorts(ctx, false)
	}
	return gate.DrainPort(ctx, r.id, drain)
}

func (r removal) String() string {
	if r.auto {
		return auto
	}
	return strconv.Itoa(r.id)
}
