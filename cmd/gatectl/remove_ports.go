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
	removals := make([]removal, c.NArg())
	for i, arg := range c.Args().Slice() {
		id, err := strconv.Atoi(arg)
		if err != nil && arg != auto {
			return usageError(c, fmt.Errorf("an id is a number as list-ports shows it, not %q", arg), true)
		}
		removals[i] = removal{id: id, auto: arg == auto}
	}
	return withGate(c, func(gate *client.Client) error {
		removeAll(c.Context, gate, removals, drain)
		var errs []error
		for _, r := range removals {
			if r.err != nil {
				errs = append(errs, r.err)
				continue
			}
			fmt.Fprintln(c.App.Writer, r)
		}
		return errors.Join(errs...)
	})
}

// removal is of one forward, or of the automatic ones, and what came of it.
type removal struct {
	id   int
	auto bool
	err  error
}

func (r removal) String() string {
	if r.auto {
		return auto
	}
	return strconv.Itoa(r.id)
}

// removalsAtOnce is how many forwards are removed at the same time: the gate writes
// ports.json once for all that come while it is writing.
const removalsAtOnce = 64

// removeAll makes the removals of single forwards, and then of the automatic ones.
func removeAll(ctx context.Context, gate *client.Client, removals []removal, drain time.Duration) {
	var group errgroup.Group
	group.SetLimit(removalsAtOnce)
	for i := range removals {
		if r := &removals[i]; !r.auto {
			group.Go(func() error {
				r.err = gate.DrainPort(ctx, r.id, drain)
				return nil
			})
		}
	}
	_ = group.Wait() // the removals have their errors
	for i := range removals {
		if r := &removals[i]; r.auto {
			r.err = gate.AutoPorts(ctx, false)
		}
	}
}
