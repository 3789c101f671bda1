package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gatekit/gatekit/bench/agent"
	"github.com/gatekit/gatekit/bench/gates"
	"github.com/gatekit/gatekit/bench/site"
)

var localhost = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// part is what is measured of all subjects, one after the other, before the next part.
type part struct {
	name string

	// start starts a gate for the steps; nil where they start what they measure. A gate
	// is started anew for each part, so that none has to do with what an earlier one
	// left in memory.
	start func(context.Context, gates.Gate) (*gate, error)

	// steps are those of a gate; none where it has no share in the part. They may be
	// asked for with a gate that does not run, to see their rows.
	steps func(*gate) []step

	// limit are the steps without a gate, client and server both on the host.
	limit []step
}

// parts are what is measured in this round.
func (b *bench) parts() []part {
	direct := link{b: b, client: b.client, server: b.host, addr: site.HostAddr}
	out := func(running *gate) link {
		l := direct
		l.client, l.gate = running.child, running
		return l
	}
	parts := []part{
		{name: "start", steps: func(g *gate) []step {
			return []step{{[]string{"start.true"}, func(ctx context.Context) error { return b.measureStart(ctx, g.of) }}}
		}},
		{name: "network", start: b.starter(1500, false),
			steps: func(g *gate) []step { return slices.Concat([]step{g.idleStep()}, out(g).outward(), out(g).scale()) },
			limit: slices.Concat(direct.outward(), direct.scale()),
		},
		{name: "network of MTU 65520", start: b.starter(65520, false), steps: func(g *gate) []step {
			return []step{
				out(g).streamStep(1, false, "tcp65520.out", "cpu65520.out", ""),
				out(g).streamStep(1, true, "tcp65520.in", "cpu65520.in", ""),
			}
		}},
		{name: "forwards", start: b.starter(1500, true), steps: func(g *gate) []step {
			here := link{b: b, client: b.client, server: g.child, addr: localhost, offset: forwarded, gate: g}
			there := here
			there.client, there.addr = b.outside, site.HostAddr
			return append(here.forwardedHere(), there.forwardedThere()...)
		}, limit: direct.forwardedFloods()},
		{name: "network card", steps: b.cardSteps},
		{name: "Docker", start: b.startDocker, steps: b.dockerSteps},
	}
	if b.round == 1 { // takes long
		for _, h := range b.holds() {
			parts = append(parts, part{name: h.row, start: b.starter(1500, false),
				steps: func(g *gate) []step { return []step{h.step(out(g))} }})
		}
	}
	return parts
}

// starter starts gates with an agent inside.
func (b *bench) starter(mtu int, forwards bool) func(context.Context, gates.Gate) (*gate, error) {
	return func(ctx context.Context, g gates.Gate) (*gate, error) { return b.start(ctx, g, mtu, forwards) }
}

// runPart measures one part of a gate. After a step that cost the gate its agent, the
// gate is started again for the others.
func (b *bench) runPart(ctx context.Context, g gates.Gate, p part) error {
	steps := p.steps(&gate{b: b, of: g})
	if p.start == nil {
		return b.run(ctx, steps)
	}
	for done := 0; b.wants(rowsOf(steps[done:])...); {
		running, err := p.start(ctx, g)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			b.fail(fmt.Errorf("start: %w", err), rowsOf(steps[done:])...)
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
	return nil
}

// rowsOf are the rows to which the steps add figures.
func rowsOf(steps []step) []string {
	var rows []string
	for _, s := range steps {
		rows = append(rows, s.rows...)
	}
	return rows
}

// measureStart times a gate whose command is true. It is started several times in
// each round, since one start takes little.
func (b *bench) measureStart(ctx context.Context, g gates.Gate) error {
	times := 7
	if b.Smoke {
		times = 1
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("they did not end within %v", startLimit))
	defer cancel()
	for range times {
		start := time.Now()
		p, err := b.site.Start(site.Host, g.Command(b.work(1500, false, "true"))...)
		if err != nil {
			return err
		}
		err = finish(ctx, p)
		took := time.Since(start)
		reap()
		if err != nil {
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
// at the same time.
func (l link) scale() []step {
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
