package main

import (
	"strconv"

	"github.com/urfave/cli/v2"
)

func listCommand() *cli.Command {
	return &cli.Command{
		Name:      "list",
		Usage:     "list the running gates of this user",
		UsageText: "gatectl list [--json]",
		Flags:     []cli.Flag{jsonFlag()},
		Action:    list,
	}
}

func list(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	gates, err := runningGates(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, gates)
	}
	rows := [][]string{{"NAME", "PID", "NETWORK", "STATE-DIR"}}
	for _, g := range gates {
		rows = append(rows, []string{g.Name, strconv.Itoa(g.PID), g.Network, g.StateDir})
	}
	return printTable(c.App.Writer, rows)
}
