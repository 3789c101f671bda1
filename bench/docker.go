package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/gatekit/gatekit/bench/agent"
	"github.com/gatekit/gatekit/bench/gates"
	"github.com/gatekit/gatekit/bench/report"
	"github.com/gatekit/gatekit/bench/site"
	"github.com/gatekit/gatekit/internal/image"
)

// A container of Docker's behind a gate. dockerd-rootless.sh starts dockerd on the gate
// as its RootlessKit. The container is on Docker's default bridge, whose MTU is 1500,
// publishes ports, and runs an agent, whose socket is mounted into it.
//
//	outside                host            GATE             dockerd's namespace   container
//	iperf3 -- eth0 - eth0 - sockets - its network or forwards - docker0 - eth0 -- iperf3

// dockerLimit is how long it may take until the container runs.
const dockerLimit = time.Minute

// dockerSteps are what is measured of a container, if the gate can have one.
func (b *bench) dockerSteps(running *gate) []step {
	if b.docker == nil || running.of.Kit == "" {
		return nil
	}
	out := link{b: b, client: running.child, server: b.outside, addr: site.OutsideAddr}
	in := link{b: b, client: b.outside, server: running.child, addr: site.HostAddr, offset: forwarded}
	return []step{
		out.streamStep(1, false, "docker.out", "", ""),
		in.streamStep(1, false, "docker.in", "", ""),
		in.streamStep(1, true, "docker.back", "", ""),
		in.addressStep("docker.address"),
	}
}

// findDocker looks for Docker and makes the image. Without Docker its rows are left out.
func (b *bench) findDocker(ctx context.Context) error {
	root := "/"
	if _, err := os.Stat(b.Docker); err == nil {
		if root, err = b.site.Show(b.Docker, "docker"); err != nil {
			return err
		}
	}
	found, err := gates.FindDocker(ctx, root)
	if err != nil {
		b.leaveOut(err)
		return nil
	}
	b.docker = &found
	b.results.Tools = append(b.results.Tools, report.Subject{Name: "Docker", Version: found.Version})
	file, err := os.Create(b.site.Path("image.tar"))
	if err != nil {
		return err
	}
	content := image.Root{Programs: map[string]string{"bin/bench": b.self, "bin/iperf3": b.iperf3}}
	return errors.Join(content.Write(file), file.Close())
}

// startDocker starts dockerd on a gate, and a container with an agent. The caller stops
// the gate.
func (b *bench) startDocker(ctx context.Context, g gates.Gate) (*gate, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, dockerLimit, fmt.Errorf("no container ran within %v", dockerLimit))
	defer cancel()
	b.agents++
	running := &gate{b: b, of: g, dir: b.site.Path("run", fmt.Sprintf("docker-%d", b.agents))}
	place, err := b.dockerPlace(running)
	if err != nil {
		return nil, err
	}
	if running.before, err = alive(); err != nil {
		return nil, err
	}
	running.process, err = b.site.Start(site.Host, b.docker.Command(g, place, "dockerd-rootless.sh")...)
	if err != nil {
		return nil, err
	}
	if running.child, err = b.runContainer(ctx, running, place); err == nil {
		err = serve(ctx, running.child)
	}
	if err != nil {
		running.stop()
		return nil, err
	}
	return running, nil
}

// dockerPlace makes the directories of a dockerd, below the gate's own.
func (b *bench) dockerPlace(running *gate) (gates.Place, error) {
	at := func(name string) string { return running.dir + "/" + name }
	place := gates.Place{Links: at("links"), Home: at("home"), Runtime: at("run"), Path: site.Searched, IDs: b.ids()}
	for _, dir := range []string{running.dir, place.Links, place.Home, place.Runtime} {
		if err := b.site.MakeDir(dir); err != nil {
			return place, err
		}
	}
	return place, os.Symlink(running.of.Kit, place.Links+"/"+gates.KitName)
}

// runContainer waits for dockerd, and runs the container.
func (b *bench) runContainer(ctx context.Context, running *gate, place gates.Place) (*agent.Agent, error) {
	dockerd := running.process
	for {
		if _, err := os.Stat(place.Socket()); err == nil {
			break
		}
		select {
		case <-dockerd.Ended:
			return nil, errors.Join(errEnded, dockerd.Err())
		default:
		}
		if err := wait(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
	socket, listener, err := b.listen()
	if err != nil {
		return nil, err
	}
	run := []string{"run", "--detach", "--volume=" + socket + ":" + socket}
	for _, port := range []int{portTCP, portStream} {
		run = append(run, fmt.Sprintf("--publish=%d:%d", port+forwarded, port))
	}
	for _, args := range [][]string{
		{"import", b.site.Path("image.tar"), "bench"},
		append(run, "bench", "/bin/bench", "agent", socket),
	} {
		client, err := b.site.Start(site.Host, b.docker.Command(running.of, place, "docker", args...)...)
		if err == nil {
			err = finish(ctx, client)
		}
		if err != nil {
			listener.Close()
			return nil, err
		}
	}
	return awaitAgent(ctx, listener, dockerd)
}
