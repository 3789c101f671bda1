// Package auto publishes what starts to listen in the network namespace, on the
// host's 127.0.0.1 under the same port, and takes it back when it stops. It asks
// the kernel who listens, and leaves the forwarding to a port driver.
//
// # Theory of operation
//
// While it is on, the namespace's sockets are looked at twice a second, over a
// netlink socket that was made inside (sock_diag(7)); the kernel has no event
// for a new listener that an unprivileged user may wait for. What is found is
// compared with what was published, and the difference made up for:
//
//	listens, and is not published    add a forward
//	published, and listens no more   remove it; its connections drain
//	published, and removed by hand   leave it, until it stops listening
//	the host's port is not free      say so once; try again now and then
//
// What somebody has published already, under whatever port, is left alone; and
// a forward from here makes room for one that somebody wants (Yield).
//
// Which sockets count: TCP sockets that listen; UDP sockets that have no peer,
// below the ephemeral ports, because above them are the clients. Multicast and
// link-local addresses do not count.
//
// While it is off there is no timer and no socket.
package auto

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/port"
)

// Options are what New needs. Driver and Sockets must be set.
type Options struct {
	// Driver puts the forwards in place.
	Driver port.Driver

	// Sockets makes the netlink socket in the network namespace.
	Sockets port.Sockets

	// Logger gets what cannot be published. Nil discards it.
	Logger *slog.Logger

	// Interval is the time between two looks. 0 means half a second.
	Interval time.Duration

	// Retry is the time after which a forward that was refused is tried again.
	// 0 means 10 seconds.
	Retry time.Duration
}

// hostIP is where services are published.
const hostIP = "127.0.0.1"

// Publisher publishes what listens. Its methods are safe for concurrent use.
type Publisher struct {
	o      Options
	change chan struct{} // has room for one: it was turned on or off

	// turn holds one token, taken by who works on the fields below. It is a
	// channel because its holder waits for the driver.
	turn      chan struct{}
	diag      *linux.SockDiag // nil while it is off
	published map[service]*forward
	closed    bool
}

// service is what listens inside.
type service struct {
	transport string // "tcp" or "udp"
	port      int
}

// socket is one that listens inside.
type socket struct {
	transport string
	local     netip.AddrPort
}

// forward is what became of a service.
type forward struct {
	childIP string    // as in port.Spec
	id      int       // 0 where it was refused
	retry   time.Time // not before; where it was refused
}

// New returns a Publisher that is off.
func New(o Options) *Publisher {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Interval == 0 {
		o.Interval = time.Second / 2
	}
	if o.Retry == 0 {
		o.Retry = 10 * time.Second
	}
	return &Publisher{o: o, change: make(chan struct{}, 1), turn: make(chan struct{}, 1), published: map[service]*forward{}}
}

// lock takes the turn. The caller calls what it returns.
func (p *Publisher) lock() (unlock func()) {
	p.turn <- struct{}{}
	return sync.OnceFunc(func() { <-p.turn })
}

// Run looks at what listens until ctx is done, and returns nil then. The
// forwards end with the driver.
func (p *Publisher) Run(ctx context.Context) error {
	var tick <-chan time.Time
	var ticker *time.Ticker
	stop := func() {
		if ticker != nil {
			ticker.Stop()
			ticker, tick = nil, nil
		}
	}
	defer stop()
	defer p.close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.change:
			stop()
			if p.on() {
				ticker = time.NewTicker(p.o.Interval)
				tick = ticker.C
			}
		case <-tick:
			p.look(ctx)
		}
	}
}

func (p *Publisher) on() bool {
	defer p.lock()()
	return p.diag != nil
}

func (p *Publisher) close() {
	defer p.lock()()
	p.closed = true
	p.dropDiag()
}

func (p *Publisher) dropDiag() {
	if p.diag != nil {
		p.diag.Close()
		p.diag = nil
	}
}

// notify has Run see the change.
func (p *Publisher) notify() {
	select {
	case p.change <- struct{}{}:
	default:
	}
}

// Enable turns it on. What listens already is published when it returns. It does
// nothing when it is on.
func (p *Publisher) Enable(ctx context.Context) error {
	defer p.lock()()
	switch {
	case p.closed:
		return errors.New("the gate ends")
	case p.diag != nil:
		return nil
	}
	files, err := p.o.Sockets.Sockets(ctx, unix.AF_NETLINK, unix.SOCK_RAW, 1)
	if err == nil {
		p.diag = linux.NewSockDiag(files[0])
		err = p.update(ctx)
	}
	if err != nil {
		p.dropDiag()
		return fmt.Errorf("see what listens in the namespace: %w", err)
	}
	p.notify()
	return nil
}

// Disable turns it off and takes the forwards away. It does nothing when it is
// off.
func (p *Publisher) Disable(ctx context.Context) error {
	defer p.lock()()
	p.dropDiag()
	p.notify()
	return p.takeBack(ctx, func(service, *forward) bool { return true })
}

// Yield takes away the forwards from here that are in the way of specs. Those
// that the specs do not come to replace are back with the next look.
func (p *Publisher) Yield(ctx context.Context, specs []port.Spec) error {
	defer p.lock()()
	return p.takeBack(ctx, func(s service, _ *forward) bool {
		mine := s.spec("")
		return slices.ContainsFunc(specs, func(spec port.Spec) bool {
			return !spec.Reverse && (port.Conflicts(spec, mine) || serviceOf(spec) == s)
		})
	})
}

// look makes up for what has changed.
func (p *Publisher) look(ctx context.Context) {
	defer p.lock()()
	if p.diag == nil {
		return // turned off in the meantime
	}
	if err := p.update(ctx); err != nil && ctx.Err() == nil {
		p.o.Logger.Warn("cannot see what listens in the namespace", "error", err)
	}
}

// update compares what listens with what is published. The caller has the turn,
// as for all below.
func (p *Publisher) update(ctx context.Context) error {
	taken, own := p.forwarded()
	listening, err := p.listening(own)
	if err != nil {
		return err
	}
	if err := p.takeBack(ctx, func(s service, f *forward) bool {
		ip, ok := listening[s]
		return !ok || ip != f.childIP
	}); err != nil {
		return err
	}
	now := time.Now()
	for _, s := range slices.SortedFunc(maps.Keys(listening), service.compare) {
		f := p.published[s]
		if f == nil && taken[s] || f != nil && (f.id != 0 || now.Before(f.retry)) {
			continue
		}
		p.publish(ctx, s, listening[s], now)
	}
	return nil
}

// forwarded are the services that forwards lead to, and the sockets inside that are
// those of reverse forwards, and no services.
func (p *Publisher) forwarded() (taken map[service]bool, own map[socket]bool) {
	taken, own = map[service]bool{}, map[socket]bool{}
	for _, status := range p.o.Driver.List() {
		spec := status.Spec
		if !spec.Reverse {
			taken[serviceOf(spec)] = true
			continue
		}
		for _, addr := range spec.Listens() {
			own[socket{spec.Transport(), netip.AddrPortFrom(addr, uint16(spec.ListenPort()))}] = true
		}
	}
	return taken, own
}

// publish adds a forward.
func (p *Publisher) publish(ctx context.Context, s service, childIP string, now time.Time) {
	spec := s.spec(childIP)
	added, err := p.o.Driver.Add(ctx, []port.Spec{spec})
	f := &forward{childIP: childIP}
	if err == nil {
		f.id = added[0].ID
		p.o.Logger.Debug("published what listens inside", "id", f.id, "spec", spec)
	} else {
		f.retry = now.Add(p.o.Retry)
		if p.published[s] == nil && ctx.Err() == nil {
			p.o.Logger.Warn("cannot publish what listens inside", "spec", spec, "error", err)
		}
	}
	p.published[s] = f
}

// takeBack forgets the services that gone chooses, and removes their forwards,
// those that nobody else has removed.
func (p *Publisher) takeBack(ctx context.Context, gone func(service, *forward) bool) error {
	for s, f := range p.published {
		if !gone(s, f) {
			continue
		}
		if f.id != 0 {
			err := p.o.Driver.Remove(ctx, []int{f.id}, port.DefaultDrain)
			if err != nil && !errors.Is(err, port.ErrNotFound) {
				return err
			}
			p.o.Logger.Debug("took back what listened inside", "id", f.id, "spec", s.spec(f.childIP))
		}
		delete(p.published, s)
	}
	return nil
}

// compare orders services, so that ids are given in the order of ports.
func (s service) compare(other service) int {
	return cmp.Or(cmp.Compare(s.port, other.port), cmp.Compare(s.transport, other.transport))
}

// spec is the forward of a service.
func (s service) spec(childIP string) port.Spec {
	return port.Spec{Proto: s.transport, ParentIP: hostIP, ParentPort: s.port, ChildIP: childIP, ChildPort: s.port}
}

// serviceOf is what a forward leads to.
func serviceOf(spec port.Spec) service { return service{spec.Transport(), spec.ChildPort} }
