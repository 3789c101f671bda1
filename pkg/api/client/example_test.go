package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

// A program inside a gate publishes its own port on a free port of the host.
func Example() {
	c := client.New(client.Options{Socket: filepath.Join(os.Getenv("GATEKIT_STATE_DIR"), "api.sock")})
	defer c.CloseIdleConnections()

	added, err := c.AddPort(context.Background(), api.PortSpec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 80})
	switch {
	case errors.Is(err, api.ErrConflict):
		log.Fatal("somebody else has it: ", err)
	case err != nil:
		log.Fatal(err)
	}
	fmt.Printf("http://127.0.0.1:%d/\n", added.Spec.ParentPort)
}
