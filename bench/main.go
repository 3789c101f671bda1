// Command bench compares gatekit with its peers on the machine, side by side in one
// run: the same work for each, in alternation and several rounds, and medians and
// ratios as a table.
//
//	bench                 outside of the site
//	  |- flags, programs, a directory, signals; warns of busy strangers
//	  `- bench inside     the first process of the site (package site)
//	       |- bench agent    on the host, serves and runs iperf3
//	       |- bench agent    on the host, is a client of forwarded ports
//	       |- bench agent    on the outside machine, is one from there
//	       `- GATE ...       one at a time, for one set of measurements
//	            `- bench agent   in the gate's child
//
// Agents (package agent) make the load (package load, iperf3). This process reads
// the results from the one inside, writes them as JSON, and makes tables and charts
// of them (packages report and chart). Nothing can hang it: each call to an agent
// has a limit of time, so has the whole run, and when that is over, or at Ctrl-C,
// the site is killed with all that is in it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/gatekit/gatekit/bench/agent"
	"github.com/gatekit/gatekit/bench/gates"
	"github.com/gatekit/gatekit/bench/report"
	"github.com/gatekit/gatekit/bench/site"
)

// options are what the flags say. They go to the process inside as JSON.
type options struct {
	Rounds   int
	Duration time.Duration // of each loop
	Stream   int           // seconds of each stream
	Calm     time.Duration // to wait for a calm machine, before each gate
	Timeout  time.Duration // of the whole run
	Rows     string        // a regular expression
	Peers    []string
	Paths    gates.Paths
	Docker   string // directory with an unpacked Docker
	Smoke    bool
	Out      string // directory of benchmarks.md; empty to write none
	Render   string // results to render instead of a run

	// Dir is the site's directory.
	Dir string
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	// These two are for bench itself.
	switch {
	case len(args) == 2 && args[0] == "agent":
		return agent.Run(args[1])
	case len(args) == 2 && args[0] == "inside":
		var o options
		if err := json.Unmarshal([]byte(args[1]), &o); err != nil {
			return err
		}
		return inside(context.Background(), o)
	}
	o, err := parse(args)
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	results, err := o.results()
	if err != nil {
		return err
	}
	return o.publish(results)
}

func parse(args []string) (options, error) {
	var o options
	var peers string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.Rounds, "rounds", 3, "how often everything is measured; medians are shown")
	flags.DurationVar(&o.Duration, "duration", time.Second, "how long each loop runs")
	flags.IntVar(&o.Stream, "stream", 2, "how many seconds each stream runs")
	flags.DurationVar(&o.Calm, "calm", 20*time.Second, "how long to wait for a calm machine before each gate of a round")
	flags.DurationVar(&o.Timeout, "timeout", 25*time.Minute, "when to give up")
	flags.StringVar(&o.Rows, "rows", "", "measure the rows whose names match this regular expression, as '^tcp' (default all)")
	flags.StringVar(&peers, "peers", gates.Slirp4netns+","+gates.Pasta, "peers to compare with, separated by commas; those that are missing are left out")
	flags.StringVar(&o.Paths.Gatekit, "gatekit", "bin/gatekit", "path of gatekit; built with the go command when it is not there")
	flags.StringVar(&o.Paths.RootlessKit, "rootlesskit", "", "path of rootlesskit (default: in PATH)")
	flags.StringVar(&o.Paths.Slirp4netns, "slirp4netns", "", "path of slirp4netns (default: in PATH)")
	flags.StringVar(&o.Paths.Pasta, "pasta", "", "path of pasta (default: in PATH)")
	flags.StringVar(&o.Docker, "docker", "bin/docker/bookworm", "directory with a Docker of scripts/docker-releases; where it is not there, the machine's is taken")
	flags.StringVar(&o.Out, "out", "", "directory of benchmarks.md, whose generated part, charts and results.json are written (default: none is)")
	flags.StringVar(&o.Render, "render", "", "results.json of an earlier run, to make tables and charts of instead of a new run")
	flags.BoolVar(&o.Smoke, "smoke", false, "one round of everything, as short as possible and with gatekit alone; fails when a figure is missing")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q; see bench -help", flags.Arg(0))
	}
	if o.Rounds < 1 || o.Duration <= 0 || o.Stream < 1 || o.Timeout <= 0 {
		return o, errors.New("-rounds, -duration, -stream and -timeout are more than 0")
	}
	if _, err := regexp.Compile(o.Rows); err != nil {
		return o, fmt.Errorf("-rows: %w", err)
	}
	if o.Out != "" && (o.Smoke || o.Rows != "") {
		return o, errors.New("-out is for runs of everything: leave it out with -smoke and -rows")
	}
	o.Peers = strings.FieldsFunc(peers, func(r rune) bool { return r == ',' })
	if o.Smoke {
		o.Rounds, o.Duration, o.Stream, o.Calm, o.Peers, o.Timeout = 1, 100*time.Millisecond, 1, 0, nil, 3*time.Minute
	}
	return o, nil
}

// results runs the benchmark, or reads what an earlier one found.
func (o options) results() (*report.Results, error) {
	if o.Render != "" {
		return report.Read(o.Render)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not done within %v", o.Timeout))
	defer cancel()
	// Every user has to reach it, and sockets below it need a short path.
	dir, err := os.MkdirTemp("/tmp", "gatekit-bench-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir) // nothing is in it out here
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	o.Dir = dir
	if o.Docker, err = filepath.Abs(o.Docker); err != nil {
		return nil, err
	}
	if o.Paths.Gatekit, err = o.findGatekit(ctx); err != nil {
		return nil, err
	}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	strangers := watchStrangers(watching)
	var out strings.Builder
	err = site.Enter(ctx, site.Options{
		Gatekit: o.Paths.Gatekit,
		Dir:     dir,
		Args:    []string{"inside", string(text)},
		Stdout:  &out,
		Stderr:  os.Stderr,
	})
	unwatch()
	if err != nil {
		return nil, err
	}
	results := &report.Results{}
	if err := json.Unmarshal([]byte(out.String()), results); err != nil {
		return nil, fmt.Errorf("read the results: %w", err)
	}
	results.Warnings = append(results.Warnings, <-strangers...)
	return results, nil
}

// findGatekit returns the absolute path of gatekit, and builds it where it is
// missing.
func (o options) findGatekit(ctx context.Context) (string, error) {
	path, err := filepath.Abs(o.Paths.Gatekit)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		return path, err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", path, "./cmd/gatekit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s is not there, and cannot be built: %w: %s", o.Paths.Gatekit, err, strings.TrimSpace(string(out)))
	}
	return path, nil
}
