package main

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/statedir"
	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/server"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/port"
)

// Environment by which the test binary is another program.
const (
	gatectlEnv = "GATECTL_TEST_MAIN"  // gatectl itself
	childEnv   = "GATECTL_TEST_CHILD" // the child of a gate: sleeps in its namespaces
	hideEnv    = "GATECTL_TEST_HIDE"  // a directory that it covers with another
)

func TestMain(m *testing.M) {
	switch {
	case os.Args[0] == insideName || os.Args[0] == witnessName || os.Getenv(gatectlEnv) != "":
		main()
	case os.Getenv(childEnv) != "":
		beChild()
	default:
		testenv.Main(m)
	}
}

// beChild says when it is ready, and waits for the end of its stdin.
func beChild() {
	if dir := os.Getenv(hideEnv); dir != "" {
		if err := unix.Mount("tmpfs", filepath.Dir(dir), "tmpfs", 0, ""); err != nil {
			fmt.Println("error: mount:", err)
			return
		}
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
}

// fakeGate is the gate behind a test's API.
type fakeGate struct {
	mu     sync.Mutex // guards ports and policy
	ports  []api.PortStatus
	policy api.Policy
	info   api.Info
}

func (g *fakeGate) Info() api.Info { return g.info }

func (g *fakeGate) ListPorts() []api.PortStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.ports)
}

func (g *fakeGate) AddPorts(_ context.Context, specs []api.PortSpec) ([]api.PortStatus, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var added []api.PortStatus
	for i, spec := range specs {
		if spec.ParentPort == 81 {
			return nil, fmt.Errorf("%w: listen tcp 127.0.0.1:81: bind: address already in use", port.ErrConflict)
		}
		added = append(added, api.PortStatus{ID: len(g.ports) + i + 1, Spec: spec})
	}
	g.ports = append(g.ports, added...)
	return added, nil
}

func (g *fakeGate) AutoPorts(_ context.Context, on bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ports = nil
	if on {
		g.ports = []api.PortStatus{{ID: 9, Spec: api.PortSpec{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 80, ChildPort: 80}}}
	}
	return nil
}

func (g *fakeGate) Connections() []api.Connection {
	child, remote := netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("2001:db8::7")
	return []api.Connection{
		{Proto: "icmp", Direction: "outbound", State: "open", ChildIP: child, ChildPort: 77, RemoteIP: remote, AgeSeconds: 5},
		{Proto: "tcp", Direction: "forward", State: "half-closed", ChildIP: child, ChildPort: 80, RemoteIP: remote, RemotePort: 5000,
			Forward: 3, SourceIP: "preserve", AgeSeconds: 3700, IdleSeconds: 61, BytesIn: new(uint64(0)), BytesOut: new(uint64(12345))},
	}
}

func (g *fakeGate) Policy() (api.Policy, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.policy, nil
}

func (g *fakeGate) SetPolicy(p api.Policy) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if slices.Contains(p.Allow, "x") {
		return fmt.Errorf("%w: rule \"x\": it has no ://", network.ErrPolicy)
	}
	g.policy = p
	return nil
}

func (g *fakeGate) RemovePort(_ context.Context, id int, _ time.Duration) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.ports, func(p api.PortStatus) bool { return p.ID == id })
	if i < 0 {
		return fmt.Errorf("forward %d: %w", id, port.ErrNotFound)
	}
	g.ports = slices.Delete(g.ports, i, i+1)
	return nil
}

// home gives the test a run-time directory of its own, and no gate.
func home(t *testing.T) {
	t.Helper()
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("GATEKIT_STATE_DIR", "")
	t.Setenv("ROOTLESSKIT_STATE_DIR", "")
}

// startGate makes a gate with a state dir and an API, and returns its state dir.
func startGate(t *testing.T, name string, childPID int) string {
	t.Helper()
	return serveGate(t, statedir.Options{Name: name}, childPID)
}

// startGateAt makes one without a name, with a state dir of the test's choice.
func startGateAt(t *testing.T, path string, childPID int) {
	t.Helper()
	serveGate(t, statedir.Options{Path: path}, childPID)
}

func serveGate(t *testing.T, o statedir.Options, childPID int) string {
	t.Helper()
	dir := newStateDir(t, o)
	serve(t, dir, &fakeGate{info: api.Info{
		APIVersion: api.Version, Version: "1.2.3", Name: o.Name, PID: os.Getpid(), ChildPID: childPID, StateDir: dir.Path(),
		NetworkDriver: api.NetworkDriver{Driver: "slirp", DNS: []netip.Addr{netip.MustParseAddr("10.0.2.3")}, ChildIP: new(netip.MustParseAddr("10.0.2.100"))},
		PortDriver:    api.PortDriver{Driver: "builtin", Protos: []string{"tcp", "udp"}},
	}})
	return dir.Path()
}

// newStateDir makes a state dir, which goes with the test.
func newStateDir(t *testing.T, o statedir.Options) *statedir.Dir {
	t.Helper()
	dir, err := statedir.Create(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// serve serves the API of a gate.
func serve(t *testing.T, dir *statedir.Dir, gate server.Gate) {
	t.Helper()
	ln, err := server.Listen(dir.Socket())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- server.New(server.Options{Gate: gate, UIDs: []uint32{uint32(os.Geteuid())}}).Run(ctx, ln)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// gatectl runs a command in this process.
func gatectl(args ...string) (stdout, stderr string, code int) {
	var out, errs strings.Builder
	code = run(append([]string{"gatectl"}, args...), &out, &errs)
	return out.String(), errs.String(), code
}

// gatectlCommand is gatectl as a process of its own.
func gatectlCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Args[0] = "gatectl"
	cmd.Env = append(os.Environ(), gatectlEnv+"=1")
	return cmd
}

// startChild starts a process in namespaces of its own, which tells of a gate
// in its environment as the child of a gate does.
func startChild(t *testing.T, flags uintptr, environ ...string) *os.Process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), append(environ, childEnv+"=1")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  flags,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	return startReady(t, cmd)
}

// startReady starts a process that is beChild, and waits until it is ready.
func startReady(t *testing.T, cmd *exec.Cmd) *os.Process {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		testenv.Skip(t, "this kernel makes no namespaces here: "+err.Error())
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	return cmd.Process
}
