package report

import (
	"fmt"
	"slices"
)

// Target is what gatekit aims at, as a ratio to another figure of the same run or
// as a figure of its own.
type Target struct {
	// Row is the row that it is about.
	Row string

	// AtMost is set where the figure is to be at most, not at least, the wanted
	// one.
	AtMost bool

	// Factor is by how much the figure of Against is multiplied, or the wanted
	// figure itself where Against is empty.
	Factor float64

	// Against is a subject, BestPeer, or empty.
	Against string

	// Called is what Against is called here; empty for its own name.
	Called string

	// AgainstRow is the row of the other figure; empty for the same one.
	AgainstRow string
}

// BestPeer stands for the best of all subjects but gatekit and the loopback.
const BestPeer = "the best peer"

const (
	gatekit     = "gatekit"
	slirp4netns = "slirp4netns"
	pasta       = "pasta"

	// rootlessKit forwards the ports where slirp4netns is the network.
	rootlessKit = "RootlessKit's builtin driver"

	// rootlessKitSlirp is what Docker runs on there.
	rootlessKitSlirp = "RootlessKit with slirp4netns"
)

// Targets returns what gatekit aims at.
func Targets() []Target {
	return []Target{
		{Row: "tcp1500.out", Factor: 10, Against: slirp4netns},
		{Row: "tcp1500.in", Factor: 5, Against: slirp4netns},
		{Row: "tcp1500.out", Factor: 0.40, Against: Loopback},
		{Row: "tcp1500.in", Factor: 0.50, Against: Loopback},
		{Row: "tcp65520.out", Factor: 1.3, Against: BestPeer},
		{Row: "tcp65520.in", Factor: 1.0, Against: BestPeer},
		{Row: "tcp1500.out", Factor: 0.85, Against: gatekit, AgainstRow: "tcp65520.out"},
		{Row: "tcp1500.in", Factor: 0.85, Against: gatekit, AgainstRow: "tcp65520.in"},
		{Row: "card.out", Factor: 0.97, Against: gatekit, AgainstRow: "plain.out"},
		{Row: "card.in", Factor: 0.97, Against: gatekit, AgainstRow: "plain.in"},
		{Row: "tcp.trips", Factor: 1.0, Against: BestPeer},
		{Row: "tcp.p99", AtMost: true, Factor: 1.0, Against: BestPeer},
		{Row: "udp.trips", Factor: 1.0, Against: BestPeer},
		{Row: "udp.p99", AtMost: true, Factor: 1.0, Against: BestPeer},
		{Row: "tcp.connect", Factor: 1.0, Against: BestPeer},
		{Row: "udp100.out", Factor: 1.2, Against: BestPeer},
		{Row: "udp1200.out", Factor: 1.2, Against: BestPeer},
		{Row: "cpu1500.out", AtMost: true, Factor: 1.0, Against: BestPeer},
		{Row: "cpu1500.in", AtMost: true, Factor: 1.0, Against: BestPeer},
		{Row: "cpu65520.out", AtMost: true, Factor: 1.0, Against: BestPeer},
		{Row: "cpu65520.in", AtMost: true, Factor: 1.0, Against: BestPeer},
		{Row: "hold10000.failed", AtMost: true, Factor: 0},
		{Row: "hold10000.time", AtMost: true, Factor: 1.0, Against: pasta},
		{Row: "hold10000.memory", AtMost: true, Factor: 25},
		{Row: "hold10000.back", AtMost: true, Factor: 10},
		{Row: "start.true", AtMost: true, Factor: 0.7, Against: slirp4netns},
		{Row: "idle.memory", AtMost: true, Factor: 35},
		{Row: "idle.wakeups", AtMost: true, Factor: 0},
		{Row: "forward.in", Factor: 1.5, Against: slirp4netns, Called: rootlessKit},
		{Row: "forward.out", Factor: 1.5, Against: slirp4netns, Called: rootlessKit},
		{Row: "forward.in", Factor: 0.6, Against: Loopback, AgainstRow: "tcp1500.out"},
		{Row: "forward.out", Factor: 0.6, Against: Loopback, AgainstRow: "tcp1500.in"},
		{Row: "forward.connect", Factor: 1.2, Against: slirp4netns, Called: rootlessKit},
		{Row: "forward.burst1200", Factor: 3, Against: slirp4netns, Called: rootlessKit},
		{Row: "remote.address", Factor: 1},
		{Row: "remote.in", Factor: 0.3, Against: Loopback, AgainstRow: "tcp1500.out"},
		{Row: "remote.out", Factor: 0.3, Against: Loopback, AgainstRow: "tcp1500.in"},
		{Row: "docker.out", Factor: 5, Against: slirp4netns, Called: rootlessKitSlirp},
		{Row: "docker.in", Factor: 1, Against: slirp4netns, Called: rootlessKitSlirp},
		{Row: "docker.address", Factor: 1},
	}
}

// Verdict is what became of a target.
type Verdict struct {
	Target
	row Row

	// Known is false where a figure is missing, as when a peer is not on the
	// machine.
	Known bool

	// Reached is gatekit's figure, Wanted the one that it should have.
	Reached, Wanted float64

	// Other names whom it is compared with, the best peer by its name.
	Other string

	// Ratio is Reached to the other figure; 0 without one.
	Ratio float64

	// Reason says why Known is false.
	Reason string
}

// Met reports whether the target was reached.
func (v Verdict) Met() bool {
	if !v.Known {
		return false
	}
	if v.AtMost {
		return v.Reached <= v.Wanted
	}
	return v.Reached >= v.Wanted
}

// Judge compares gatekit's medians with the target.
func (r *Results) Judge(t Target) Verdict {
	v := Verdict{Target: t, row: rowOf(t.Row), Other: t.Against}
	var ok bool
	if v.Reached, ok = r.Median(t.Row, gatekit); !ok {
		v.Reason = "not measured"
		if len(r.failed(t.Row, gatekit)) > 0 {
			v.Reason = "**failed**, see the end"
		}
		return v
	}
	if t.Against == "" {
		v.Known, v.Wanted = true, t.Factor
		return v
	}
	row := t.AgainstRow
	if row == "" {
		row = t.Row
	}
	other, ok := 0.0, false
	if t.Against == BestPeer {
		v.Other, other, ok = r.best(row, v.row.Lower)
	} else {
		other, ok = r.Median(row, t.Against)
	}
	if !ok {
		v.Reason = fmt.Sprintf("no figure of %s", t.Against)
		return v
	}
	v.Known, v.Wanted = true, t.Factor*other
	if other != 0 {
		v.Ratio = v.Reached / other
	}
	return v
}

// best is the best peer in a row and its median.
func (r *Results) best(row string, lower bool) (name string, best float64, ok bool) {
	for _, s := range r.Subjects {
		if s.Name == gatekit || s.Name == Loopback {
			continue
		}
		median, measured := r.Median(row, s.Name)
		if measured && (!ok || lower && median < best || !lower && median > best) {
			name, best, ok = s.Name, median, true
		}
	}
	return name, best, ok
}

func rowOf(id string) Row {
	for _, g := range Groups() {
		if i := slices.IndexFunc(g.Rows, func(r Row) bool { return r.ID == id }); i >= 0 {
			return g.Rows[i]
		}
	}
	return Row{ID: id, Title: id}
}
