package slirp

import (
	"context"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// What a service sends to a client comes to us by the namespace's default route. A
// namespace may have other routes: a VPN inside, a bridge with the client's network, a
// blackhole. A client who is behind one of these would wait for ever, so the kernel is
// asked, for each flow that is to be opened, where an answer would go: a question over a
// netlink socket of the namespace takes 2 microseconds. What comes to us has one of our
// addresses for its next hop, whatever the interface is: somebody inside may have made a
// bridge of it.
//
// That is the route of what the namespace itself sends. For what it passes on for a
// container the kernel asks again, with the container's interface and address; unless
// rules make a difference between the two (ip-rule(8)), the route is the same.

// openRoutes gets the socket by which the namespace's routes are asked for, if it is not
// there yet, and the files of tally. Without the socket every client is taken for one who
// can be answered.
func (n *Network) openRoutes(in *inbound) {
	if n.sockets == nil || !in.begin() {
		return
	}
	defer in.running.Done()
	in.asking.Do(func() {
		ctx, cancel := context.WithTimeout(in.ctx, openTimeout)
		defer cancel()
		files, err := n.sockets.Sockets(ctx, unix.AF_NETLINK, unix.SOCK_DGRAM, 1)
		if err == nil {
			in.routes.Store(linux.NewRoutes(files[0]))
		} else if in.ctx.Err() == nil {
			n.log.Warn("the namespace's routes are not known; a client to whom another one leads than the network's is not answered", "error", err)
		}
		if files, err = n.sockets.Sockets(ctx, unix.AF_UNSPEC, 0, tallyFiles); err == nil {
			in.tally.Store(newTally(files))
		} else if in.ctx.Err() == nil {
			n.log.Warn("what the namespace receives is not known; UDP that a firewall inside drops is lost", "error", err)
		}
	})
}

// answered says whether what a service answers to a client comes to us. What a guest of
// the namespace does is not known.
func (in *inbound) answered(client, service netip.Addr) bool {
	routes := in.routes.Load()
	if routes == nil || !service.IsLoopback() && service != in.subnets[family(service)].child {
		return true
	}
	via, err := routes.NextHop(service, client)
	if err != nil {
		return !errors.Is(err, linux.ErrNoRoute)
	}
	return isOurs(&in.subnets, via)
}
