package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/bench/agent"
	"github.com/gatekit/gatekit/bench/gates"
	"github.com/gatekit/gatekit/bench/meter"
	"github.com/gatekit/gatekit/bench/site"
)

const (
	// startLimit is how long a gate may take until its command runs.
	startLimit = 15 * time.Second

	// stopLimit is how long it may take to end when it is asked to.
	stopLimit = 3 * time.Second
)

// errEnded is the error of a gate that ended before it was asked to.
var errEnded = errors.New("it ended at once")

// gate is a running gate with an agent inside.
type gate struct {
	b       *bench
	of      gates.Gate
	process *site.Process
	child   *agent.Agent
	before  []int // processes that were there before

	// dir is a directory with what it leaves behind; empty for none.
	dir string
}

// listen makes a socket for the next agent.
func (b *bench) listen() (socket string, l *agent.Listener, err error) {
	b.agents++
	socket = b.site.Path(fmt.Sprintf("agent-%d", b.agents))
	l, err = agent.Listen(socket)
	return socket, l, err
}

// awaitAgent waits until an agent has connected to the listener, and closes that.
func awaitAgent(ctx context.Context, l *agent.Listener, p *site.Process) (*agent.Agent, error) {
	defer l.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("its command did not run within %v", startLimit))
	defer cancel()
	ended, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-p.Ended:
			stop(errors.Join(errEnded, p.Err()))
		case <-ended.Done():
		}
	}()
	return l.Accept(ended)
}

// work is what a gate does for the benchmark: it runs the command and, when asked
// to, forwards all ports.
func (b *bench) work(mtu int, forwards bool, command ...string) gates.Work {
	b.agents++
	w := gates.Work{MTU: mtu, Command: command, StateDir: b.site.Path("run", fmt.Sprintf("gate-%d", b.agents)), IDs: b.ids()}
	if !forwards {
		return w
	}
	add := func(proto string, port uint16) {
		parent := netip.AddrPortFrom(netip.IPv4Unspecified(), port+forwarded)
		w.Forwards = append(w.Forwards, gates.Forward{Proto: proto, Parent: parent, Child: port})
	}
	for i := range connectPorts {
		add("tcp", uint16(portTCP+i))
	}
	add("tcp", portStream)
	add("udp", portUDP)
	add("udp", portSink)
	return w
}

// ids are those to map, where the user has fewer than gatekit takes by itself.
func (b *bench) ids() gates.IDs {
	u := b.site.User
	if !u.Few() {
		return gates.IDs{}
	}
	return gates.IDs{User: u.ID, First: u.First, Size: u.Size}
}

// start starts a gate with an agent inside. The caller stops it.
func (b *bench) start(ctx context.Context, g gates.Gate, mtu int, forwards bool) (*gate, error) {
	socket, listener, err := b.listen()
	if err != nil {
		return nil, err
	}
	running := &gate{b: b, of: g}
	if running.before, err = alive(); err != nil {
		listener.Close()
		return nil, err
	}
	running.process, err = b.site.Start(site.Host, g.Command(b.work(mtu, forwards, b.self, "agent", socket))...)
	if err != nil {
		listener.Close()
		return nil, err
	}
	if running.child, err = awaitAgent(ctx, listener, running.process); err == nil {
		err = serve(ctx, running.child)
	}
	if err != nil {
		running.stop()
		return nil, err
	}
	return running, nil
}

// alive lists the processes of the site that have not ended.
func alive() ([]int, error) {
	all, err := meter.Processes("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range all {
		if !p.Zombie {
			pids = append(pids, p.PID)
		}
	}
	return pids, nil
}

// pids are the gate's own processes: those that came since it was started and are
// neither agents nor started by one.
func (g *gate) pids() ([]int, error) {
	all, err := meter.Processes("/proc")
	if err != nil {
		return nil, err
	}
	agents := []int{g.b.host.PID, g.b.client.PID, g.b.outside.PID}
	if g.child != nil {
		agents = append(agents, g.child.PID)
	}
	others := meter.Below(all, agents...)
	var own []int
	for _, p := range all {
		if !p.Zombie && !slices.Contains(g.before, p.PID) && !slices.Contains(others, p.PID) {
			own = append(own, p.PID)
		}
	}
	return own, nil
}

// usage is what the gate's own processes use.
func (g *gate) usage() (meter.Usage, error) {
	pids, err := g.pids()
	if err != nil {
		return meter.Usage{}, err
	}
	return meter.Measure("/proc", pids)
}

// stop ends the gate and whatever it left behind, the agent inside included.
func (g *gate) stop() {
	if g.child != nil {
		g.child.Close()
		g.child = nil
	}
	g.process.Stop(stopLimit)
	if left, err := g.pids(); err == nil {
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	reap()
	if g.dir != "" {
		_ = os.RemoveAll(g.dir) // else it goes with the site
	}
}

// finish waits until a process has ended, and says how it failed. With the end of the
// context it is stopped.
func finish(ctx context.Context, p *site.Process) error {
	select {
	case <-p.Ended:
		return p.Err()
	case <-ctx.Done():
		p.Stop(stopLimit)
		return context.Cause(ctx)
	}
}

// reap takes notice of orphans that have ended. The first process of a PID
// namespace has to; where another one is the first, there are none. Children that
// this process started itself are left to those who wait for them.
func reap() {
	all, err := meter.Processes("/proc")
	if err != nil {
		return
	}
	for _, p := range all {
		if p.Zombie && p.PPID == syscall.Getpid() {
			_, _ = unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
		}
	}
}
