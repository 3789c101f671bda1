package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/bench/agent"
	"github.com/gatekit/gatekit/bench/gates"
	"github.com/gatekit/gatekit/bench/load"
	"github.com/gatekit/gatekit/bench/meter"
	"github.com/gatekit/gatekit/bench/report"
	"github.com/gatekit/gatekit/bench/site"
)

// The ports of the servers, in the child and on the host: each network namespace
// is the benchmark's own. A forward's port on the host is above its port in the
// child by forwarded.
const (
	portTCP    = 7000 // and the next connectPorts-1
	portUDP    = 7010
	portSink   = 7011
	portStream = 7020

	connectPorts = 8
	forwarded    = 1000
)

// bench is a run of the benchmark, inside the site.
type bench struct {
	options
	rows    *regexp.Regexp
	site    *site.Site
	self    string        // path of this program for the site's user
	iperf3  string        // path of that program
	agents  int           // how many were started
	docker  *gates.Docker // nil where it is left out
	results report.Results

	// host serves on the host, client is a client there, outside one on the other
	// machine.
	host, client, outside *agent.Agent

	round   int
	subject string // that is being measured
}

// inside runs the benchmark and writes the results to stdout.
func inside(ctx context.Context, o options) error {
	s, err := site.Open(o.Dir)
	if err != nil {
		return fmt.Errorf("make the site: %w", err)
	}
	defer s.Close()
	b := &bench{options: o, site: s}
	if b.rows, err = regexp.Compile(o.Rows); err != nil {
		return err
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	var version string
	if b.iperf3, version, err = gates.Look(ctx, "iperf3"); err != nil {
		return err
	}
	b.results.Tools = []report.Subject{{Name: "iperf3", Version: version}}
	found, missing := gates.Find(ctx, b.Paths, append([]string{gates.Gatekit}, b.Peers...)...)
	if len(found) == 0 || found[0].Name != gates.Gatekit {
		return missing[0]
	}
	for _, err := range missing {
		b.leaveOut(err)
	}
	if err := b.findDocker(ctx); err != nil {
		return err
	}
	if err := b.describe(found); err != nil {
		return err
	}
	for b.round = 1; b.round <= b.Rounds; b.round++ {
		if err := b.runRound(ctx, found); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(b.results)
}

// prepare installs the programs and starts the agents that stay.
func (b *bench) prepare(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if b.self, err = b.site.Install(self); err != nil {
		return err
	}
	if b.Paths.Gatekit, err = b.site.Install(b.Paths.Gatekit); err != nil {
		return err
	}
	for _, a := range []struct {
		agent **agent.Agent
		where site.Where
	}{{&b.host, site.Host}, {&b.client, site.Host}, {&b.outside, site.Outside}} {
		socket, listener, err := b.listen()
		if err != nil {
			return err
		}
		process, err := b.site.Start(a.where, b.self, "agent", socket)
		if err != nil {
			return err
		}
		if *a.agent, err = awaitAgent(ctx, listener, process); err != nil {
			return err
		}
	}
	return serve(ctx, b.host)
}

// serve has an agent serve on all ports.
func serve(ctx context.Context, a *agent.Agent) error {
	o := load.ServerOptions{UDP: portUDP, Sink: portSink}
	for i := range connectPorts {
		o.TCP = append(o.TCP, uint16(portTCP+i))
	}
	return a.Serve(ctx, o)
}

// leaveOut notes that something is not measured, and why.
func (b *bench) leaveOut(reason error) {
	fmt.Fprintln(os.Stderr, "bench: left out:", reason)
	b.results.LeftOut = append(b.results.LeftOut, strings.ReplaceAll(reason.Error(), "\n", "; "))
}

// describe notes what is measured, and on what.
func (b *bench) describe(found []gates.Gate) (err error) {
	b.results.Taken = time.Now().UTC().Truncate(time.Second)
	b.results.Rounds = b.Rounds
	b.results.LoopSeconds, b.results.StreamSeconds = b.Duration.Seconds(), float64(b.Stream)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("getrlimit(RLIMIT_NOFILE): %w", err)
	}
	b.results.Descriptors = limit.Max
	b.results.Subjects = []report.Subject{{Name: report.Loopback}}
	for _, g := range found {
		b.results.Subjects = append(b.results.Subjects, report.Subject{Name: g.Name, Version: g.Version})
	}
	if b.Smoke {
		b.results.Warnings = []string{"it was too short for its figures to mean anything, and held a hundredth of the connections that it names"}
	}
	b.results.Machine, err = meter.ReadMachine("/proc")
	return err
}

// runRound measures everything once: part by part, so that figures of one row are taken
// soon after each other. Parts and rounds take turns in which subject comes first.
func (b *bench) runRound(ctx context.Context, found []gates.Gate) error {
	for n, p := range b.parts() {
		for i := range b.results.Subjects {
			i = (i + n + b.round - 1) % len(b.results.Subjects)
			b.subject = b.results.Subjects[i].Name
			steps, run := p.limit, func() error { return b.run(ctx, p.limit) }
			if i > 0 { // the subject is a gate
				g := found[i-1]
				steps, run = p.steps(&gate{b: b, of: g}), func() error { return b.runPart(ctx, g, p) }
			}
			if !b.wants(rowsOf(steps)...) {
				continue
			}
			fmt.Fprintf(os.Stderr, "bench: round %d of %d, %s: %s\n", b.round, b.Rounds, p.name, b.subject)
			if err := b.calm(ctx); err != nil {
				return err
			}
			if err := run(); err != nil {
				return fmt.Errorf("%s: %w", b.subject, err)
			}
		}
	}
	return nil
}

// calm waits for a calm machine, and warns when it does not come.
func (b *bench) calm(ctx context.Context) error {
	share, err := awaitCalm(ctx, b.Calm)
	if err != nil || share < busyShare {
		return err
	}
	warning := fmt.Sprintf("in round %d, before %s, the machine was %.0f %% busy with something else", b.round, b.subject, 100*share)
	b.results.Warnings = append(b.results.Warnings, warning)
	fmt.Fprintln(os.Stderr, "bench:", warning)
	return nil
}

// wants reports whether one of the rows is asked for.
func (b *bench) wants(rows ...string) bool {
	for _, row := range rows {
		if b.rows.MatchString(row) {
			return true
		}
	}
	return false
}

// add notes a figure of the subject.
func (b *bench) add(row string, figure float64) {
	if b.wants(row) {
		b.results.Add(row, b.subject, figure)
	}
}

// fail notes that there are no figures of the subject for these rows.
func (b *bench) fail(err error, rows ...string) {
	reason := strings.ReplaceAll(err.Error(), "\n", "; ")
	fmt.Fprintf(os.Stderr, "bench: %s, %v: %v\n", b.subject, rows, reason)
	for _, row := range rows {
		if b.wants(row) {
			b.results.Failures = append(b.results.Failures, report.Failure{Row: row, Subject: b.subject, Round: b.round, Reason: reason})
		}
	}
}
