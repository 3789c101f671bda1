package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/gatekit/gatekit/bench/agent"
	"github.com/gatekit/gatekit/bench/gates"
	"github.com/gatekit/gatekit/bench/site"
	"github.com/gatekit/gatekit/pkg/network/hostnic"
)

// A network card of the host's, which is one end of a veth pair here, in a gate and,
// for comparison, in a network namespace without one.

// cardSteps are what is measured of it, in gatekit alone: no peer lends cards. It is
// one step, for it starts both what it compares.
func (b *bench) cardSteps(g *gate) []step {
	if g.of.Name != gates.Gatekit {
		return nil
	}
	return []step{{rowsOf(append(b.cardStreams("card", nil), b.cardStreams("plain", nil)...)), b.measureCards}}
}

// cardStreams are the steps of one of them; row is "card" or "plain".
func (b *bench) cardStreams(row string, client *agent.Agent) []step {
	l := link{b: b, client: client, server: b.outside, addr: site.OutsideCardAddr}
	return []step{
		l.streamStep(1, false, row+".out", "", ""),
		l.streamStep(1, true, row+".in", "", ""),
	}
}

// measureCards measures both, in turns. There are several in each round, for one
// stream differs from the next by more than what is looked for.
func (b *bench) measureCards(ctx context.Context) error {
	if err := b.site.AddCard(); err != nil {
		return err
	}
	turns := 3
	if b.Smoke {
		turns = 1
	}
	both := []func(context.Context) error{b.runPlain, b.runCardGate}
	for i := range turns * len(both) {
		turn := i / len(both)
		if err := both[(i+turn+b.round)%len(both)](ctx); err != nil {
			return err
		}
	}
	return nil
}

// runPlain measures the card in the plain namespace.
func (b *bench) runPlain(ctx context.Context) (err error) {
	if err := b.site.CardToPlain(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.site.CardToHost()) }()
	return b.measureCard(ctx, "plain", site.Plain)
}

// runCardGate measures it in a gate.
func (b *bench) runCardGate(ctx context.Context) (err error) {
	dir := b.site.Path("card")
	err = hostnic.Create(ctx, hostnic.CreateOptions{
		Dir:       dir,
		Interface: site.CardName,
		Owner: hostnic.Owner{Name: "ada", UID: b.site.User.ID, GID: b.site.User.ID,
			MapIDs: func(_ context.Context, pid int) error { return mapIDs(b.site.User, pid) }},
	})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, hostnic.Destroy(context.WithoutCancel(ctx), hostnic.DestroyOptions{Dir: dir, Force: true}))
	}()
	w := b.work(0, false)
	return b.measureCard(ctx, "card", site.Host, b.Paths.Gatekit, "--net=hostnic", "--hostnic-dir="+dir, "--state-dir="+w.StateDir)
}

// mapIDs maps the ids of the user, as gatectl netns create does.
func mapIDs(u site.User, pid int) error {
	text := fmt.Appendf(nil, "0 %d 1\n1 %d %d\n", u.ID, u.First, u.Size)
	for _, file := range []string{"uid_map", "gid_map"} {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, file), text, 0); err != nil {
			return err
		}
	}
	return nil
}

// measureCard starts an agent by the program before it, and measures.
func (b *bench) measureCard(ctx context.Context, row string, where site.Where, before ...string) error {
	socket, listener, err := b.listen()
	if err != nil {
		return err
	}
	process, err := b.site.Start(where, append(before, b.self, "agent", socket)...)
	if err != nil {
		listener.Close()
		return err
	}
	defer reap()
	defer process.Stop(stopLimit)
	client, err := awaitAgent(ctx, listener, process)
	if err != nil {
		return err
	}
	defer client.Close()
	return b.run(ctx, b.cardStreams(row, client))
}
