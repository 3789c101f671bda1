package parent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestOurCgroupIsFoundBelowItsMount(t *testing.T) {
	unified := &mountinfo.Info{Mountpoint: "/sys/fs/cgroup", Root: "/"}
	hybrid := &mountinfo.Info{Mountpoint: "/sys/fs/cgroup/unified", Root: "/"}
	part := &mountinfo.Info{Mountpoint: "/mnt", Root: "/docker/1"}
	for _, tc := range []struct {
		name, proc string
		mounts     []*mountinfo.Info
		want, err  string
	}{
		{"version 2 alone", "0::/user.slice/gate.scope\n", []*mountinfo.Info{unified}, "/sys/fs/cgroup/user.slice/gate.scope", ""},
		{"the root", "0::/\n", []*mountinfo.Info{unified}, "/sys/fs/cgroup", ""},
		{"beside version 1", "9:name=systemd:/a\n4:memory:/b\n0::/c\n", []*mountinfo.Info{hybrid}, "/sys/fs/cgroup/unified/c", ""},
		{"a mount of a part of the tree", "0::/docker/1/gate\n", []*mountinfo.Info{part}, "/mnt/gate", ""},
		{"the top of a part", "0::/docker/1\n", []*mountinfo.Info{part}, "/mnt", ""},
		{"another mount fits", "0::/docker/10\n", []*mountinfo.Info{part, unified}, "/sys/fs/cgroup/docker/10", ""},
		{"a colon in the name", "0::/a:b\n", []*mountinfo.Info{unified}, "/sys/fs/cgroup/a:b", ""},
		{"outside of all mounts", "0::/docker/10\n", []*mountinfo.Info{part}, "", "/docker/10, the cgroup of this process, is not below /mnt"},
		{"above the cgroup namespace", "0::/../other\n", []*mountinfo.Info{part}, "", "is not below /mnt"},
		{"version 1 alone", "4:memory:/b\n", []*mountinfo.Info{unified}, "", "no cgroup version 2"},
		{"not mounted", "0::/\n", nil, "", "no cgroup version 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := cgroup2Dir(tc.mounts, tc.proc)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %q, %v; want an error with %q", got, err, tc.err)
				}
			} else if err != nil || got != tc.want {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

// cgroupTree is a kernel's cgroup tree in a directory: writes move processes and
// switch controllers by the rules of version 2.
type cgroupTree struct {
	t    *testing.T
	dir  string
	deny error    // of every write
	gone []string // pids that no longer exist
	lack []string // controllers that cannot be switched on
}

func newCgroupTree(t *testing.T, procs, controllers, enabled string) *cgroupTree {
	tree := &cgroupTree{t: t, dir: t.TempDir()}
	tree.put("cgroup.procs", procs)
	tree.put("cgroup.controllers", controllers)
	tree.put("cgroup.subtree_control", enabled)
	return tree
}

func (k *cgroupTree) put(name, words string) {
	if err := os.WriteFile(filepath.Join(k.dir, name), []byte(words), 0o644); err != nil {
		k.t.Fatal(err)
	}
}

func (k *cgroupTree) get(name string) string {
	b, err := os.ReadFile(filepath.Join(k.dir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		k.t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// set adds word to the file, or takes it away. The file of an empty cgroup goes:
// unlike a real one, its directory could not be removed with it.
func (k *cgroupTree) set(name, word string, in bool) {
	words := slices.DeleteFunc(strings.Fields(k.get(name)), func(w string) bool { return w == word })
	if in {
		words = append(words, word)
	}
	if len(words) == 0 && filepath.Dir(name) != "." {
		os.Remove(filepath.Join(k.dir, name))
		return
	}
	k.put(name, strings.Join(words, "\n"))
}

// write is evacuation.write.
func (k *cgroupTree) write(path, text string) error {
	name, err := filepath.Rel(k.dir, path)
	if err != nil {
		return err
	}
	switch {
	case k.deny != nil:
		return &os.PathError{Op: "open", Path: path, Err: k.deny}
	case name == "cgroup.subtree_control":
		if text[0] == '+' && (k.get("cgroup.procs") != "" || slices.Contains(k.lack, text[1:])) {
			return &os.PathError{Op: "write", Path: path, Err: unix.EBUSY}
		}
		k.set(name, text[1:], text[0] == '+')
		return nil
	case name == "cgroup.procs" && k.get("cgroup.subtree_control") != "":
		return &os.PathError{Op: "write", Path: path, Err: unix.EBUSY}
	}
	k.set("cgroup.procs", text, false)
	k.set("engines/cgroup.procs", text, false)
	if slices.Contains(k.gone, text) {
		return &os.PathError{Op: "write", Path: path, Err: unix.ESRCH}
	}
	k.set(name, text, true)
	return nil
}

// evacuate runs an evacuation of processes 10 and 11 to "engines".
func (k *cgroupTree) evacuate() (e *evacuation, log string, err error) {
	var b bytes.Buffer
	e = newEvacuation(k.dir, "engines", []int{10, 11})
	e.write = k.write
	err = e.run(slog.New(slog.NewTextHandler(&b, nil)))
	return e, b.String(), err
}

func (k *cgroupTree) wants(procs, inside, enabled string) {
	k.t.Helper()
	for name, want := range map[string]string{
		"cgroup.procs":           procs,
		"engines/cgroup.procs":   inside,
		"cgroup.subtree_control": enabled,
	} {
		if got := k.get(name); got != want {
			k.t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
}

func (k *cgroupTree) undo(e *evacuation) {
	k.t.Helper()
	if err := e.undo(); err != nil {
		k.t.Error(err)
	}
}

// removed checks that the cgroup of the gate is gone.
func (k *cgroupTree) removed() {
	k.t.Helper()
	if _, err := os.Stat(filepath.Join(k.dir, "engines")); !errors.Is(err, os.ErrNotExist) {
		k.t.Errorf("the cgroup is still there: %v", err)
	}
}

func TestEvacuationHandsDownAllControllersAndBack(t *testing.T) {
	k := newCgroupTree(t, "10\n11\n", "cpu memory pids", "")
	e, log, err := k.evacuate()
	if err != nil || log != "" {
		t.Fatalf("%v, logged %q", err, log)
	}
	k.wants("", "10 11", "cpu memory pids")
	k.undo(e)
	k.wants("10 11", "", "")
	k.removed()
}

func TestEvacuationMovesNoStrangersAndNamesThem(t *testing.T) {
	self := fmt.Sprint(os.Getpid())
	k := newCgroupTree(t, "10\n"+self+"\n11\n4194999\n", "cpu memory", "")
	e, log, err := k.evacuate()
	if err != nil {
		t.Fatal(err)
	}
	k.wants(self+" 4194999", "10 11", "")
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"level=WARN", "systemd-run --user --scope -p Delegate=yes", k.dir, self + " (" + strings.TrimSpace(string(comm)) + "), 4194999 (?)"} {
		if !strings.Contains(log, want) {
			t.Errorf("logged %q, want %q", log, want)
		}
	}
	if strings.Count(log, "\n") != 1 {
		t.Errorf("logged %q, want one line", log)
	}
	k.undo(e)
	k.wants(self+" 4194999 10 11", "", "")
	k.removed()
}

func TestEvacuationNamesTenStrangersAtMost(t *testing.T) {
	k := newCgroupTree(t, "10\n11\n"+strings.Repeat("4194999 ", 12), "cpu", "")
	_, log, err := k.evacuate()
	if err != nil || strings.Count(log, "4194999 (?)") != 10 || !strings.Contains(log, "and 2 more") {
		t.Errorf("%v, logged %q", err, log)
	}
}

func TestEvacuationGoesOnWithoutAControllerThatIsRefused(t *testing.T) {
	k := newCgroupTree(t, "10\n11\n", "cpu memory pids", "")
	k.lack = []string{"memory"}
	e, log, err := k.evacuate()
	if err != nil || !strings.Contains(log, "controller=memory") {
		t.Fatalf("%v, logged %q", err, log)
	}
	k.wants("", "10 11", "cpu pids")
	k.undo(e)
	k.wants("10 11", "", "")
}

func TestEvacuationOfAnUndelegatedCgroupIsOneLineWithItsMend(t *testing.T) {
	for _, tc := range []struct {
		deny error
		want string
	}{
		{unix.EACCES, "not delegated to this user"},
		{unix.EPERM, "systemd-run --user --scope -p Delegate=yes"},
		{unix.EROFS, "mounted read-only"},
		{unix.ENOENT, "no such file or directory"},
	} {
		t.Run(tc.deny.Error(), func(t *testing.T) {
			k := newCgroupTree(t, "10\n11\n", "cpu", "")
			k.deny = tc.deny
			_, log, err := k.evacuate()
			if !errors.Is(err, tc.deny) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), k.dir) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, tc.want)
			}
			if log != "" {
				t.Errorf("logged %q", log)
			}
			k.wants("10 11", "", "")
			k.removed()
		})
	}
}

func TestEvacuationIntoACgroupThatCannotBeMade(t *testing.T) {
	k := newCgroupTree(t, "10\n11\n", "cpu", "")
	k.dir = filepath.Join(k.dir, "missing")
	if _, _, err := k.evacuate(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), k.dir) {
		t.Error(err)
	}
}

func TestEvacuationFallsBackWhenAProcessHasEnded(t *testing.T) {
	k := newCgroupTree(t, "10\n11\n", "cpu", "")
	k.gone = []string{"11"}
	_, _, err := k.evacuate()
	if !errors.Is(err, unix.ESRCH) {
		t.Error(err)
	}
	k.wants("10", "", "")
	k.removed()
}

func TestEvacuationUndoesAfterTheChildsEnd(t *testing.T) {
	k := newCgroupTree(t, "10\n11\n", "cpu", "")
	e, _, err := k.evacuate()
	if err != nil {
		t.Fatal(err)
	}
	k.gone = []string{"11"}
	k.undo(e)
	k.wants("10", "", "")
	k.removed()
}

func TestEvacuationLeavesWhatOthersUse(t *testing.T) {
	t.Run("another gate in the same cgroup", func(t *testing.T) {
		k := newCgroupTree(t, "10\n11\n", "cpu", "")
		e, _, err := k.evacuate()
		if err != nil {
			t.Fatal(err)
		}
		k.set("engines/cgroup.procs", "20", true)
		k.undo(e)
		k.wants("", "10 11 20", "cpu")
	})
	t.Run("controllers that were handed down before", func(t *testing.T) {
		k := newCgroupTree(t, "", "cpu memory", "cpu")
		e, _, err := k.evacuate()
		if err != nil {
			t.Fatal(err)
		}
		k.undo(e)
		k.wants("", "10 11", "cpu")
	})
}
