package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gatekit/gatekit/bench/meter"
)

const (
	// busyShare is the share of all processors from which the machine is not calm.
	busyShare = 0.05

	// busyWindow is over how long that is measured.
	busyWindow = 500 * time.Millisecond
)

// awaitCalm waits until the machine is idle while nothing is measured, for the
// limit at most, and returns the share of its processors that were busy last.
func awaitCalm(ctx context.Context, limit time.Duration) (share float64, err error) {
	deadline := time.Now().Add(limit)
	for {
		before, err := meter.BusyTime("/proc")
		if err != nil {
			return 0, err
		}
		start := time.Now()
		if err := wait(ctx, busyWindow); err != nil {
			return 0, err
		}
		after, err := meter.BusyTime("/proc")
		if err != nil {
			return 0, err
		}
		share = (after - before).Seconds() / time.Since(start).Seconds() / float64(runtime.NumCPU())
		if share < busyShare || time.Now().After(deadline) {
			return share, nil
		}
	}
}

// wait waits for a time, or for the end of the context.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watchStrangers looks, until the context ends, for processes that are none of
// this program's and use much processor time, and says so at once on stderr. Then
// it tells of those that it saw.
func watchStrangers(ctx context.Context) <-chan []string {
	const every = 5 * time.Second
	told := make(chan []string, 1)
	go func() {
		seen := map[int]string{}
		before, _ := strangers()
		for wait(ctx, every) == nil {
			after, err := strangers()
			if err != nil {
				break
			}
			for pid, p := range after {
				used := p.CPU - before[pid].CPU
				if _, known := before[pid]; known && used > every/10 && seen[pid] == "" {
					seen[pid] = p.Name
					fmt.Fprintf(os.Stderr, "bench: a stranger is busy: %s (pid %d) used %v in %v\n", p.Name, pid, used, every)
				}
			}
			before = after
		}
		if len(seen) == 0 {
			told <- nil
			return
		}
		names := make([]string, 0, len(seen))
		for _, name := range seen {
			names = append(names, name)
		}
		slices.Sort(names)
		told <- []string{"other processes were busy meanwhile: " + strings.Join(slices.Compact(names), ", ")}
	}()
	return told
}

// strangers are the processes that are neither this one nor descend from it.
func strangers() (map[int]meter.Process, error) {
	all, err := meter.Processes("/proc")
	if err != nil {
		return nil, err
	}
	ours := meter.Below(all, os.Getpid())
	found := map[int]meter.Process{}
	for _, p := range all {
		if !slices.Contains(ours, p.PID) {
			found[p.PID] = p
		}
	}
	return found, nil
}
