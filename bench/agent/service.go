package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gatekit/gatekit/bench/load"
)

// Service is what an agent can do; its exported methods are those that net/rpc
// calls, each of which an Agent has too.
type Service struct {
	mu      sync.Mutex
	server  *load.Server // guarded by mu
	held    *load.Held   // guarded by mu
	started *program     // guarded by mu
}

// None is the argument, or the reply, of a method that has none.
type None struct{}

// Target says whom to talk to, how and for how long. What a method does not need
// is ignored.
type Target struct {
	To       []netip.AddrPort
	Network  string // "tcp" or "udp"
	Size     int    // of a datagram, in bytes
	Burst    int    // of datagrams
	Count    int    // of workers or connections
	Duration time.Duration
}

func (t Target) first() (netip.AddrPort, error) {
	if len(t.To) == 0 {
		return netip.AddrPort{}, errors.New("no address")
	}
	return t.To[0], nil
}

// Serve starts a load.Server.
func (s *Service) Serve(o load.ServerOptions, _ *None) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		return errors.New("a server runs already")
	}
	var err error
	s.server, err = load.Listen(o)
	return err
}

// Seen is what the server has seen.
type Seen struct {
	load.Arrivals
	LastPeer netip.Addr
}

// Seen tells who connected last, and what arrived at the sink since Forget.
func (s *Service) Seen(_ None, reply *Seen) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return errors.New("no server runs")
	}
	*reply = Seen{Arrivals: s.server.Arrivals(), LastPeer: s.server.LastPeer()}
	return nil
}

// Forget has the sink count from 0.
func (s *Service) Forget(None, *None) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return errors.New("no server runs")
	}
	s.server.Forget()
	return nil
}

// Trips calls load.TCPTrips or load.UDPTrips.
func (s *Service) Trips(t Target, reply *load.Trips) error {
	to, err := t.first()
	if err != nil {
		return err
	}
	if t.Network == "udp" {
		*reply, err = load.UDPTrips(to, t.Duration)
	} else {
		*reply, err = load.TCPTrips(to, t.Duration)
	}
	return err
}

// TripsAtOnce calls load.TCPTripsAtOnce.
func (s *Service) TripsAtOnce(t Target, reply *load.Trips) (err error) {
	*reply, err = load.TCPTripsAtOnce(t.To, t.Count, t.Duration)
	return err
}

// Connect calls load.Connect.
func (s *Service) Connect(t Target, reply *load.Connections) (err error) {
	*reply, err = load.Connect(t.To, t.Count, t.Duration)
	return err
}

// Flood calls load.Flood.
func (s *Service) Flood(t Target, reply *load.Flooded) error {
	to, err := t.first()
	if err != nil {
		return err
	}
	*reply, err = load.Flood(to, t.Size, t.Burst, t.Duration)
	return err
}

// Held is what load.Hold could open.
type Held struct {
	Open    int
	Elapsed time.Duration
	Reason  string
}

// Hold calls load.Hold with Duration as its limit of time.
func (s *Service) Hold(t Target, reply *Held) error {
	held, err := load.Hold(t.Network, t.To, t.Count, t.Duration)
	if err != nil {
		return err
	}
	*reply = Held{held.Open, held.Elapsed, held.Reason}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		s.held.Close()
	}
	s.held = held
	return nil
}

// Release closes what is held.
func (s *Service) Release(None, *None) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		s.held.Close()
		s.held = nil
	}
	return nil
}

// Program is a command and what to make of it.
type Program struct {
	Args []string

	// Until is a text in the output of Start that says that the program is
	// ready.
	Until string

	// Limit is how long Execute lets it run, and how long Start waits for Until.
	Limit time.Duration
}

// Execute runs a program and returns its output.
func (s *Service) Execute(p Program, output *[]byte) error {
	started, err := start(p)
	if err != nil {
		return err
	}
	defer started.kill()
	select {
	case <-started.ended:
	case <-time.After(p.Limit):
		return fmt.Errorf("%s did not end within %v", p.Args[0], p.Limit)
	}
	*output = started.output.bytes()
	if started.err != nil {
		return fmt.Errorf("%s: %w: %s", p.Args[0], started.err, strings.TrimSpace(string(*output)))
	}
	return nil
}

// Start starts a program and waits until it has said that it is ready. The one
// that was started before is killed.
func (s *Service) Start(p Program, _ *None) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started != nil {
		s.started.kill()
		s.started = nil
	}
	started, err := start(p)
	if err != nil {
		return err
	}
	if err := started.await(p.Until, p.Limit); err != nil {
		started.kill()
		return err
	}
	s.started = started
	return nil
}

// close ends all that the service has started.
func (s *Service) close() {
	_ = s.Release(None{}, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started != nil {
		s.started.kill()
	}
	if s.server != nil {
		s.server.Close()
	}
}

// program is one that was started.
type program struct {
	name   string
	cmd    *exec.Cmd
	output output
	ended  chan struct{}
	err    error // how it ended; to be read once ended is closed
}

func start(p Program) (*program, error) {
	if len(p.Args) == 0 {
		return nil, errors.New("no program")
	}
	started := &program{name: p.Args[0], cmd: exec.Command(p.Args[0], p.Args[1:]...), ended: make(chan struct{})}
	started.output.more = make(chan struct{}, 1)
	started.cmd.Stdout, started.cmd.Stderr = &started.output, &started.output
	started.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	started.cmd.WaitDelay = time.Second
	if err := started.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		started.err = started.cmd.Wait()
		close(started.ended)
	}()
	return started, nil
}

// await waits until the output has the text.
func (p *program) await(text string, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for !strings.Contains(string(p.output.bytes()), text) {
		select {
		case <-p.output.more:
		case <-p.ended:
			return fmt.Errorf("%s ended: %s", p.name, strings.TrimSpace(string(p.output.bytes())))
		case <-timer.C:
			return fmt.Errorf("%s did not say %q within %v", p.name, text, limit)
		}
	}
	return nil
}

// kill ends the program and those that it started, and waits for its end.
func (p *program) kill() {
	select {
	case <-p.ended:
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
	<-p.ended
}

// output collects what a program writes, and tells of it.
type output struct {
	mu   sync.Mutex
	text []byte // guarded by mu
	more chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	o.text = append(o.text, p...)
	o.mu.Unlock()
	select {
	case o.more <- struct{}{}:
	default: // a reader has not yet seen what came before
	}
	return len(p), nil
}

func (o *output) bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]byte(nil), o.text...)
}
