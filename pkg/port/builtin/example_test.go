package builtin_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"strconv"
	"time"

	"github.com/gatekit/gatekit/pkg/port"
	"github.com/gatekit/gatekit/pkg/port/builtin"
)

// The driver alone, without a gate: a container engine that has made a network
// namespace publishes a port of it. The namespace is that of this process here, so
// that anybody can run the example; else it is a file:
//
//	netns, err := os.Open("/run/user/1000/netns/web")
//	...
//	builtin.New(builtin.Options{Sockets: port.SocketsIn(netns)})
func Example() {
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer service.Close()
	go func() {
		if conn, err := service.Accept(); err == nil {
			fmt.Fprint(conn, "hello from inside")
			conn.Close()
		}
	}()

	driver := builtin.New(builtin.Options{Sockets: port.SocketsIn(nil)})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- driver.Run(ctx) }()

	// A spec as people write it; port 0 is a free one of the host's.
	specs, err := port.Parse("127.0.0.1:0:" + strconv.Itoa(service.Addr().(*net.TCPAddr).Port) + "/tcp")
	if err != nil {
		log.Fatal(err)
	}
	added, err := driver.Add(ctx, specs)
	if err != nil {
		log.Fatal(err)
	}
	client, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", added[0].Spec.ParentPort), 10*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	text, err := io.ReadAll(client)
	client.Close()
	fmt.Println(string(text), err)

	err = driver.Remove(ctx, []int{added[0].ID}, port.DefaultDrain)
	fmt.Println(len(driver.List()), "forwards,", err)
	stop()
	fmt.Println("ended:", <-ended)
	// Output:
	// hello from inside <nil>
	// 0 forwards, <nil>
	// ended: <nil>
}
