package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/gatekit/gatekit/bench/agent"
	"github.com/gatekit/gatekit/bench/gates"
	"github.com/gatekit/gatekit/bench/site"
)

var localhost = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// runLoopback measures the limit: client and server on the host, without a gate.
func (b *bench) runLoopback(ctx context.Context) error {
	direct := link{b: b, client: b.client, server: b.host, addr: site.HostAddr}
	steps := append(direct.outward(), direct.scale(b.round)...)
	return b.run(ctx, steps)
}

// part is what is measured with one start of a gate.
type part struct {
	mtu      int
	forwards bool
	steps    func(*gate) []step
}

// parts are what is measured of every gate in this round. A gate is started anew for
// each, so that no part has to do with what an earlier one left in memory.
func (b *bench) parts() []part {
	out := func(running *gate) link {
		return link{b: b, client: running.child, server: b.host, addr: site.HostAddr, gate: running}
	}
	parts := []part{
		{1500, false, func(running *gate) []step {
			l := out(running)
			return append([]step{running.idleStep()}, append(l.outward(), l.scale(b.round)...)...)
		}},
		{65520, false, func(running *gate) []step {
			l := out(running)
			return []step{
				l.streamStep(1, false, "tcp65520.out", "cpu65520.out", ""),
				l.streamStep(1, true, "tcp65520.in", "cpu65520.in", ""),
			}
		}},
		{1500, true, func(running *gate) []step {
			here := link{b: b, client: b.client, server: running.child, addr: localhost, offset: forwarded, gate: running}
			there := here
			there.client, there.addr = b.outside, site.HostAddr
			return append(here.forwardedHere(), there.forwardedThere()...)
		}},
	}
	if b.round == 1 { // takes long, and varies little
		for _, h := range b.holds() {
			parts = append(parts, part{1500, false, func(running *gate) []step { return []step{h.step(out(running))} }})
		}
	}
	return parts
}

// runGate measures one gate.
func (b *bench) runGate(ctx context.Context, g gates.Gate) error {
	start := step{[]string{"start.true"}, func(ctx context.Context) error { return b.measureStart(ctx, g) }}
	if err := b.run(ctx, []step{start}); err != nil {
		return err
	}
	for _, p := range b.parts() {
		if err := b.runPart(ctx, g, p); err != nil {
			return err
		}
	}
	if g.Name == gates.Gatekit {
		return b.runCard(ctx)
	}
	return nil
}

// runPart measures one part. After a step that cost the gate its agent, the gate is
// started again for the others.
func (b *bench) runPart(ctx context.Context, g gates.Gate, p part) error {
	for done := 0; ; {
		var rows []string
		// A gate that is never started says which steps there are.
		steps := p.steps(&gate{b: b})
		for _, s := range steps[done:] {
			rows = append(rows, s.rows...)
		}
		if done == len(steps) || !b.wants(rows...) {
			return nil
		}
		running, err := b.start(ctx, g, p.mtu, p.forwards)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			b.fail(fmt.Errorf("start: %w", err), rows...)
			return nil
		}
		for _, s := range p.steps(running)[done:] {
			done++
			if err = b.run(ctx, []step{s}); err != nil || running.child.Dead() {
				break
			}
		}
		running.stop()
		if err != nil {
			return err
		}
	}
}

// measureStart times a gate whose command is true. It is started several times in
// each round, since one start takes little.
func (b *bench) measureStart(ctx context.Context, g gates.Gate) error {
	times := 7
	if b.Smoke {
		times = 1
	}
	for range times {
		start := time.Now()
		p, err := b.site.Start(site.Host, g.Command(b.work(1500, false, "true"))...)
		if err != nil {
			return err
		}
		select {
		case <-p.Ended:
		case <-ctx.Done():
			p.Stop(stopLimit)
			return context.Cause(ctx)
		case <-time.After(startLimit):
			p.Stop(stopLimit)
			return fmt.Errorf("it did not end within %v", startLimit)
		}
		took := time.Since(start)
		reap()
		if err := p.Err(); err != nil {
			return err
		}
		b.add("start.true", took.Seconds()*1e3)
	}
	return nil
}

// idleStep measures a gate that has nothing to do, some time after its start.
func (g *gate) idleStep() step {
	settle, watch := 1500*time.Millisecond, 2*time.Second
	if g.b.Smoke {
		settle, watch = 500*time.Millisecond, 500*time.Millisecond
	}
	return step{[]string{"idle.memory", "idle.wakeups"}, func(ctx context.Context) error {
		if err := wait(ctx, settle); err != nil {
			return err
		}
		before, err := g.usage()
		if err != nil {
			return err
		}
		start := time.Now()
		if err := wait(ctx, watch); err != nil {
			return err
		}
		after, err := g.usage()
		if err != nil {
			return err
		}
		g.b.add("idle.memory", float64(after.Resident)/1e6)
		g.b.add("idle.wakeups", float64(after.Switches-before.Switches)/time.Since(start).Seconds())
		return nil
	}}
}

// scale are the steps that show what round trips cost with ever more connections
// at the same time; in the first round alone.
func (l link) scale(round int) []step {
	if round > 1 {
		return nil
	}
	var steps []step
	for _, n := range []int{1, 10, 100, 1000} {
		row := fmt.Sprintf("scale%d", n)
		rows := []string{row + ".rate"}
		if l.gate != nil {
			rows = append(rows, row+".cpu")
		}
		steps = append(steps, step{rows, func(ctx context.Context) error {
			before, err := l.cost()
			if err != nil {
				return err
			}
			trips, err := l.client.TripsAtOnce(ctx, agent.Target{To: l.manyTCP(), Count: n, Duration: l.b.Duration})
			if err != nil {
				return err
			}
			after, err := l.cost()
			if err != nil {
				return err
			}
			if trips.Lost > 0 || trips.Count == 0 {
				return fmt.Errorf("%d of %d connections got no answer", trips.Lost, n)
			}
			l.b.add(row+".rate", trips.Rate())
			if l.gate != nil {
				l.b.add(row+".cpu", float64((after.gate-before.gate).Microseconds())/float64(trips.Count))
			}
			return nil
		}})
	}
	return steps
}
