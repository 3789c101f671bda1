package main

import (
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/internal/persona"
	"github.com/gatekit/gatekit/pkg/api"
)

func listPortsCommand() *cli.Command {
	return &cli.Command{
		Name:      "list-ports",
		Usage:     "list the published ports",
		UsageText: "gatectl list-ports [--json]",
		Flags:     []cli.Flag{jsonFlag()},
		Action:    listPorts,
	}
}

func listPorts(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	gate, err := connect(c)
	if err != nil {
		return err
	}
	defer gate.CloseIdleConnections()
	ports, err := gate.ListPorts(c.Context)
	if err != nil {
		return err
	}
	switch plain := personaOf(c).Plain; {
	case plain && c.Bool("json"):
		return persona.PrintPortsJSON(c.App.Writer, ports)
	case plain:
		return persona.PrintPorts(c.App.Writer, ports)
	case c.Bool("json"):
		return printJSON(c.App.Writer, ports)
	}
	rows := [][]string{{"ID", "PROTO", "PARENTIP", "PARENTPORT", "CHILDIP", "CHILDPORT", "SOURCEIP", "DIRECTION"}}
	for _, p := range ports {
		rows = append(rows, []string{
			strconv.Itoa(p.ID), p.Spec.Proto,
			p.Spec.ParentIP, strconv.Itoa(p.Spec.ParentPort),
			p.Spec.ChildIP, strconv.Itoa(p.Spec.ChildPort), p.SourceIP, direction(p.Spec),
		})
	}
	return printTable(c.App.Writer, rows)
}

// direction says which way a forward leads.
func direction(s api.PortSpec) string {
	if s.Reverse {
		return "reverse"
	}
	return "in"
}
