package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

// A program publishes a port of its gate on a free port of the host. Inside the gate,
// the state dir is what the variable GATEKIT_STATE_DIR says.
func Example() {
	stateDir, end := standIn()
	defer end()
	gate := client.New(client.Options{Socket: filepath.Join(stateDir, api.SocketName)})
	defer gate.CloseIdleConnections()

	ctx := context.Background()
	if err := gate.Wait(ctx); err != nil { // it may just be starting
		log.Fatal(err)
	}
	added, err := gate.AddPort(ctx, api.PortSpec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 80})
	switch {
	case errors.Is(err, api.ErrConflict):
		log.Fatal("somebody else has it: ", err)
	case err != nil:
		log.Fatal(err)
	}
	fmt.Printf("http://127.0.0.1:%d/\n", added.Spec.ParentPort)
	if err := gate.RemovePort(ctx, added.ID); err != nil {
		log.Fatal(err)
	}
	fmt.Println(errors.Is(gate.RemovePort(ctx, added.ID), api.ErrNotFound))
	// Output:
	// http://127.0.0.1:40080/
	// true
}

// standIn answers as a gate does that has port 40080 free, until end is called.
func standIn() (stateDir string, end func()) {
	stateDir, err := os.MkdirTemp("", "gate")
	if err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(stateDir, api.SocketName))
	if err != nil {
		log.Fatal(err)
	}
	removed := false
	calls := http.NewServeMux()
	calls.HandleFunc("GET /v1/info", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") })
	calls.HandleFunc("POST /v1/ports", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"id":1,"spec":{"proto":"tcp","parentIP":"127.0.0.1","parentPort":40080,"childPort":80}}`)
	})
	calls.HandleFunc("DELETE /v1/ports/1", func(w http.ResponseWriter, _ *http.Request) {
		if removed {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"code":"not_found","message":"no such forward: 1"}`)
		}
		removed = true
	})
	server := &http.Server{Handler: calls}
	ended := make(chan struct{})
	go func() { defer close(ended); server.Serve(ln) }()
	return stateDir, func() {
		server.Close()
		<-ended
		os.RemoveAll(stateDir)
	}
}
