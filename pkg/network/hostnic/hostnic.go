// Package hostnic gives gates a network card of the host's: root lends it once
// (Create), and from then on an unprivileged user starts gates on it, at the speed
// of the kernel.
//
//	root                                 user
//	Create: <dir>/userns   <---- setns ---- child of a gate
//	        <dir>/netns    <---- setns ---- (first the one, then the other)
//	          lo, the card
//	Destroy: the card is the host's again
//
// The user namespace belongs to the user, who may enter it, and with it has all
// capabilities in the network namespace; the kernel refuses everybody else. What a
// gate makes besides, it makes in that user namespace. There is no engine: packets
// never pass through the parent.
//
// Both namespaces live on as mounts, with no process in them. So the card cannot get
// lost while all processes die; and what is to be restored stands in a state file
// that is on the disk before the card moves. Create and Destroy are lists of steps
// (runSteps). Destroy looks at what there is, and not at what was planned, so it may
// follow after any step of either, and after half of one.
package hostnic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network"
)

// DriverName is the driver's name in a network.Plan and in GET /v1/info.
const DriverName = "hostnic"

// Options configure New.
type Options struct {
	// Dir is the directory that Create has made.
	Dir string

	// Shared lets other gates that say so be on the card at the same time. False
	// is one gate at a time.
	Shared bool

	// Logger takes what goes wrong with a lease. Nil discards it.
	Logger *slog.Logger
}

// Card is the driver for a card that was lent. It implements network.Driver and
// network.Joiner.
type Card struct {
	*driver
	o Options
}

// New returns the driver. Nothing is looked at before Check.
func New(o Options) (*Card, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("hostnic.Options.Dir=%s: want the absolute path of a directory that gatectl netns create has made, such as /run/gatekit/eth1", o.Dir)
	}
	return &Card{newDriver(o.Logger), o}, nil
}

// driver is what the drivers of this package have in common: leases, and what the
// child half tells of them. It has no part in the data.
type driver struct {
	log     *slog.Logger
	changed chan struct{} // holds one while there is news for Follow
	onlyUse bool          // of the interface: nobody asks for its lease again

	mu      sync.Mutex // guards the rest
	state   *state     // of Check; the zero state before
	release *release   // of the last lease, if there is one
}

func newDriver(log *slog.Logger) *driver {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &driver{log: log, changed: make(chan struct{}, 1), state: &state{}}
}

// Plan tells the child half what it finds. Nameservers and Search are known after
// Check, or once there is a lease.
func (d *driver) Plan() network.Plan {
	d.mu.Lock()
	defer d.mu.Unlock()
	return network.Plan{
		Driver:      DriverName,
		Namespace:   true,
		DHCP:        d.state.DHCP,
		Interface:   &network.Interface{Name: d.state.Card.Name},
		Nameservers: d.state.Nameservers,
		Search:      d.state.Search,
	}
}

// Info describes the driver.
func (d *driver) Info() network.Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	info := network.Info{Driver: DriverName, DNS: d.state.Nameservers, DynamicChildIP: d.state.DHCP}
	var best netip.Addr
	for _, p := range d.state.Addresses {
		if !best.IsValid() || best.Is6() && p.Addr().Is4() {
			best = p.Addr()
		}
	}
	info.ChildIP = best
	return info
}

// Check finds what is wrong with the card.
func (c *Card) Check() error {
	s, err := readState(c.o.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no card is lent in %s: root lends one with: gatectl netns create --ns-dir %s --interface NAME --user USER", c.o.Dir, c.o.Dir)
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: the card in %s is lent to another user", err, c.o.Dir)
	}
	if err != nil {
		return err
	}
	if !s.Ready || !isNamespace(filepath.Join(c.o.Dir, usernsFile)) || !isNamespace(filepath.Join(c.o.Dir, netnsFile)) {
		return fmt.Errorf("%s is not whole: root mends it with: gatectl netns destroy --ns-dir %s, and then gatectl netns create", c.o.Dir, c.o.Dir)
	}
	if s.UID != os.Geteuid() {
		return fmt.Errorf("%s is lent to %s, who alone can start gates on it", s.Card.Name, s.User)
	}
	c.set(s)
	return nil
}

func (d *driver) set(s *state) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state = s
}

// MapsIDs is false: who has lent the card has mapped them.
func (c *Card) MapsIDs() bool { return false }

// Join takes the card for this gate, and opens the namespaces.
func (c *Card) Join(context.Context, func(context.Context, int) error) (*network.Namespaces, error) {
	lock, err := lock(c.o.Dir, c.o.Shared)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("%s is in use by another gate: end that one, or start both with hostnic.Options.Shared", c.state.Card.Name)
	}
	if err == nil {
		// Nobody changes it from here on; since the last look somebody may have.
		if err = c.Check(); err != nil {
			lock.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	user, err := os.Open(filepath.Join(c.o.Dir, usernsFile))
	if err != nil {
		lock.Close()
		return nil, err
	}
	net, err := os.Open(filepath.Join(c.o.Dir, netnsFile))
	if err != nil {
		user.Close()
		lock.Close()
		return nil, err
	}
	return &network.Namespaces{
		User: user, Net: net, Shared: c.o.Shared,
		Leave: func() error { return errors.Join(user.Close(), net.Close(), lock.Close()) },
	}, nil
}

// Run takes the child half's news of leases. Without DHCP it has nothing to do but to
// wait for ctx.
func (d *driver) Run(ctx context.Context, files []*os.File, ready func()) error {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if len(files) == 0 {
		ready()
		<-ctx.Done()
		return nil
	}
	lines, socket := files[0], files[1]
	var reading sync.WaitGroup
	reading.Go(func() { d.listen(lines, ready) })
	<-ctx.Done()
	lines.Close()
	reading.Wait()
	if d.onlyUse && d.release != nil {
		if err := d.release.send(socket); err != nil {
			d.log.Warn("the DHCP server holds the address until its lease is over", "error", err)
		}
	}
	return nil
}

// listen reads news until the child's end, or the gate's.
func (d *driver) listen(f *os.File, ready func()) {
	lines := json.NewDecoder(f)
	for {
		var n news
		if err := lines.Decode(&n); err != nil {
			return // the child's end has its own way of being told
		}
		if n.Trouble != "" {
			d.log.Warn("the lease of the card's address", "trouble", n.Trouble)
			continue
		}
		d.take(n)
		ready()
		select {
		case d.changed <- struct{}{}:
		default: // Follow has not seen the last one yet
		}
	}
}

func (d *driver) take(n news) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := *d.state
	s.Addresses = []netip.Prefix{n.Address}
	if !s.FixedDNS {
		s.Nameservers, s.Search = n.Nameservers, n.Search
	}
	d.state, d.release = &s, n.Release
}

// Follow calls changed when a lease may have brought other DNS servers.
func (d *driver) Follow(ctx context.Context, changed func(network.Plan)) {
	for {
		select {
		case <-d.changed:
			changed(d.Plan())
		case <-ctx.Done():
			return
		}
	}
}

// Setup is the child half. A card with addresses is configured by who has lent it.
// Otherwise it gets one by DHCP, and keeps it while this process lives.
func Setup(plan network.Plan) ([]*os.File, error) {
	if !plan.DHCP {
		return nil, nil
	}
	if err := network.LoopbackUp(); err != nil {
		return nil, err
	}
	link, err := awaitLink(plan.Interface.Name)
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set %s up: %w", plan.Interface.Name, err)
	}
	l, err := acquire(context.Background(), link)
	if err != nil {
		return nil, err
	}
	if err := l.apply(link); err != nil {
		return nil, err
	}
	return l.hold(link)
}

// hold keeps the lease, in the network namespace of this thread, for as long as the
// process lives. The parent half gets the news by the first of the files; the second
// is for its last word to the server.
func (l *lease) hold(link netlink.Link) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	files = append(files, r)
	socket, err := releaseSocket()
	if err != nil {
		w.Close()
		return files, err
	}
	files = append(files, socket)
	// With a detached network, of all threads this one alone is in it.
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		w.Close()
		return files, err
	}
	lines := json.NewEncoder(w)
	// Whom it is told may be gone; then this process ends, too.
	tell := func(n news) { _ = lines.Encode(n) }
	tell(l.news())
	go func() {
		err := linux.InNetwork(ns, func() error {
			l.keep(link, tell)
			return nil
		})
		tell(news{Trouble: err.Error()})
	}()
	return files, nil
}

// awaitLink waits for an interface that comes from the host.
func awaitLink(name string) (netlink.Link, error) {
	const patience, pause = helperPatience, 5 * time.Millisecond
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		link, err := netlink.LinkByName(name)
		if err == nil {
			return link, nil
		}
		if !errors.As(err, new(netlink.LinkNotFoundError)) || time.Now().After(end) {
			return nil, fmt.Errorf("find %s: %w", name, err)
		}
	}
}
