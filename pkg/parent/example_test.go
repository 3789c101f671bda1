package parent_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"

	"github.com/gatekit/gatekit/pkg/child"
	"github.com/gatekit/gatekit/pkg/network/slirp"
	"github.com/gatekit/gatekit/pkg/parent"
	"github.com/gatekit/gatekit/pkg/port"
)

// A command as root in namespaces of its own. The program is executed again to be the
// child, and so main begins with
//
//	if child.IsChild() {
//		os.Exit(child.Main(child.Options{}))
//	}
func ExampleRun() {
	err := parent.Run(context.Background(), parent.Options{
		Command:  []string{"sh", "-c", "echo user $(id -u); exit 3"},
		SingleID: true, // the caller alone: no /etc/subuid is needed
	})
	fmt.Println(err)
	// Output:
	// user 0
	// the command ended with exit code 3
}

// A gate with a network of its own and a port of the host's, as a server would have
// it. Nothing runs here: it needs /dev/net/tun and subordinate ids.
func ExampleRun_network() {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if child.IsChild() {
		os.Exit(child.Main(child.Options{Logger: logger}))
	}
	network, err := slirp.New(slirp.Options{SourceIP: true, Logger: logger})
	if err != nil {
		log.Fatal(err)
	}
	publish, err := port.Parse("8080:80/tcp")
	if err != nil {
		log.Fatal(err)
	}
	err = parent.Run(context.Background(), parent.Options{
		Command:     []string{"/srv/server"},
		Network:     network,
		Publish:     publish,
		CopyUpDirs:  []string{"/etc"},
		CreatePIDNS: true,
		Signals:     parent.ForwardableSignals(),
		Logger:      logger,
	})
	var exit *parent.ExitError
	if errors.As(err, &exit) { // the server's business
		os.Exit(exit.Status())
	}
	if err != nil {
		log.Fatal(err)
	}
}
