package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

// policyCommand has a command for each thing to do with the policy. Rules are
// PROTO://TARGET[:PORTS], as of gatekit --egress-allow.
func policyCommand() *cli.Command {
	return &cli.Command{
		Name:      "policy",
		Usage:     "show or change what the gate may reach",
		UsageText: "gatectl policy COMMAND",
		Action: func(c *cli.Context) error {
			if name := c.Args().First(); name != "" {
				return usageError(c, fmt.Errorf("policy: no such command: %s", name), true)
			}
			return usageError(c, fmt.Errorf("policy: a command is missing: show, set, allow or deny"), true)
		},
		Subcommands: []*cli.Command{
			{
				Name:      "show",
				Usage:     "print the policy",
				UsageText: "gatectl policy show [--json]",
				Flags:     []cli.Flag{jsonFlag()},
				Action:    view[api.Policy]{ask: (*client.Client).Policy, rows: policyRows}.show,
			},
			{
				Name:      "set",
				Usage:     "put another policy in force",
				UsageText: "gatectl policy set --default WHAT [--allow RULE]... [--deny RULE]...",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "default", Usage: "allow or deny: `WHAT` becomes of flows that no rule matches"},
					&cli.StringSliceFlag{Name: "allow", Usage: "`RULE` for what is allowed, repeatable"},
					&cli.StringSliceFlag{Name: "deny", Usage: "`RULE` for what is denied, whatever the others say, repeatable"},
				},
				Action: setPolicy,
			},
			{
				Name:      "allow",
				Usage:     "add rules for what is allowed",
				UsageText: "gatectl policy allow RULE...",
				Action: func(c *cli.Context) error {
					return addRules(c, func(p *api.Policy) *[]string { return &p.Allow })
				},
			},
			{
				Name:      "deny",
				Usage:     "add rules for what is denied, whatever the others say",
				UsageText: "gatectl policy deny RULE...",
				Action: func(c *cli.Context) error {
					return addRules(c, func(p *api.Policy) *[]string { return &p.Deny })
				},
			},
		},
	}
}

// policyRows are the rules in the order in which they count.
func policyRows(p api.Policy) [][]string {
	rows := [][]string{{"ACTION", "RULE"}}
	for _, rule := range p.Deny {
		rows = append(rows, []string{"deny", rule})
	}
	for _, rule := range p.Allow {
		rows = append(rows, []string{"allow", rule})
	}
	return append(rows, []string{p.Default, "(default)"})
}

func setPolicy(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	if c.String("default") == "" {
		return usageError(c, fmt.Errorf("set: --default is missing: allow or deny"), true)
	}
	return withGate(c, func(gate *client.Client) error {
		_, err := gate.SetPolicy(c.Context, api.Policy{Default: c.String("default"), Allow: c.StringSlice("allow"), Deny: c.StringSlice("deny")})
		return err
	})
}

// addRules adds to a list of the policy.
func addRules(c *cli.Context, list func(*api.Policy) *[]string) error {
	if err := listedArguments(c, "a rule"); err != nil {
		return err
	}
	return withGate(c, func(gate *client.Client) error {
		_, err := gate.ChangePolicy(c.Context, func(p *api.Policy) {
			rules := list(p)
			*rules = append(*rules, c.Args().Slice()...)
		})
		return err
	})
}
