package main

import (
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/internal/persona"
)

func infoCommand() *cli.Command {
	return &cli.Command{
		Name:      "info",
		Usage:     "show the gate",
		UsageText: "gatectl info [--json]",
		Flags:     []cli.Flag{jsonFlag()},
		Action:    info,
	}
}

func info(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	api, err := connect(c)
	if err != nil {
		return err
	}
	defer api.CloseIdleConnections()
	i, err := api.Info(c.Context)
	if err != nil {
		return err
	}
	switch plain := personaOf(c).Plain; {
	case plain && c.Bool("json"):
		return persona.PrintInfoJSON(c.App.Writer, i)
	case plain:
		return persona.PrintInfo(c.App.Writer, i)
	case c.Bool("json"):
		return printJSON(c.App.Writer, i)
	}
	var dns []string
	for _, a := range i.NetworkDriver.DNS {
		dns = append(dns, a.String())
	}
	childIP := ""
	if i.NetworkDriver.ChildIP != nil {
		childIP = i.NetworkDriver.ChildIP.String()
	}
	return printTable(c.App.Writer, [][]string{
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
	})
}
