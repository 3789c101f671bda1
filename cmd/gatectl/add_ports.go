package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/internal/persona"
	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
	"github.com/gatekit/gatekit/pkg/port"
)

func addPortsCommand(p persona.Persona) *cli.Command {
	flags := []cli.Flag{jsonFlag()}
	if !p.Plain {
		flags = []cli.Flag{&cli.BoolFlag{Name: "reverse", Usage: "forward from the namespace to the host: listen inside on CHILDIP and CHILDPORT, and lead to PARENTIP and PARENTPORT"}}
	}
	return &cli.Command{
		Flags:     flags,
		Name:      "add-ports",
		Usage:     "publish ports, all or none, and print their ids",
		UsageText: "gatectl add-ports [--reverse] SPEC...\ngatectl add-ports auto",
		Description: "SPEC is [PARENTIP:]PARENTPORT[-END]:[CHILDIP:]CHILDPORT[-END]/PROTO. For example:\n\n" +
			"gatectl add-ports 127.0.0.1:8080:80/tcp 8000-8009:8000-8009/udp\n\n" +
			"With --reverse, the namespace reaches the host's 127.0.0.1:5432 by its own:\n\n" +
			"gatectl add-ports --reverse 127.0.0.1:5432:5432/tcp\n\n" +
			"and with --net=slirp by the gateway's address, which containers inside reach as well:\n\n" +
			"gatectl add-ports --reverse 127.0.0.1:5432:10.0.2.2:5432/tcp\n\n" +
			"auto publishes on 127.0.0.1 what starts to listen inside, and takes it back when it stops.",
		Action: addPorts,
	}
}

// auto stands for automatic forwards, where a spec or an id would.
const auto = "auto"

func addAuto(c *cli.Context) error {
	if c.NArg() != 1 || c.Bool("reverse") {
		return usageError(c, fmt.Errorf("auto stands alone"), true)
	}
	err := withGate(c, func(gate *client.Client) error { return gate.AutoPorts(c.Context, true) })
	if err == nil {
		fmt.Fprintln(c.App.Writer, auto)
	}
	return err
}

func addPorts(c *cli.Context) error {
	if err := listedArguments(c, "a port spec"); err != nil {
		return err
	}
	if slices.Contains(c.Args().Slice(), auto) {
		return addAuto(c)
	}
	parse := port.Parse
	if c.Bool("reverse") {
		parse = port.ParseReverse
	}
	var specs []api.PortSpec
	for _, arg := range c.Args().Slice() {
		parsed, err := parse(arg)
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		for _, spec := range parsed {
			specs = append(specs, api.PortSpec(spec))
		}
	}
	var added []api.PortStatus
	if err := withGate(c, func(gate *client.Client) (err error) {
		added, err = gate.AddPorts(c.Context, specs)
		return err
	}); err != nil {
		return err
	}
	if c.Bool("json") {
		return persona.PrintPortsJSON(c.App.Writer, added)
	}
	for _, p := range added {
		fmt.Fprintln(c.App.Writer, p.ID)
	}
	return nil
}
