package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"
)

func removePortsCommand() *cli.Command {
	return &cli.Command{
		Name:      "remove-ports",
		Usage:     "take published ports away, and print their ids",
		UsageText: "gatectl remove-ports ID...",
		Action:    removePorts,
	}
}

// removePorts goes on after a failure: the ids that it prints are those that are
// gone, whatever its exit code says.
func removePorts(c *cli.Context) error {
	if err := someArguments(c, "an id"); err != nil {
		return err
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
		if err := api.RemovePort(c.Context, id); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(c.App.Writer, id)
	}
	return errors.Join(errs...)
}
