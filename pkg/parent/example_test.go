package parent_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/parent"
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

// A service in a network namespace of its own, and a port of the host's that leads to
// it. Here the namespace has no way out; slirp.New makes one that reaches the network,
// for which there has to be /dev/net/tun.
func ExampleRun_ports() {
	dir, err := os.MkdirTemp("", "gate")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	said, says, err := os.Pipe()
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- parent.Run(context.Background(), parent.Options{
			Command:     []string{"/proc/self/exe", "serve"}, // hello, to one client on port 80
			StateDir:    dir,
			Network:     network.None(),
			CreatePIDNS: true,
			SingleID:    true,
			Stdout:      says,
			Logger:      slog.New(slog.NewTextHandler(os.Stderr, nil)),
		})
		says.Close()
	}()
	// The API was there before the service.
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil {
		log.Fatalf("%q: %v", line, <-ended)
	}
	said.Close()
	ctx := context.Background()
	gate := client.New(client.Options{Socket: filepath.Join(dir, api.SocketName)})
	published, err := gate.AddPort(ctx, api.PortSpec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 80})
	if err != nil {
		log.Fatal(err)
	}
	gate.CloseIdleConnections()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", published.Spec.ParentPort))
	if err != nil {
		log.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	conn.Close()
	fmt.Println(string(text), err)
	fmt.Println(<-ended)
	// Output:
	// hello from user 0 <nil>
	// <nil>
}
