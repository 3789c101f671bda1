package network

import (
	"context"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
)

// simple is a driver without an engine: host (the host's network namespace) and
// none (a namespace with nothing but loopback).
type simple struct {
	plan Plan
}

// Host returns the driver that leaves the command in the host's network
// namespace.
func Host() Driver { return simple{Plan{Driver: "host"}} }

// None returns the driver that gives the command a network namespace with
// nothing but a loopback interface that is up.
func None() Driver { return simple{Plan{Driver: "none", Namespace: true}} }

func (s simple) Plan() Plan { return s.plan }
func (s simple) Info() Info { return Info{Driver: s.plan.Driver} }

// Run closes the files, of which there should be none, and waits for ctx.
func (s simple) Run(ctx context.Context, files []*os.File, ready func()) error {
	for _, f := range files {
		f.Close()
	}
	ready()
	<-ctx.Done()
	return nil
}

// SetupHost is the child half of Host: there is nothing to do.
func SetupHost(Plan) ([]*os.File, error) { return nil, nil }

// SetupNone is the child half of None: it brings the loopback interface up.
func SetupNone(Plan) ([]*os.File, error) { return nil, LoopbackUp() }

// LoopbackUp brings up the loopback interface of the calling thread's network
// namespace, where it starts down; the kernel gives it its addresses.
func LoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}
