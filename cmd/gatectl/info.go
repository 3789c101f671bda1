package main

import (
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/internal/persona"
	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

func infoCommand() *cli.Command {
	return &cli.Command{
		Name:      "info",
		Usage:     "show the gate",
		UsageText: "gatectl info [--json]",
		Flags:     []cli.Flag{jsonFlag()},
		Action: view[api.Info]{
			ask: (*client.Client).Info, rows: infoRows,
			plain: persona.PrintInfo, plainJSON: persona.PrintInfoJSON,
		}.show,
	}
}

func infoRows(i api.Info) [][]string {
	var dns []string
	for _, a := range i.NetworkDriver.DNS {
		dns = append(dns, a.String())
	}
	childIP := ""
	if i.NetworkDriver.ChildIP != nil {
		childIP = i.NetworkDriver.ChildIP.String()
	}
	return [][]string{
		{"Name:", i.Name},
		{"Version:", i.Version},
		{"API version:", i.APIVersion},
		{"State dir:", i.StateDir},
		{"PID:", strconv.Itoa(i.PID)},
		{"Child PID:", strconv.Itoa(i.ChildPID)},
		{"Network driver:", i.NetworkDriver.Driver},
		{"Child IP:", childIP},
		{"DNS:", strings.Join(dns, ", ")},
		{"Port driver:", i.PortDriver.Driver},
		{"Protocols:", strings.Join(i.PortDriver.Protos, ", ")},
	}
}
