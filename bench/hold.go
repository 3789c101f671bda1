package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/gatekit/gatekit/bench/agent"
	"github.com/gatekit/gatekit/bench/meter"
)

const (
	// holdLimit is how long opening may take. What is open then is what counts.
	holdLimit = 20 * time.Second

	// backLimit is how long a gate may take to give all back.
	backLimit = 10 * time.Second

	// backSlack is how much memory it may keep, or a tenth of what it took.
	backSlack = 4 << 20
)

// hold is a measurement of many connections or flows that stay open.
type hold struct {
	row     string
	network string
	count   int
}

func (b *bench) holds() []hold {
	all := []hold{{"hold1000", "tcp", 1000}, {"hold10000", "tcp", 10_000}, {"flows10000", "udp", 10_000}}
	if b.Smoke {
		for i := range all {
			all[i].count /= 100
		}
	}
	return all
}

func (h hold) step(l link) step {
	// back is last: where it is the only one that fails, the others have figures.
	rows := []string{h.row + ".failed", h.row + ".time", h.row + ".memory"}
	return step{append(rows, h.row+".back"), func(ctx context.Context) error { return h.measure(ctx, l) }}
}

func (h hold) measure(ctx context.Context, l link) error {
	before, err := l.gate.usage()
	if err != nil {
		return err
	}
	target := agent.Target{To: l.manyTCP(), Network: h.network, Count: h.count, Duration: holdLimit}
	if h.network == "udp" {
		target.To = []netip.AddrPort{l.at(portUDP)}
	}
	held, err := l.client.Hold(ctx, target)
	if err != nil {
		return err
	}
	during, err := l.gate.usage()
	if err != nil {
		return err
	}
	l.b.add(h.row+".failed", float64(h.count-held.Open))
	if held.Open < h.count {
		// The time and the memory of fewer are not comparable.
		l.b.fail(fmt.Errorf("%d of %d opened: %s", held.Open, h.count, held.Reason), h.row+".time", h.row+".memory")
	} else {
		l.b.add(h.row+".time", held.Elapsed.Seconds())
		l.b.add(h.row+".memory", max(0, float64(during.Resident-before.Resident))/float64(held.Open)/1024)
	}
	if err := l.client.Release(ctx); err != nil {
		return err
	}
	took, err := givenBack(ctx, l.gate, before, during)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		l.b.fail(err, h.row+".back")
		return nil
	}
	l.b.add(h.row+".back", took.Seconds())
	return nil
}

// givenBack waits until the gate has closed all descriptors that it opened and
// holds hardly more memory than before, and returns how long that took.
func givenBack(ctx context.Context, g *gate, before, during meter.Usage) (time.Duration, error) {
	slack := max(backSlack, (during.Resident-before.Resident)/10)
	start := time.Now()
	for {
		now, err := g.usage()
		if err != nil {
			return 0, err
		}
		descriptors, memory := now.Descriptors-before.Descriptors, now.Resident-before.Resident
		took := time.Since(start)
		if descriptors <= 0 && memory <= slack {
			return took, nil
		}
		if took > backLimit {
			return 0, fmt.Errorf("%v after closing, %d descriptors are still open and %.1f MB more memory is held", backLimit, max(0, descriptors), float64(memory)/1e6)
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return 0, err
		}
	}
}
