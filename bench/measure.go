package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/gatekit/gatekit/bench/agent"
	"github.com/gatekit/gatekit/bench/meter"
	"github.com/gatekit/gatekit/bench/site"
)

// connectWorkers is how many goroutines open short connections.
const connectWorkers = 16

// burst is how many datagrams a sender of bursts sends at once: 19 KB of them at 1200
// bytes, as browsers do.
const burst = 16

// link is a way from a client to a server, with what lies between.
type link struct {
	b              *bench
	client, server *agent.Agent

	// addr is where the client reaches the server's ports, offset by offset.
	addr   netip.Addr
	offset uint16

	// gate is nil where there is none between.
	gate *gate
}

func (l link) at(port uint16) netip.AddrPort { return netip.AddrPortFrom(l.addr, port+l.offset) }

// manyTCP are the ports that echo streams.
func (l link) manyTCP() []netip.AddrPort {
	var all []netip.AddrPort
	for i := range uint16(connectPorts) {
		all = append(all, l.at(portTCP+i))
	}
	return all
}

func (l link) target(port uint16) agent.Target {
	return agent.Target{To: []netip.AddrPort{l.at(port)}, Duration: l.b.Duration}
}

// step measures something and adds figures to these rows.
type step struct {
	rows    []string
	measure func(context.Context) error
}

// run measures the steps that are asked for. A step that fails leaves its rows
// without figures, and does not keep the others from theirs; only the end of the
// context does.
func (b *bench) run(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if !b.wants(s.rows...) {
			continue
		}
		if err := s.measure(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			b.fail(err, s.rows...)
		}
	}
	return nil
}

// iperf is what is read of iperf3's JSON.
type iperf struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Bytes         float64 `json:"bytes"`
			BitsPerSecond float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	} `json:"end"`
}

func parseIperf(out []byte) (iperf, error) {
	var result iperf
	if err := json.Unmarshal(out, &result); err != nil {
		return result, fmt.Errorf("read what iperf3 says: %w", err)
	}
	if result.Error != "" {
		return result, fmt.Errorf("iperf3: %s", result.Error)
	}
	if result.End.Received.Bytes == 0 {
		return result, errors.New("iperf3: nothing was received")
	}
	return result, nil
}

// bulk is what a stream reached and cost.
type bulk struct {
	gigabits float64 // per second

	// gate and machine are processor seconds per gigabyte.
	gate, machine float64
}

// stream runs iperf3 over the link: from the client to the server, or back.
func (l link) stream(ctx context.Context, streams int, back bool) (bulk, error) {
	const limit = 10 * time.Second
	server := agent.Program{
		Args:  []string{"iperf3", "--server", "--one-off", "--forceflush", "--port", strconv.Itoa(portStream)},
		Until: "listening",
		Limit: limit,
	}
	if err := l.server.Start(ctx, server); err != nil {
		return bulk{}, err
	}
	to := l.at(portStream)
	client := agent.Program{
		Args: []string{"iperf3", "--client", to.Addr().String(), "--port", strconv.Itoa(int(to.Port())),
			"--time", strconv.Itoa(l.b.Stream), "--parallel", strconv.Itoa(streams), "--json"},
		Limit: time.Duration(l.b.Stream)*time.Second + limit,
	}
	if back {
		client.Args = append(client.Args, "--reverse")
	}
	before, err := l.cost()
	if err != nil {
		return bulk{}, err
	}
	out, err := l.client.Execute(ctx, client)
	if err != nil {
		return bulk{}, err
	}
	after, err := l.cost()
	if err != nil {
		return bulk{}, err
	}
	result, err := parseIperf(out)
	if err != nil {
		return bulk{}, err
	}
	gigabytes := result.End.Received.Bytes / 1e9
	return bulk{
		gigabits: result.End.Received.BitsPerSecond / 1e9,
		gate:     (after.gate - before.gate).Seconds() / gigabytes,
		machine:  (after.machine - before.machine).Seconds() / gigabytes,
	}, nil
}

// cost is processor time used so far.
type cost struct{ gate, machine time.Duration }

func (l link) cost() (c cost, err error) {
	if l.gate != nil {
		usage, err := l.gate.usage()
		if err != nil {
			return c, err
		}
		c.gate = usage.CPU
	}
	c.machine, err = meter.BusyTime("/proc")
	return c, err
}

// streamStep measures streams into a row of gigabits and, unless their names are
// empty, into rows of processor time.
func (l link) streamStep(streams int, back bool, row, cpuRow, machineRow string) step {
	s := step{rows: []string{row}}
	if l.gate == nil {
		cpuRow = ""
	}
	for _, name := range []string{cpuRow, machineRow} {
		if name != "" {
			s.rows = append(s.rows, name)
		}
	}
	s.measure = func(ctx context.Context) error {
		got, err := l.stream(ctx, streams, back)
		if err != nil {
			return err
		}
		l.b.add(row, got.gigabits)
		if cpuRow != "" {
			l.b.add(cpuRow, got.gate)
		}
		if machineRow != "" {
			l.b.add(machineRow, got.machine)
		}
		return nil
	}
	return s
}

// tripsStep measures round trips into a row and, unless their names are empty, the
// percentiles of their times.
func (l link) tripsStep(network string, port uint16, row, p50, p99 string) step {
	s := step{rows: []string{row}}
	if p50 != "" {
		s.rows = append(s.rows, p50, p99)
	}
	s.measure = func(ctx context.Context) error {
		target := l.target(port)
		target.Network = network
		trips, err := l.client.Trips(ctx, target)
		if err != nil {
			return err
		}
		if trips.Count == 0 {
			return errors.New("no question was answered")
		}
		l.b.add(row, trips.Rate())
		if p50 != "" {
			l.b.add(p50, float64(trips.P50.Nanoseconds())/1e3)
			l.b.add(p99, float64(trips.P99.Nanoseconds())/1e3)
		}
		return nil
	}
	return s
}

// connectStep measures short connections. A few may fail; they do not count.
func (l link) connectStep(row string) step {
	return step{[]string{row}, func(ctx context.Context) error {
		got, err := l.client.Connect(ctx, agent.Target{To: l.manyTCP(), Count: connectWorkers, Duration: l.b.Duration})
		if err != nil {
			return err
		}
		if got.Failed > got.Count/100 {
			return fmt.Errorf("%d of %d connections failed: %s", got.Failed, got.Failed+got.Count, got.Reason)
		}
		l.b.add(row, got.Rate())
		return nil
	}}
}

// floodStep measures datagrams one way into a row of those received per second
// and, unless its name is empty, a row of those lost in per cent. They are sent one by
// one, or in bursts of more than 1.
func (l link) floodStep(size, burst int, row, lossRow string) step {
	s := step{rows: []string{row}}
	if lossRow != "" {
		s.rows = append(s.rows, lossRow)
	}
	s.measure = func(ctx context.Context) error {
		// What an earlier flood left in queues is not to be counted.
		if _, err := l.arrived(ctx); err != nil {
			return err
		}
		if err := l.server.Forget(ctx); err != nil {
			return err
		}
		target := l.target(portSink)
		target.Size, target.Burst = size, burst
		sent, err := l.client.Flood(ctx, target)
		if err != nil {
			return err
		}
		got, err := l.arrived(ctx)
		if err != nil {
			return err
		}
		if got.Datagrams < 2 {
			return fmt.Errorf("%d of %d datagrams arrived", got.Datagrams, sent.Sent)
		}
		l.b.add(row, got.Rate())
		if lossRow != "" {
			l.b.add(lossRow, 100*(1-float64(got.Datagrams)/float64(sent.Sent)))
		}
		return nil
	}
	return s
}

// arrived waits until nothing more arrives at the server's sink, and returns what
// has arrived.
func (l link) arrived(ctx context.Context) (agent.Seen, error) {
	const quiet, limit = 100 * time.Millisecond, 3 * time.Second
	seen, err := l.server.Seen(ctx)
	for start := time.Now(); err == nil && time.Since(start) < limit; {
		if err = wait(ctx, quiet); err != nil {
			break
		}
		before := seen.Datagrams
		if seen, err = l.server.Seen(ctx); seen.Datagrams == before {
			break
		}
	}
	return seen, err
}

// outward are the steps of a client in the child and a server on the host, at MTU
// 1500.
func (l link) outward() []step {
	return []step{
		l.streamStep(1, false, "tcp1500.out", "cpu1500.out", "machine1500.out"),
		l.streamStep(1, true, "tcp1500.in", "cpu1500.in", "machine1500.in"),
		l.streamStep(8, false, "tcp1500x8.out", "", ""),
		l.streamStep(8, true, "tcp1500x8.in", "", ""),
		l.tripsStep("tcp", portTCP, "tcp.trips", "tcp.p50", "tcp.p99"),
		l.tripsStep("udp", portUDP, "udp.trips", "udp.p50", "udp.p99"),
		l.floodStep(100, 1, "udp100.out", "udp100.loss"),
		l.floodStep(1200, 1, "udp1200.out", "udp1200.loss"),
		l.connectStep("tcp.connect"),
	}
}

// forwardedFloods are those steps of forwardedHere that the loopback has, too.
func (l link) forwardedFloods() []step {
	return []step{
		l.floodStep(1200, 1, "forward.udp1200", "forward.udp1200loss"),
		l.floodStep(1200, burst, "forward.burst1200", ""),
	}
}

// forwardedHere are the steps of a client on the host and a server in the child.
func (l link) forwardedHere() []step {
	return append(l.forwardedFloods(),
		l.streamStep(1, false, "forward.in", "", ""),
		l.streamStep(1, true, "forward.out", "", ""),
		l.tripsStep("tcp", portTCP, "forward.trips", "", ""),
		l.tripsStep("udp", portUDP, "forward.udptrips", "", ""),
		l.connectStep("forward.connect"),
	)
}

// forwardedThere are the steps of a client on another machine.
func (l link) forwardedThere() []step {
	return []step{
		l.addressStep("remote.address"),
		l.streamStep(1, false, "remote.in", "", ""),
		l.streamStep(1, true, "remote.out", "", ""),
		l.floodStep(1200, 1, "remote.udp1200", ""),
		l.connectStep("remote.connect"),
	}
}

// addressStep notes whether the server sees the own address of a client outside.
func (l link) addressStep(row string) step {
	return step{[]string{row}, func(ctx context.Context) error {
		target := l.target(portTCP)
		target.Network, target.Duration = "tcp", time.Millisecond
		if _, err := l.client.Trips(ctx, target); err != nil {
			return err
		}
		seen, err := l.server.Seen(ctx)
		if err != nil {
			return err
		}
		kept := 0.0
		if seen.LastPeer == site.OutsideAddr {
			kept = 1
		}
		l.b.add(row, kept)
		return nil
	}}
}
