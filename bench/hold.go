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
	holdLimit = 30 * time.Second

	// warmUp is how many are opened and closed beforehand.
	warmUp = 10

	// settle is how long a gate is left alone before its descriptors and memory are
	// read: gatekit watches the host's files after its first second only.
	settle = 2 * time.Second

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
	return step{
		rows:    []string{h.row + ".failed", h.row + ".time", h.row + ".memory", h.rowAfter()},
		measure: func(ctx context.Context) error { return h.measure(ctx, l) },
	}
}

// rowAfter is the row of what remains after closing. Nobody tells a gate that a
// flow of UDP has ended, so for those only what is left is counted.
func (h hold) rowAfter() string {
	if h.network == "udp" {
		return h.row + ".left"
	}
	return h.row + ".back"
}

func (h hold) measure(ctx context.Context, l link) error {
	target := agent.Target{To: l.manyTCP(), Network: h.network, Count: warmUp, Duration: holdLimit}
	if h.network == "udp" {
		target.To = []netip.AddrPort{l.at(portUDP)}
	}
	// What a gate opens and allocates once is not to be counted.
	if _, err := l.client.Hold(ctx, target); err != nil {
		return err
	}
	if err := l.client.Release(ctx); err != nil {
		return err
	}
	if err := wait(ctx, settle); err != nil {
		return err
	}
	before, err := l.gate.usage()
	if err != nil {
		return err
	}
	target.Count = h.count
	held, err := l.client.Hold(ctx, target)
	if err != nil {
		return err
	}
	during, err := l.gate.usage()
	if err != nil {
		return err
	}
	l.b.add(h.row+".failed", float64(h.count-held.Open))
	if held.Open < h.count-h.count/100 {
		// The time and the memory of fewer are not comparable.
		l.b.fail(fmt.Errorf("%d of %d opened: %s", held.Open, h.count, held.Reason), h.row+".time", h.row+".memory")
	} else {
		l.b.add(h.row+".time", held.Elapsed.Seconds())
		l.b.add(h.row+".memory", max(0, float64(during.Resident-before.Resident))/float64(held.Open)/1024)
	}
	if err := l.client.Release(ctx); err != nil {
		return err
	}
	after, err := givenBack(ctx, l.gate, before, during)
	switch {
	case err != nil:
		return err
	case h.network == "udp":
		l.b.add(h.rowAfter(), float64(after.descriptors))
	case after.all:
		l.b.add(h.rowAfter(), after.elapsed.Seconds())
	default:
		l.b.fail(fmt.Errorf("%v after closing, %d descriptors are still open and %.1f MB more memory is held",
			backLimit, after.descriptors, float64(after.memory)/1e6), h.rowAfter())
	}
	return nil
}

// afterwards is what a gate has more than before.
type afterwards struct {
	all         bool // was given back
	elapsed     time.Duration
	descriptors int
	memory      int64
}

// givenBack waits until the gate has closed all descriptors that it opened and
// holds hardly more memory than before, or until backLimit is over.
func givenBack(ctx context.Context, g *gate, before, during meter.Usage) (afterwards, error) {
	slack := max(backSlack, (during.Resident-before.Resident)/10)
	limit := backLimit
	if g.b.Smoke {
		limit = time.Second
	}
	start := time.Now()
	for {
		now, err := g.usage()
		if err != nil {
			return afterwards{}, err
		}
		a := afterwards{
			elapsed:     time.Since(start),
			descriptors: max(0, now.Descriptors-before.Descriptors),
			memory:      now.Resident - before.Resident,
		}
		a.all = a.descriptors == 0 && a.memory <= slack
		if a.all || a.elapsed > limit {
			return a, nil
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return afterwards{}, err
		}
	}
}
