package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gatekit/gatekit/pkg/api"
)

// The whole demonstration ends after this, well or not.
const tourTime = 90 * time.Second

// What runs inside the gate, line by line; sh(1) shows each line before it is
// run. FILE_PORT and NAME come by the environment. The last line answers on a
// port until the demonstration closes its stdin.
const insideScript = `
set -e
gateway=$(demo gateway)
PS4='$ '
set -x
id
demo addresses
demo fetch "http://$gateway:$FILE_PORT/hello.txt"
demo lookup "$NAME"
exec demo serve 127.0.0.1:8080 "hello from inside the gate"
`

// A guide leads through the demonstration with the programs in bin.
type guide struct {
	bin   string // of gatekit and gatectl
	dir   string // of ours, gone at the end
	state string // the gate's state dir
}

// tour is the demonstration: two servers on the host, a gate that uses both,
// and a port published from it.
func tour(ctx context.Context, args []string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, tourTime)
	defer cancel()
	dir, err := os.MkdirTemp("", "gatekit-tour-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	g := &guide{bin: args[0], dir: dir, state: filepath.Join(dir, "state")}

	servers, err := listenOnHost("hello from the host")
	if err != nil {
		return err
	}
	title("On the host: a file server on %s and a DNS server on %s", servers.files.Addr(), servers.names.LocalAddr())
	serving, stopServing := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return servers.Run(serving) })
	group.Go(func() error {
		defer stopServing()
		return g.gate(ctx, servers)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	title("The gate has ended, and all it made with it")
	return nil
}

// gate runs the gate, and what is done with it from outside, to its end.
func (g *guide) gate(ctx context.Context, servers *hostServers) error {
	filePort := strconv.Itoa(servers.files.Addr().(*net.TCPAddr).Port)
	args := []string{"--net=slirp", "--copy-up=/etc", "--state-dir=" + g.state, "--host-loopback=" + filePort,
		"--dns=" + servers.names.LocalAddr().String(), "sh", "-c"}
	title("A gate, in which this user is root; it may reach port %s of the host's loopback", filePort)
	fmt.Printf("$ gatekit %s ...\n", strings.Join(args, " "))

	helper, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(g.bin, "gatekit"), append(args, insideScript)...)
	cmd.Env = append(os.Environ(), "FILE_PORT="+filePort, "NAME="+hostName,
		"PATH="+filepath.Dir(helper)+":"+os.Getenv("PATH"))
	// It ends by itself on SIGTERM, and takes its child with it.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	output, outputEnd := io.Pipe()
	defer output.Close() // lets a writer go that nobody reads
	cmd.Stdout, cmd.Stderr = outputEnd, outputEnd
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		outputEnd.Close()
		ended <- err
	}()
	serving, relayed := make(chan struct{}), make(chan struct{})
	go func() {
		relay(output, "serving ", serving)
		close(relayed)
	}()

	outside := errors.New("it ended before its server answered")
	select {
	case <-serving:
		outside = g.publish(ctx)
	case <-relayed:
	}
	stdin.Close()
	<-relayed
	if err := <-ended; err != nil {
		return fmt.Errorf("gatekit: %w", errors.Join(err, outside))
	}
	return outside
}

// publish does what another terminal would: adds a port, uses it, and removes
// it.
func (g *guide) publish(ctx context.Context) error {
	title("From another process: port 8080 inside is published on a free port of the host")
	id, err := g.gatectl(ctx, "add-ports", "127.0.0.1:0:8080/tcp")
	if err != nil {
		return err
	}
	if _, err := g.gatectl(ctx, "list-ports"); err != nil {
		return err
	}
	port, err := g.parentPort(ctx, strings.TrimSpace(id))
	if err != nil {
		return err
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	fmt.Printf("$ demo fetch %s\n", url)
	text, err := get(ctx, url)
	if err != nil {
		return err
	}
	fmt.Print(text)
	_, err = g.gatectl(ctx, "remove-ports", strings.TrimSpace(id))
	return err
}

// parentPort is the port that the forward with this id was given on the host.
func (g *guide) parentPort(ctx context.Context, id string) (int, error) {
	cmd := g.gatectlCommand(ctx, "list-ports", "--json")
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("gatectl list-ports --json: %w", err)
	}
	var forwards []api.PortStatus
	if err := json.Unmarshal(out, &forwards); err != nil {
		return 0, fmt.Errorf("gatectl list-ports --json: %w", err)
	}
	for _, forward := range forwards {
		if strconv.Itoa(forward.ID) == id {
			return forward.Spec.ParentPort, nil
		}
	}
	return 0, fmt.Errorf("gatectl list-ports: no forward with the id %q", id)
}

// gatectl shows a command, runs it, and shows and returns what it printed.
func (g *guide) gatectl(ctx context.Context, args ...string) (string, error) {
	fmt.Printf("$ gatectl %s\n", strings.Join(args, " "))
	out, err := g.gatectlCommand(ctx, args...).CombinedOutput()
	fmt.Print(string(out))
	if err != nil {
		return "", fmt.Errorf("gatectl %s: %w", args[0], err)
	}
	return string(out), nil
}

func (g *guide) gatectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	socket := filepath.Join(g.state, "api.sock")
	return exec.CommandContext(ctx, filepath.Join(g.bin, "gatectl"), append([]string{"--socket", socket}, args...)...)
}

// relay prints what r brings, line by line, until it ends, and closes seen at
// the first line that starts with prefix.
func relay(r io.Reader, prefix string, seen chan<- struct{}) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fmt.Println(lines.Text())
		if seen != nil && strings.HasPrefix(lines.Text(), prefix) {
			close(seen)
			seen = nil
		}
	}
}

func title(format string, args ...any) {
	fmt.Printf("\n== "+format+"\n", args...)
}
