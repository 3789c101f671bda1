// Command embed carries a gate of its own, in the manner of k3s: a web server that
// anybody can start, and that runs as root in namespaces, behind a network of its
// own, without a gatekit on the machine.
//
// The program runs three times, and asks at the start which time it is:
//
//	user starts it      gate     runs the parent: namespaces, slirp, port driver, API
//	  parent executes it  child    sets the namespaces up: child.Main
//	    child executes it   service  listens inside, waits for the API, and publishes
//	                                 itself through pkg/api/client
//
// Everything is asked of packages below pkg/. What they have to say goes to the
// logger, what goes wrong is returned; flags, exit codes and names of variables are
// this program's. On SIGTERM the service ends, and the gate with it; nothing is left.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
	"github.com/gatekit/gatekit/pkg/child"
	"github.com/gatekit/gatekit/pkg/network/slirp"
	"github.com/gatekit/gatekit/pkg/parent"
	"github.com/gatekit/gatekit/pkg/port"
	"github.com/gatekit/gatekit/pkg/port/builtin"
)

// envPrefix begins the variables that the gate sets for the service. One of them
// tells the service where the gate is, and that it is the service.
const (
	envPrefix   = "EMBED_"
	stateDirEnv = envPrefix + "STATE_DIR"
)

// patience is how long the service waits for the API.
const patience = 30 * time.Second

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	// First of all, since the child has no ids yet and other threads are in its way.
	if child.IsChild() {
		os.Exit(child.Main(child.Options{Logger: log}))
	}
	code, err := 0, error(nil)
	if stateDir := os.Getenv(stateDirEnv); stateDir != "" {
		err = runService(stateDir)
	} else {
		code, err = runGate(log)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		code = 1
	}
	os.Exit(code)
}

// runGate runs the gate until the service ends, and returns the service's exit code.
func runGate(log *slog.Logger) (int, error) {
	options, err := gateOptions(log)
	if err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, parent.ForwardableSignals()...)
	defer signal.Stop(signals)
	options.Signals = signals
	exit, err := parent.Run(context.Background(), options)
	if exit.Signal != 0 {
		return 128 + int(exit.Signal), err
	}
	return exit.Code, err
}

// gateOptions describe the gate.
func gateOptions(log *slog.Logger) (parent.Options, error) {
	network, err := slirp.New(slirp.Options{
		IPv4:     netip.MustParsePrefix("10.41.0.0/16"), // the service has 10.41.0.100
		SourceIP: true,
		Logger:   log,
	})
	if err != nil {
		return parent.Options{}, err
	}
	return parent.Options{
		// This program again: there is one file to install, wherever it is.
		Command:     append([]string{"/proc/self/exe"}, os.Args[1:]...),
		EnvPrefixes: []string{envPrefix},
		Network:     network,
		Ports: func(sockets port.Sockets) port.Driver {
			// The network opens flows in the names of clients: the service sees them.
			return builtin.New(builtin.Options{Sockets: sockets, Opener: network, Logger: log})
		},
		PIDNS:    true, // whose first process collects orphans
		CgroupNS: true,
		UTSNS:    true,
		IPCNS:    true,
		CopyUp:   []string{"/etc", "/var/run", "/run", "/var/lib"},
		Logger:   log,
	}, nil
}

// runService serves inside the gate until SIGTERM or SIGINT, and prints where on the
// host it is published.
func runService(stateDir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	listener, err := net.Listen("tcp", "127.0.0.1:80") // root may, inside
	if err != nil {
		return err
	}
	defer listener.Close()
	served := make(chan error, 1)
	server := &http.Server{Handler: http.HandlerFunc(greet), ReadHeaderTimeout: patience}
	go func() { served <- server.Serve(listener) }()
	defer server.Close()

	published, err := publish(ctx, stateDir, listener.Addr().(*net.TCPAddr).Port)
	if err != nil {
		return err
	}
	fmt.Printf("published on port %d\n", published.Spec.ParentPort)
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		return nil
	}
}

// publish forwards a free port of the host to one of the namespace, for as long as
// the gate runs. Empty addresses mean all of the host's, and loopback inside.
func publish(ctx context.Context, stateDir string, inside int) (api.PortStatus, error) {
	gate := client.New(client.Options{Socket: filepath.Join(stateDir, api.SocketName)})
	defer gate.CloseIdleConnections()
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := gate.Wait(soon); err != nil {
		return api.PortStatus{}, err
	}
	status, err := gate.AddPort(ctx, api.PortSpec{Proto: "tcp", ChildPort: inside})
	if errors.Is(err, api.ErrConflict) {
		err = fmt.Errorf("somebody else listens there: %w", err)
	}
	return status, err
}

// greet tells a client who it is and where it has come to.
func greet(w http.ResponseWriter, r *http.Request) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "client %s\nuid %d, pid %d, addresses %v\n", r.RemoteAddr, os.Getuid(), os.Getpid(), addresses)
}
