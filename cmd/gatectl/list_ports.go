package main

import (
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/internal/persona"
	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

func listPortsCommand() *cli.Command {
	return &cli.Command{
		Name:      "list-ports",
		Usage:     "list the published ports",
		UsageText: "gatectl list-ports [--json]",
		Flags:     []cli.Flag{jsonFlag()},
		Action: view[[]api.PortStatus]{
			ask: (*client.Client).ListPorts, rows: portRows,
			plain: persona.PrintPorts, plainJSON: persona.PrintPortsJSON,
		}.show,
	}
}

func portRows(ports []api.PortStatus) [][]string {
	rows := [][]string{{"ID", "PROTO", "PARENTIP", "PARENTPORT", "CHILDIP", "CHILDPORT", "SOURCEIP", "DIRECTION"}}
	for _, p := range ports {
		rows = append(rows, []string{
			strconv.Itoa(p.ID), p.Spec.Proto,
			p.Spec.ParentIP, strconv.Itoa(p.Spec.ParentPort),
			p.Spec.ChildIP, strconv.Itoa(p.Spec.ChildPort), p.SourceIP, direction(p.Spec),
		})
	}
	return rows
}

// direction says which way a forward leads.
func direction(s api.PortSpec) string {
	if s.Reverse {
		return "reverse"
	}
	return "in"
}
