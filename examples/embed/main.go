// Command embed carries a gate of its own, in the manner of k3s: a web server that
// anybody can start, and that runs as root in namespaces, behind a network of its
// own, without a gatekit on the machine.
//
// The program runs three times with the same arguments, and rootless.go finds out
// which time it is:
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
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

// patience is how long a client may take for its request's header.
const patience = 30 * time.Second

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	dataDir := flag.String("data-dir", "", "`directory` for the files of the gate")
	var s settings
	flag.StringVar(&s.cidr, "cidr", "10.41.0.0/16", "IPv4 `network` of the service")
	flag.IntVar(&s.mtu, "mtu", 0, "of the service's interface, in bytes; 0 is 1500")
	flag.BoolVar(&s.enableIPv6, "ipv6", true, "IPv6 for the service, too")
	flag.BoolVar(&s.disableHostLoopback, "disable-host-loopback", true, "keep the service from the host's 127.0.0.1")
	flag.Parse()
	if *dataDir == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := rootless(*dataDir, s); err != nil {
		fail(err)
	}
	if err := serve(); err != nil {
		fail(err)
	}
}

// fail ends the program with one line.
func fail(err error) {
	fmt.Fprintln(os.Stderr, "embed:", err)
	os.Exit(1)
}

// serve serves inside the gate until SIGTERM or SIGINT, and prints where on the
// host it is published.
func serve() error {
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

	published, err := publish(ctx, listener.Addr().(*net.TCPAddr).Port)
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
func publish(ctx context.Context, inside int) (api.PortStatus, error) {
	rootlessClient := client.New(client.Options{Socket: sock})
	defer rootlessClient.CloseIdleConnections()
	if err := rootlessClient.Wait(ctx); err != nil {
		return api.PortStatus{}, err
	}
	status, err := rootlessClient.AddPort(ctx, api.PortSpec{Proto: "tcp", ChildPort: inside})
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
