package test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// cgroup is a cgroup of version 2 that goes with the test.
type cgroup struct {
	dir  string // as the machine and the Host see it
	path string // below the root of the hierarchy
}

// newCgroup makes a cgroup. Its owner is the Host's user when delegated, else real
// root.
func newCgroup(t *testing.T, h *testenv.Host, delegated bool) cgroup {
	t.Helper()
	root := cgroup2Mount(t)
	dir, err := os.MkdirTemp(root, "gatekit-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroup(t, dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := cgroup{dir, strings.TrimPrefix(dir, root)}
	if delegated {
		c.delegate(t, h)
	}
	return c
}

// userCgroup makes the cgroup in which systemd runs the manager of the Host's user,
// who owns it.
func userCgroup(t *testing.T, h *testenv.Host) cgroup {
	t.Helper()
	root, path := cgroup2Mount(t), ""
	for _, name := range []string{"user.slice", fmt.Sprintf("user-%d.slice", h.User.UID), fmt.Sprintf("user@%d.service", h.User.UID)} {
		path += "/" + name
		err := os.Mkdir(root+path, 0o755)
		if os.IsExist(err) {
			continue // the machine's
		}
		if err != nil {
			t.Fatal(err)
		}
		made := root + path
		t.Cleanup(func() { removeCgroup(t, made) })
	}
	c := cgroup{root + path, path}
	c.delegate(t, h)
	return c
}

// delegate gives the Host's user the files that cgroups(7) names.
func (c cgroup) delegate(t *testing.T, h *testenv.Host) {
	t.Helper()
	for _, name := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		if err := os.Chown(filepath.Join(c.dir, name), int(h.User.UID), int(h.User.GID)); err != nil {
			t.Fatal(err)
		}
	}
}

func cgroup2Mount(t *testing.T) string {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && unix.Access(fields[4], unix.W_OK) == nil {
			return fields[4]
		}
	}
	testenv.Skip(t, "/proc/self/mountinfo has no writable mount of cgroup2")
	return ""
}

// removeCgroup removes a cgroup and all below, which are empty or about to be:
// the kernel takes its time to forget ended processes.
func removeCgroup(t *testing.T, dir string) {
	var err error
	removed := testenv.Eventually(testenv.Patience, func() bool {
		var all []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		for _, path := range slices.Backward(all) {
			err = unix.Rmdir(path)
		}
		return err == nil
	})
	if !removed {
		t.Errorf("rmdir %s: %v", dir, err)
	}
}

// enter makes a command start in the cgroup.
func (c cgroup) enter(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	f, err := os.Open(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	cmd.SysProcAttr.UseCgroupFD = true
	cmd.SysProcAttr.CgroupFD = int(f.Fd())
}

// cgroupOf is the path of a process's cgroup of version 2.
func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path)
		}
	}
	t.Fatalf("process %d is in no cgroup of version 2:\n%s", pid, text)
	return ""
}

func TestEvacuationMovesOurOwnProcessesOnly(t *testing.T) {
	h := testenv.NewHost(t)
	c := newCgroup(t, h, true)
	cmd := h.Command("sleep", "infinity")
	c.enter(t, cmd)
	stranger := h.Start(t, cmd)

	cmd = h.Command("gatekit", "--state-dir="+h.User.RuntimeDir+"/gate",
		"--pidns", "--cgroupns", "--evacuate-cgroup2=evacuated", "sh", "-c", "grep ^0:: /proc/self/cgroup; exec sleep infinity")
	c.enter(t, cmd)
	g := &gate{host: h, stateDir: h.User.RuntimeDir + "/gate", Process: h.Start(t, cmd)}
	g.awaitReady(t)
	g.awaitOutput(t, "\n")
	if got := g.Stdout(); got != "0::/evacuated\n" {
		t.Errorf("the command finds itself in %q, want 0::/evacuated", got)
	}
	want := c.path + "/evacuated"
	for who, pid := range map[string]int{"parent": g.PID(), "child": g.childPID, "command": commandOf(t, g)} {
		if got := cgroupOf(t, pid); got != want {
			t.Errorf("the %s is in %s, want %s", who, got, want)
		}
	}
	if got := cgroupOf(t, stranger.PID()); got != c.path {
		t.Errorf("a process that is not ours was moved to %s", got)
	}
	g.Signal(os.Interrupt)
	g.Wait(t)
	stranger.Kill()
	<-stranger.Ended()
}

// commandOf is the process id of the command of a gate.
func commandOf(t *testing.T, g *gate) int {
	t.Helper()
	var pids []int
	testenv.Until(t, "the command", func() bool {
		pids = testenv.Children(g.childPID)
		return len(pids) == 1
	})
	return pids[0]
}

func TestEvacuationWithoutDelegationNamesIt(t *testing.T) {
	h := testenv.NewHost(t)
	c := newCgroup(t, h, false)
	cmd := h.Command("gatekit", "--pidns", "--cgroupns", "--evacuate-cgroup2=evacuated", "true")
	c.enter(t, cmd)
	before := trace(t, h)
	r := h.Run(t, cmd)
	if missing := lacks(r.Stderr, "delegat", "cgroup", c.path); r.Code != 1 || missing != nil || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("got %v\nwant exit code 1 and a line that says what lacks; %q is not there", r, missing)
	}
	h.NoTrace(t, before)
}
