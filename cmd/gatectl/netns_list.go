package main

import (
	"errors"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/pkg/network/hostnic"
)

func netnsListCommand() *cli.Command {
	return &cli.Command{
		Name:      "list",
		Usage:     "list the cards that are lent",
		UsageText: "gatectl netns list [--json]",
		Flags:     []cli.Flag{jsonFlag()},
		Action:    netnsList,
	}
}

func netnsList(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	if err := asRoot(c); err != nil {
		return err
	}
	lent, err := hostnic.List()
	if c.Bool("json") {
		return errors.Join(err, printJSON(c.App.Writer, lent))
	}
	rows := [][]string{{"INTERFACE", "MODE", "USER", "STATE", "ADDRESSES", "PROCESSES", "NS-DIR"}}
	for _, l := range lent {
		state := "ready"
		if !l.Ready {
			state = "unfinished"
		}
		var addresses []string
		for _, a := range l.Addresses {
			addresses = append(addresses, a.String())
		}
		rows = append(rows, []string{l.Interface, l.Mode, l.User, state, strings.Join(addresses, ","), strconv.Itoa(len(l.Processes)), l.Dir})
	}
	return errors.Join(err, printTable(c.App.Writer, rows))
}
