package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/internal/statedir"
	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

// askPatience is how long a gate may take to say what it is called. Gates that
// hang must not make the list hang.
const askPatience = 2 * time.Second

// connect returns a client of the gate that the command line, or the
// environment, or the lack of others names. The caller closes its connections.
func connect(c *cli.Context) (*client.Client, error) {
	socket, err := findSocket(c)
	if err != nil {
		return nil, err
	}
	return client.New(client.Options{Socket: socket}), nil
}

// withGate calls the gate that connect finds.
func withGate(c *cli.Context, call func(*client.Client) error) error {
	gate, err := connect(c)
	if err != nil {
		return err
	}
	defer gate.CloseIdleConnections()
	return call(gate)
}

func findSocket(c *cli.Context) (string, error) {
	socket, name := c.String("socket"), c.String("gate")
	switch {
	case socket != "" && name != "":
		return "", fmt.Errorf("%w: --socket and --gate exclude each other", errUsage)
	case socket != "":
		return socket, nil
	case name != "":
		return socketOf(c.Context, name)
	}
	for _, variable := range []string{"GATEKIT_STATE_DIR", "ROOTLESSKIT_STATE_DIR"} {
		if dir := os.Getenv(variable); dir != "" {
			return statedir.Socket(dir), nil
		}
	}
	gates, err := runningGates(c.Context)
	switch {
	case err != nil:
		return "", err
	case len(gates) == 0:
		return "", fmt.Errorf("no gate of this user is running; for another's, use --socket")
	case len(gates) > 1:
		return "", fmt.Errorf("%d gates are running, choose one with --gate or --socket: %s", len(gates), describe(gates))
	}
	return statedir.Socket(gates[0].StateDir), nil
}

// socketOf returns the socket of the gate with this name.
func socketOf(ctx context.Context, name string) (string, error) {
	gates, err := runningGates(ctx)
	if err != nil {
		return "", err
	}
	var named []gate
	for _, g := range gates {
		if g.Name == name {
			named = append(named, g)
		}
	}
	switch {
	case len(gates) == 0:
		return "", fmt.Errorf("no gate is called %s: no gate of this user is running", name)
	case len(named) == 0:
		return "", fmt.Errorf("no gate is called %s; running are: %s", name, describe(gates))
	case len(named) > 1:
		return "", fmt.Errorf("%d gates are called %s, choose one with --socket: %s", len(named), name, describe(named))
	}
	return statedir.Socket(named[0].StateDir), nil
}

// gate is a running gate as list shows it.
type gate struct {
	Name     string `json:"name"`
	PID      int    `json:"pid"`
	Network  string `json:"network"`
	StateDir string `json:"stateDir"`
}

// runningGates lists the gates of this user, and asks each what it is called. A
// gate that does not answer, as one that is just starting, has no name.
func runningGates(ctx context.Context) ([]gate, error) {
	list, err := statedir.List()
	if err != nil {
		return nil, fmt.Errorf("list the gates: %w", err)
	}
	gates := make([]gate, len(list))
	var wg sync.WaitGroup
	for i, g := range list {
		gates[i] = gate{PID: g.PID, StateDir: g.StateDir}
		wg.Go(func() {
			info, err := ask(ctx, statedir.Socket(g.StateDir))
			if err == nil {
				gates[i].Name, gates[i].Network = info.Name, info.NetworkDriver.Driver
			}
		})
	}
	wg.Wait()
	return gates, nil
}

func ask(ctx context.Context, socket string) (api.Info, error) {
	c := client.New(client.Options{Socket: socket, Timeout: askPatience})
	defer c.CloseIdleConnections()
	return c.Info(ctx)
}

// describe lists gates in one line.
func describe(gates []gate) string {
	var all []string
	for _, g := range gates {
		name := g.Name
		if name == "" {
			name = "one without a name"
		}
		all = append(all, fmt.Sprintf("%s (pid %d, %s)", name, g.PID, g.StateDir))
	}
	return strings.Join(all, ", ")
}
