package hostnic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network"
)

// Modes of lending a card.
const (
	// ModeMove lends the card itself.
	ModeMove = "move"

	// ModeMacvlan lends an interface beside the card, with an Ethernet address of
	// its own on the same network; the host keeps the card.
	ModeMacvlan = "macvlan"
)

// Owner is to whom a card is lent.
type Owner struct {
	// Name, UID and GID are the user's.
	Name     string
	UID, GID int

	// MapIDs maps the ids of a new user namespace that is the user's; pid is a
	// process in it.
	MapIDs func(ctx context.Context, pid int) error
}

// CreateOptions say what is lent to whom.
type CreateOptions struct {
	// Dir is where the namespaces are kept. It must not exist.
	Dir string

	// Interface is the name of the card.
	Interface string

	// Mode is ModeMove, also for "", or ModeMacvlan.
	Mode string

	// Owner is the user.
	Owner Owner

	// Addresses are those of the card inside. None are those that it has on the
	// host, with ModeMove.
	Addresses []netip.Prefix

	// DHCP asks for an address, a gateway and DNS servers instead. There must be no
	// Addresses and Gateways then.
	DHCP bool

	// Gateways are the next hops of the default routes inside, at most one of each
	// family. A family without one has the default routes by the card that the
	// host has.
	Gateways []netip.Addr

	// Nameservers are the DNS servers in the resolv.conf of gates. Empty are the
	// host's.
	Nameservers []netip.Addr

	// Search are the search domains there. Empty are the host's.
	Search []string

	// Force lends a card that the host depends on.
	Force bool

	// Logger takes warnings, and each step at debug level. Nil discards them.
	Logger *slog.Logger

	once bool // for one gate: see Around
}

// Create lends a card. When it returns an error, all is as it was: that of ctx if ctx
// was done. When it does not return, Destroy puts all back.
//
// The process may die between any two of its steps, and within each.
func Create(ctx context.Context, o CreateOptions) (err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Mode == "" {
		o.Mode = ModeMove
	}
	link, s, err := survey(&o)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.Dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		return err
	}
	c := creation{o: &o, state: s, link: link}
	defer func() {
		if c.holder != nil {
			err = errors.Join(err, c.holder.Close())
		}
		if err == nil {
			return
		}
		o.Logger.Debug("taking back what was done", "error", err)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		err = errors.Join(err, Destroy(context.WithoutCancel(ctx), DestroyOptions{Dir: o.Dir, Logger: o.Logger, held: c.lock}))
	}()
	err = runSteps(ctx, o.Logger, c.steps(ctx))
	if c.lock != nil && err == nil {
		err = c.lock.Close()
	}
	return err
}

// creation is a Create at work.
type creation struct {
	o      *CreateOptions
	state  *state
	link   netlink.Link
	lock   *os.File
	holder *linux.Holder
}

// step is one change, with a name for the log.
type step struct {
	name string
	do   func() error
}

// runSteps does one step after the other, until ctx is done.
func runSteps(ctx context.Context, log *slog.Logger, steps []step) error {
	for _, s := range steps {
		log.Debug("next step", "step", s.name)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.do(); err != nil {
			return err
		}
	}
	log.Debug("all steps are done")
	return nil
}

func (c *creation) path(name string) string { return filepath.Join(c.o.Dir, name) }

func (c *creation) steps(ctx context.Context) []step {
	return []step{
		{"lock the directory", c.takeLock},
		{"write the state", func() error { return c.state.write(c.o.Dir) }},
		{"name the directory on the disk", func() error { return syncDir(filepath.Dir(c.o.Dir)) }},
		{"make the namespaces", c.makeNamespaces},
		{"map the ids", func() error { return c.o.Owner.MapIDs(ctx, c.holder.PID) }},
		{"keep the user namespace", func() error { return c.keep("user", usernsFile) }},
		{"keep the network namespace", func() error { return c.keep("net", netnsFile) }},
		{"put the card inside", c.putInside},
		{"note its number", c.noteNumber},
		{"configure it", func() error { return c.configure(ctx) }},
		{"open the directory to the user", func() error { return openTo(c.o.Dir, c.o.Owner.UID) }},
		{"say that it is ready", func() error {
			c.state.Ready = true
			return c.state.write(c.o.Dir)
		}},
	}
}

func (c *creation) takeLock() error {
	f, err := os.OpenFile(c.path(lockFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	c.lock, err = lock(c.o.Dir, false)
	return err
}

func (c *creation) makeNamespaces() (err error) {
	c.holder, err = linux.NewHolder(c.o.Owner.UID, c.o.Owner.GID)
	if err != nil {
		return fmt.Errorf("make namespaces for %s: %w", c.o.Owner.Name, err)
	}
	return nil
}

// keep binds a namespace of the holder to a file.
func (c *creation) keep(kind, name string) error {
	f, err := os.OpenFile(c.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	return linux.Mount(c.holder.Namespace(kind), c.path(name), "", unix.MS_BIND, "")
}

// putInside moves the card, or makes one of its kind, in the network namespace. Both
// are one request to the kernel.
func (c *creation) putInside() error {
	ns, err := os.Open(c.path(netnsFile))
	if err != nil {
		return err
	}
	defer ns.Close()
	if c.o.Mode == ModeMove {
		return c.state.Card.lend(c.link, ns)
	}
	// The kernel's own name for the mode in which the interfaces of one card reach
	// each other.
	link := &netlink.Macvlan{
		LinkAttrs: netlink.LinkAttrs{
			Name:        c.state.Card.Name,
			ParentIndex: c.link.Attrs().Index,
			Namespace:   netlink.NsFd(int(ns.Fd())),
		},
		Mode: netlink.MACVLAN_MODE_BRIDGE,
	}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("make a macvlan of %s: %w", c.state.Card.Name, err)
	}
	return nil
}

// noteNumber has the state say what the card's number is inside.
func (c *creation) noteNumber() error {
	err := c.inside(func(link netlink.Link) error {
		c.state.Inside = link.Attrs().Index
		return nil
	})
	if err != nil {
		return err
	}
	return c.state.write(c.o.Dir)
}

// inside runs f in the network namespace, with the card.
func (c *creation) inside(f func(netlink.Link) error) error {
	ns, err := os.Open(c.path(netnsFile))
	if err != nil {
		return err
	}
	defer ns.Close()
	return linux.InNetwork(ns, func() error {
		link, err := netlink.LinkByName(c.state.Card.Name)
		if err != nil {
			return fmt.Errorf("find %s: %w", c.state.Card.Name, err)
		}
		return f(link)
	})
}

// configure gives the card inside its addresses and routes.
func (c *creation) configure(ctx context.Context) error {
	return c.inside(func(link netlink.Link) error {
		if err := network.LoopbackUp(); err != nil {
			return err
		}
		if c.o.DHCP {
			return c.configureDHCP(ctx, link)
		}
		if err := c.addAddresses(link); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", c.state.Card.Name, err)
		}
		if err := c.addRoutes(link); err != nil {
			return err
		}
		c.awaitReady(link.Attrs().Index)
		return nil
	})
}

// configureDHCP finds out whether there is a DHCP server. Gates ask it again.
func (c *creation) configureDHCP(ctx context.Context, link netlink.Link) error {
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", c.state.Card.Name, err)
	}
	l, err := acquire(ctx, link)
	if err != nil {
		return err
	}
	if err := l.apply(link); err != nil {
		return err
	}
	c.state.Addresses, c.state.Gateways, c.state.Release = []netip.Prefix{l.Address}, l.Gateways, l.release()
	if len(c.o.Nameservers) == 0 {
		c.state.Nameservers = l.Nameservers
	}
	if len(c.o.Search) == 0 {
		c.state.Search = l.Search
	}
	return nil
}

func (c *creation) addAddresses(link netlink.Link) error {
	if len(c.o.Addresses) == 0 {
		return c.state.Card.sayAddresses(link, time.Since(c.state.Made))
	}
	for _, a := range c.o.Addresses {
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
			return fmt.Errorf("add address %v to %s: %w", a, c.state.Card.Name, err)
		}
	}
	return nil
}

// addRoutes makes the routes of the main table that the card had, and the default
// routes that were asked for in place of its own.
func (c *creation) addRoutes(link netlink.Link) error {
	var routes []message
	for _, m := range c.state.Card.RouteMessages {
		replaced := false
		for _, gw := range c.o.Gateways {
			replaced = replaced || m.isDefault() && gw.Is4() == m.isIPv4()
		}
		_, others := m.uses(c.state.Card.Index)
		if m.isMain() && !replaced && !others && c.reaches(m) {
			routes = append(routes, m.by(c.state.Card.Index, link.Attrs().Index))
		}
	}
	if err := sayRoutes(routes); err != nil {
		return fmt.Errorf("make the routes of %s inside: %w", c.state.Card.Name, err)
	}
	for _, gw := range c.o.Gateways {
		err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(everything(gw)), Gw: gw.AsSlice()})
		if err != nil {
			return fmt.Errorf("add default route by %v on %s: %w", gw, c.state.Card.Name, err)
		}
	}
	return nil
}

// reaches says whether a route of the host's makes sense inside: with addresses of
// its own the card may be in other networks there.
func (c *creation) reaches(m message) bool {
	gw := m.gateway()
	return len(c.o.Addresses) == 0 || gw.IsValid() && contains(c.o.Addresses, gw)
}

// awaitReady waits until the kernel has seen the carrier, and until IPv6 addresses
// have been probed for duplicates, which takes it one or two seconds (RFC 4862, 5.4);
// before that they are good for nothing.
func (c *creation) awaitReady(index int) {
	const patience, pause = 4 * time.Second, 20 * time.Millisecond
	log := c.o.Logger.With("interface", c.state.Card.Name)
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			return
		}
		list, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return
		}
		state := link.Attrs().OperState
		ready := state == netlink.OperUp || state == netlink.OperUnknown
		var taken []string
		for _, a := range list {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				taken = append(taken, a.IPNet.String())
			} else if a.Flags&unix.IFA_F_TENTATIVE != 0 {
				ready = false
			}
		}
		over := time.Now().After(end)
		if !ready && !over {
			continue
		}
		if len(taken) > 0 {
			log.Warn("other machines have these addresses, so the card has not", "addresses", taken)
		}
		if !ready {
			log.Warn("the card is lent, but carries nothing yet: has it a carrier?")
		}
		return
	}
}
