package parent

// The parts of a gate, in the order in which they are started. Each is a Run(ctx)
// in the errgroup of supervise, and ends the gate when it ends before it was asked
// to.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/gatekit/gatekit/internal/handshake"
	"github.com/gatekit/gatekit/internal/trail"
	"github.com/gatekit/gatekit/pkg/api/server"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/port"
	"github.com/gatekit/gatekit/pkg/port/auto"
)

// mapIDs maps the child's ids and tells it so.
func (g *gate) mapIDs(ctx context.Context) error {
	if err := g.child.withPID(func(pid int) error { return g.ids.write(ctx, pid) }); err != nil {
		if ctx.Err() != nil {
			return nil // the end of the gate, not its cause
		}
		return explainNamespaces(err, "/proc")
	}
	g.o.Logger.Debug("ids are mapped", "uids", g.ids.uid, "gids", g.ids.gid)
	return g.session.send(handshake.KindMapped, nil)
}

// attach has a driver put its interface into the network namespace, if it is one that
// does.
func (g *gate) attach(ctx context.Context) error {
	a, ok := g.o.Network.(network.Attacher)
	if !ok {
		return nil
	}
	thread := g.child.Pid
	if g.o.DetachNetNS {
		select {
		case <-g.session.detached:
		case <-g.session.done:
			return nil // watch tells why
		case <-ctx.Done():
			return nil
		}
		var err error
		if thread, err = g.child.detachedThread(); err != nil {
			return err
		}
	}
	return a.Attach(ctx, thread)
}

// startNetwork runs the network driver on the files that the child hands up,
// and waits until it carries traffic.
func (g *gate) startNetwork(ctx context.Context, parts *errgroup.Group) error {
	var m handshake.Message
	select {
	case m = <-g.session.network:
	case <-ctx.Done():
		return nil
	}
	ready := make(chan struct{})
	parts.Go(func() error {
		err := g.o.Network.Run(ctx, m.Files, sync.OnceFunc(func() { close(ready) }))
		return partError(ctx, "network "+g.o.Network.Info().Driver, err)
	})
	select {
	case <-ready:
		g.o.Logger.Debug("the network carries traffic", "driver", g.o.Network.Info().Driver)
	case <-ctx.Done():
		return nil
	}
	if plan := g.o.Network.Plan(); plan.DHCP {
		return rewrite(g.dir.ResolvConf(), resolvConf(plan))
	}
	return nil
}

// follower is what a network driver may implement whose plan changes, in its
// search domains and options. Follow calls changed when the host's resolver
// configuration has changed, and returns when ctx is done.
type follower interface {
	Follow(ctx context.Context, changed func(network.Plan))
}

// followPlan keeps resolv.conf as the plan is, once the child takes messages.
func (g *gate) followPlan(ctx context.Context, parts *errgroup.Group) {
	f, ok := g.o.Network.(follower)
	if !ok {
		return
	}
	parts.Go(func() error {
		f.Follow(ctx, func(plan network.Plan) {
			err := rewrite(g.dir.ResolvConf(), resolvConf(plan))
			if err == nil {
				// The host may have put another file in its place.
				err = g.session.send(handshake.KindRebind, nil)
			}
			if err != nil && !errors.Is(err, errChildGone) {
				g.o.Logger.Warn("the namespace's resolv.conf is not up to date", "error", err)
			}
		})
		return nil
	})
}

// followHosts keeps our hosts file in its place inside, when the host puts another
// file in the place of its own.
func (g *gate) followHosts(ctx context.Context, parts *errgroup.Group) {
	if g.o.mounts(g.dir).Hosts == "" {
		return
	}
	parts.Go(func() error {
		trail.Follow(ctx, hostsPath, g.o.Logger, func() {
			if err := g.session.send(handshake.KindRebind, nil); err != nil && !errors.Is(err, errChildGone) {
				g.o.Logger.Warn("the namespace's hosts file may be the host's", "error", err)
			}
		})
		return nil
	})
}

// socketUser is what a network driver may implement that needs sockets of the
// namespace to open flows to the services behind forwards (slirp's Connect).
type socketUser interface{ UseSockets(port.Sockets) }

// startPorts runs the port driver and puts the first forwards in place.
func (g *gate) startPorts(ctx context.Context, parts *errgroup.Group) error {
	if !g.o.forwardsPorts() || ctx.Err() != nil {
		return nil
	}
	if n, ok := g.o.Network.(socketUser); ok {
		n.UseSockets(g.session)
	}
	g.ports = g.o.newPorts(g.session)
	parts.Go(func() error {
		return partError(ctx, "port driver "+g.ports.Info().Driver, g.ports.Run(ctx))
	})
	g.ledger = newLedger(g.ports, g.dir.Ports(), g.o.Logger)
	again, err := g.ledger.start(ctx, g.o.Publish, g.o.RestorePorts)
	if err != nil {
		return err
	}
	g.auto = auto.New(auto.Options{Driver: g.ports, Sockets: g.session, Logger: g.o.Logger})
	parts.Go(func() error { return partError(ctx, "automatic forwards", g.auto.Run(ctx)) })
	switch {
	case g.o.PublishAuto:
		return g.autoPorts(ctx, true)
	case again:
		if err := g.autoPorts(ctx, true); err != nil && ctx.Err() == nil {
			g.o.Logger.Warn("automatic forwards cannot be restored", "error", err)
		}
	}
	return nil
}

// autoPorts turns automatic forwards on or off, also for the next gate.
func (g *gate) autoPorts(ctx context.Context, on bool) error {
	turn := g.auto.Disable
	if on {
		turn = g.auto.Enable
	}
	if err := turn(ctx); err != nil {
		return err
	}
	g.ledger.setAuto(on)
	return nil
}

// startAPI listens on api.sock and serves it.
func (g *gate) startAPI(ctx context.Context, parts *errgroup.Group) error {
	listener, err := server.Listen(g.dir.Socket())
	if err != nil {
		return err
	}
	api := server.New(server.Options{
		Gate:   facade{g},
		Logger: g.o.Logger,
		UIDs:   []uint32{uint32(os.Geteuid()), g.ids.root(), 0},
	})
	parts.Go(func() error { return partError(ctx, "API", serve(ctx, api, listener)) })
	return nil
}

func serve(ctx context.Context, api *server.Server, l net.Listener) error {
	defer l.Close()
	return api.Run(ctx, l)
}

// partError makes the end of a part that was not asked to end an error.
func partError(ctx context.Context, part string, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("stopped")
	}
	return fmt.Errorf("%s: %w", part, err)
}
