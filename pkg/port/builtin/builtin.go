// Package builtin is the port driver: it publishes ports of the network
// namespace on the host. It runs in the parent process and holds listeners,
// connections and flows; the port specs and the contract are pkg/port's, and the
// system calls internal/linux's.
//
// # Theory of operation
//
// The listeners are the host's own sockets. The other side of each connection is
// a socket that was made inside the namespace and passed up (port.Sockets): a
// socket stays in the namespace that it was made in, so the parent connects it
// to the service itself. Sockets are made ahead (pool.go), so that a new
// connection costs no round trip to the child.
//
//	client --> listener --> acceptor -+-> conn: client <== splice(2) ==> service
//	client --> socket ----> udp loop -+-> flow: client <-- datagrams --> service
//
// An idle forward is a descriptor for each family and a few words of memory: no
// goroutine and no buffer. Two loops (loop.go) wait for all of them, one for TCP
// listeners (accept.go) and one for UDP (udp.go), each with an epoll set of its
// own. All that belongs to a loop is touched by its goroutine alone; the others
// hand it functions to run.
//
// A TCP connection has two goroutines, one for each direction (conn.go). Bytes go
// from socket to socket in the kernel, through a pipe that a direction holds
// only while bytes are in it (carrier.go): an idle connection holds two
// descriptors. Ends of stream, resets and the death of a peer are carried to the
// other side.
//
// A UDP flow is a client, the address that it sent to, and a connected socket
// in the namespace. The loop copies datagrams both ways in batches and answers
// from the address that the client had sent to. Flows are bounded; the least
// recently used one makes room (flow.go).
//
// Where there is an Opener, connections and flows of clients that are not the host
// itself are handed to it, so that the service sees who they are (preserve.go).
//
// A reverse forward listens in the namespace and leads to the host (reverse.go).
//
// Sockets, goroutines and timers all end with Run: it stops the loops, which
// close what is theirs, cuts the connections, and waits.
package builtin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/port"
)

// Options are what New needs. Only Sockets must be set.
type Options struct {
	// Sockets makes sockets in the network namespace. Required.
	Sockets port.Sockets

	// Opener opens connections in the names of clients that are not the host
	// itself. Nil opens none: every service sees its own loopback's address.
	Opener port.Opener

	// Gateway has reverse forwards at the addresses of the network's gateway. Nil
	// refuses them, as all that the namespace does not have.
	Gateway port.Gateway

	// Logger gets what goes wrong with single connections, at most one line in
	// ten seconds for each kind. Nil logs nothing.
	Logger *slog.Logger

	// MaxConns caps the TCP connections at one time in all, MaxConnsPerForward
	// those of one forward; further ones are reset. 0 means 32768 and 16384.
	MaxConns, MaxConnsPerForward int

	// MaxFlows caps the UDP flows in all, MaxFlowsPerForward those of one
	// forward; the least recently used makes room for a new one. 0 means 8192
	// and 2048.
	MaxFlows, MaxFlowsPerForward int

	// FlowTimeout ends a UDP flow that was silent for so long. A flow that has
	// not gone beyond a question and its answers ends after a quarter of it.
	// 0 means 2 minutes (RFC 4787, REQ-5).
	FlowTimeout time.Duration

	// DialTimeout ends the attempt to connect to a service. 0 means 10 seconds.
	DialTimeout time.Duration

	// KeepAlive is the silence after which a TCP peer is probed, on both sides
	// of a connection. 0 means 30 seconds.
	KeepAlive time.Duration

	// SocketsAhead is how many sockets of each kind are kept ready in the
	// namespace, from the first forward that needs the kind. 0 means 16.
	SocketsAhead int
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&o.MaxConns, 32768)
	setDefault(&o.MaxConnsPerForward, 16384)
	setDefault(&o.MaxFlows, 8192)
	setDefault(&o.MaxFlowsPerForward, 2048)
	setDefault(&o.SocketsAhead, 16)
	setDefault(&o.FlowTimeout, 2*time.Minute)
	setDefault(&o.DialTimeout, 10*time.Second)
	setDefault(&o.KeepAlive, 30*time.Second)
	return o
}

func setDefault[T int | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// errNotRunning answers Add and Remove after Run.
var errNotRunning = errors.New("the port driver has ended")

// Driver is the builtin port driver. It implements port.Driver. Its methods are
// safe for concurrent use.
type Driver struct {
	opts      Options
	keepAlive linux.KeepAlive
	log       *rareLog
	count     counters
	pool      *pool
	carriers  carriers
	hosts     hostAddrs
	opening   chan struct{} // holds a token for each connection that the Opener opens
	begun     chan struct{} // closed when Run serves, or has failed to

	// turn holds one token, taken by what changes the set of forwards. It is a
	// channel because its holder waits for the loops. lastID is its holder's.
	turn   chan struct{}
	lastID int

	// ctx ends when Run ends; wg counts the goroutines that Run waits for.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	tcp    *acceptor
	udp    *exchange

	mu       sync.Mutex // guards what is below
	state    state
	forwards map[int]*forward
	waning   map[*forward]struct{} // removed, with connections that go on for a while
}

type state int

const (
	idle state = iota
	running
	ended
)

// New returns a driver that has not run yet.
func New(opts Options) *Driver {
	opts = opts.withDefaults()
	d := &Driver{
		opts:      opts,
		keepAlive: linux.KeepAlive{Idle: opts.KeepAlive, Interval: max(opts.KeepAlive/2, time.Second), Count: 5},
		log:       &rareLog{logger: opts.Logger},
		opening:   make(chan struct{}, maxOpening),
		begun:     make(chan struct{}),
		turn:      make(chan struct{}, 1),
		forwards:  map[int]*forward{},
		waning:    map[*forward]struct{}{},
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.pool = newPool(d)
	return d
}

// Info describes the driver. Loopback addresses in the namespace can be reached,
// which Docker 20.10 relies on.
func (d *Driver) Info() port.Info {
	return port.Info{Driver: "builtin", Protos: port.Protos()}
}

// Run serves until ctx is done. See port.Driver. A driver runs once.
func (d *Driver) Run(ctx context.Context) error {
	d.mu.Lock()
	again := d.state != idle
	if !again {
		d.state = ended // until the loops are there
	}
	d.mu.Unlock()
	if again {
		return errors.New("the port driver runs once")
	}
	defer d.cancel()
	var err error
	if d.tcp, err = newAcceptor(d); err == nil {
		if d.udp, err = newExchange(d); err != nil {
			d.tcp.loop.close()
		}
	}
	if err == nil {
		d.setState(running)
	}
	close(d.begun)
	if err == nil {
		err = d.runLoops(ctx)
	}
	if err != nil {
		return fmt.Errorf("port driver: %w", err)
	}
	return nil
}

// runLoops serves until ctx is done, and takes everything down.
func (d *Driver) runLoops(ctx context.Context) (err error) {
	failed := make(chan error, 2)
	var loops sync.WaitGroup
	loops.Go(func() { failed <- d.tcp.run() })
	loops.Go(func() { failed <- d.udp.run() })
	select {
	case <-ctx.Done():
	case err = <-failed:
	}

	d.turn <- struct{}{} // let an Add or Remove under way finish
	d.setState(ended)
	<-d.turn
	d.cancel()
	d.tcp.loop.stop()
	d.udp.loop.stop()
	loops.Wait()
	for _, fw := range d.takeAll() {
		fw.cut()
	}
	d.wg.Wait()
	d.pool.close()
	d.carriers.close()
	return err
}

func (d *Driver) setState(s state) {
	d.mu.Lock()
	d.state = s
	d.mu.Unlock()
}

func (d *Driver) takeAll() map[int]*forward {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.forwards
	d.forwards = map[int]*forward{}
	return all
}

// begin waits for Run, and for the turn to change the set of forwards. The
// caller calls end when it is done.
func (d *Driver) begin(ctx context.Context) (end func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-d.begun:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != running {
		<-d.turn
		return nil, errNotRunning
	}
	return func() { <-d.turn }, nil
}

// Add puts all specs in place, or none. See port.Driver.
func (d *Driver) Add(ctx context.Context, specs []port.Spec) ([]port.Status, error) {
	for _, spec := range specs {
		if err := spec.Validate(); err != nil {
			return nil, err
		}
	}
	end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	fresh, err := binder{ctx, d.opts.Sockets, d.opts.Gateway, d.keepAlive}.bindAll(specs, d.List)
	if err != nil {
		return nil, err
	}
	for _, fw := range fresh { // before anybody sees one
		d.lastID++
		fw.status.ID = d.lastID
	}
	if err := d.serve(fresh); err != nil {
		return nil, err
	}
	d.mu.Lock()
	for _, fw := range fresh {
		d.forwards[fw.status.ID] = fw
	}
	d.mu.Unlock()
	return d.statuses(fresh), nil
}

// serve hands the forwards to the loops, all or none.
func (d *Driver) serve(fresh []*forward) error {
	// Both are called in any case, for each takes over its sockets.
	if err := errors.Join(d.tcp.add(fresh), d.udp.add(fresh)); err != nil {
		d.tcp.remove(fresh)
		d.udp.remove(fresh)
		for _, fw := range fresh {
			fw.cut()
		}
		return err
	}
	var last port.Spec
	for _, fw := range fresh {
		// The ports of a range make no difference.
		spec := fw.status.Spec
		spec.ParentPort, spec.ChildPort = 0, 0
		if spec != last && !spec.Reverse {
			d.pool.want(fw.status.Spec)
			last = spec
		}
	}
	return nil
}

// Remove takes the forwards away, all or none. See port.Driver. UDP flows end at
// once: there is no telling when one is over.
func (d *Driver) Remove(ctx context.Context, ids []int, drain time.Duration) error {
	end, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	gone, err := d.take(ids)
	if err != nil {
		return err
	}
	d.tcp.remove(gone)
	d.udp.remove(gone)
	for _, fw := range gone {
		if over := fw.wane(); over != nil {
			d.mu.Lock()
			d.waning[fw] = struct{}{}
			d.mu.Unlock()
			d.wg.Go(func() { d.drain(fw, over, drain) })
		}
	}
	return nil
}

// take takes the forwards off the list, all or none.
func (d *Driver) take(ids []int) ([]*forward, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var gone []*forward
	for _, id := range ids {
		fw, ok := d.forwards[id]
		if !ok {
			return nil, fmt.Errorf("%w: %d", port.ErrNotFound, id)
		}
		if !slices.Contains(gone, fw) {
			gone = append(gone, fw)
		}
	}
	for _, fw := range gone {
		delete(d.forwards, fw.status.ID)
	}
	return gone, nil
}

// drain cuts the connections of a forward that was removed, in a while, unless
// they are over before.
func (d *Driver) drain(fw *forward, over <-chan struct{}, while time.Duration) {
	timer := time.NewTimer(while)
	defer timer.Stop()
	select {
	case <-over:
	case <-timer.C:
	case <-d.ctx.Done():
	}
	fw.cut()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.waning, fw)
}

// List returns the forwards in place, ordered by ID, never nil.
func (d *Driver) List() []port.Status {
	d.mu.Lock()
	forwards := slices.Collect(maps.Values(d.forwards))
	d.mu.Unlock()
	slices.SortFunc(forwards, func(a, b *forward) int { return a.status.ID - b.status.ID })
	return d.statuses(forwards)
}
