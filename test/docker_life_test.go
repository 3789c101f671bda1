package test

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// How dockerd and its gate end, and that the next ones start.

// dockerd is the process id of dockerd, which the script has become.
func (d *docker) dockerd(t *testing.T) int {
	t.Helper()
	children := testenv.Children(d.info(t).ChildPID)
	if len(children) != 1 {
		t.Fatalf("the child has the children %v, want dockerd alone", children)
	}
	return children[0]
}

func TestDockerStartsAgain(t *testing.T) {
	withDocker(t, func(t *testing.T, d *docker) {
		before := trace(t, d.Host)
		d.start(t, "")
		d.importImage(t)
		d.witness(t, "web", append([]string{"--restart=always"}, published...)...)
		answers := func(t *testing.T, starts int) {
			t.Helper()
			d.serving(t, "web", starts)
			for _, network := range []string{"tcp", "udp"} {
				expectOwn(t, network, d.outside, at(d.outside.HostAddr4, 8080))
			}
		}
		answers(t, 1)
		for i, end := range []struct {
			name   string
			signal syscall.Signal
			pid    func(t *testing.T) int
			code   int
			killed syscall.Signal
		}{
			{"dockerd is told to end", syscall.SIGTERM, func(*testing.T) int { return d.PID() }, 0, 0},
			{"dockerd is killed", syscall.SIGKILL, d.dockerd, 255, 0},
			{"the child is killed", syscall.SIGKILL, func(t *testing.T) int { return d.info(t).ChildPID }, 1, 0},
			{"the parent is killed", syscall.SIGKILL, func(*testing.T) int { return d.PID() }, -1, syscall.SIGKILL},
		} {
			if err := syscall.Kill(end.pid(t), end.signal); err != nil {
				t.Fatal(err)
			}
			if r := d.Wait(t); r.Code != end.code || r.Signal != end.killed {
				t.Errorf("%s, and the gate ends with %v\nwant exit code %d", end.name, r, end.code)
			}
			d.NoProcesses(t)
			d.forgetTheDead(t)
			d.start(t, "")
			answers(t, i+2)
		}
		d.remove(t, "web")
		d.Signal(syscall.SIGTERM)
		if r := d.Wait(t); r.Code != 0 {
			t.Errorf("the gate ends with %v", r)
		}
		d.NoProcesses(t)
		after := d.Trace(t)
		if !slices.Equal(after.Mounts, before.Mounts) || !slices.Equal(after.Interfaces, before.Interfaces) {
			t.Errorf("the Host has\n%v\nand had\n%v", after, before)
		}
		for _, file := range after.Files {
			if strings.HasPrefix(file, d.Path(d.User.RuntimeDir+"/gatekit/gate")) {
				t.Errorf("left behind: %s", file)
			}
		}
	})
}

// forgetTheDead removes the files with the process ids of dockerd and containerd
// when these are dead. dockerd would take a zombie for a process that still runs,
// and when it is reaped depends on the machine's init.
func (d *docker) forgetTheDead(t *testing.T) {
	t.Helper()
	for _, file := range []string{"docker.pid", "docker/containerd/containerd.pid"} {
		file = d.Path(d.User.RuntimeDir + "/" + file)
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended well, and its file is gone
		}
		pid, err := strconv.Atoi(string(text))
		if err != nil {
			t.Fatal(err)
		}
		if testenv.Alive(pid) {
			t.Fatalf("process %d of %s is left behind", pid, file)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}
