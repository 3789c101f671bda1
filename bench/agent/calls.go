package agent

import (
	"context"
	"time"

	"github.com/gatekit/gatekit/bench/load"
)

// slack is what a call may take beyond the time of its work.
const slack = 15 * time.Second

// limited calls a method whose work takes about d.
func limited[Reply any](ctx context.Context, a *Agent, d time.Duration, method string, args any) (Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, d+slack)
	defer cancel()
	return call[Reply](ctx, a, method, args)
}

// Serve has the agent run a load.Server for the rest of its life.
func (a *Agent) Serve(ctx context.Context, o load.ServerOptions) error {
	_, err := limited[None](ctx, a, 0, "Serve", o)
	return err
}

// Seen tells what the agent's server has seen; see Service.Seen.
func (a *Agent) Seen(ctx context.Context) (Seen, error) {
	return limited[Seen](ctx, a, 0, "Seen", None{})
}

// Forget has the sink of the agent's server count from 0.
func (a *Agent) Forget(ctx context.Context) error {
	_, err := limited[None](ctx, a, 0, "Forget", None{})
	return err
}

// Trips does round trips, by t.Network, with the first address; see load.Trips.
func (a *Agent) Trips(ctx context.Context, t Target) (load.Trips, error) {
	return limited[load.Trips](ctx, a, t.Duration, "Trips", t)
}

// TripsAtOnce does round trips over t.Count connections at the same time.
func (a *Agent) TripsAtOnce(ctx context.Context, t Target) (load.Trips, error) {
	return limited[load.Trips](ctx, a, t.Duration, "TripsAtOnce", t)
}

// Connect opens, uses and closes connections from t.Count workers.
func (a *Agent) Connect(ctx context.Context, t Target) (load.Connections, error) {
	return limited[load.Connections](ctx, a, t.Duration, "Connect", t)
}

// Flood sends datagrams of t.Size, in bursts of t.Burst, to the first address.
func (a *Agent) Flood(ctx context.Context, t Target) (load.Flooded, error) {
	return limited[load.Flooded](ctx, a, t.Duration, "Flood", t)
}

// Hold opens t.Count connections or flows within t.Duration and keeps them open
// until Release.
func (a *Agent) Hold(ctx context.Context, t Target) (Held, error) {
	return limited[Held](ctx, a, t.Duration, "Hold", t)
}

// Release closes what Hold opened.
func (a *Agent) Release(ctx context.Context) error {
	_, err := limited[None](ctx, a, 0, "Release", None{})
	return err
}

// Execute runs a program where the agent is, for p.Limit at most, and returns what
// it wrote.
func (a *Agent) Execute(ctx context.Context, p Program) ([]byte, error) {
	return limited[[]byte](ctx, a, p.Limit, "Execute", p)
}

// Start starts a program where the agent is and waits, for p.Limit at most, until
// it wrote p.Until. It ends with the next Start, or with the agent.
func (a *Agent) Start(ctx context.Context, p Program) error {
	_, err := limited[None](ctx, a, p.Limit, "Start", p)
	return err
}
