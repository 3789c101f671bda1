package parent

import (
	"fmt"
	"log"
	"net"
	"os"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/child"
	"github.com/gatekit/gatekit/pkg/network"
)

// The test binary is the child of the gates that it runs, and the service of an
// example. It knows the child half of a driver of its own, which hands up what it sees.
func TestMain(m *testing.M) {
	if child.IsChild() {
		os.Exit(child.Main(child.Options{Networks: map[string]child.NetworkSetup{
			"ours": func(network.Plan) ([]*os.File, error) {
				f, err := os.Open("/proc/thread-self/ns/net")
				return []*os.File{f}, err
			},
		}}))
	}
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		sayHello()
		return
	}
	testenv.Main(m)
}

// sayHello says hello to one client on port 80.
func sayHello() {
	l, err := net.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("serving")
	conn, err := l.Accept()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintf(conn, "hello from user %d", os.Getuid())
	conn.Close()
}
