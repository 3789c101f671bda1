package linux_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
)

// stranger is an id that is nobody's.
const stranger = 1_960_000_000

// hold makes namespaces of a stranger's, with the stranger as root.
func hold(t *testing.T) *linux.Holder {
	t.Helper()
	testenv.RequireRoot(t)
	h, err := linux.NewHolder(stranger, stranger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		noChildren(t)
	})
	for _, file := range []string{"uid_map", "gid_map"} {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", h.PID, file), fmt.Appendf(nil, "0 %d 1\n", stranger), 0); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestAHolderHoldsNamespacesOfAnotherUser(t *testing.T) {
	h := hold(t)
	p, err := linux.OpenProcess(h.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	owner, err := p.OwnerUID()
	if err != nil || owner != stranger {
		t.Errorf("the owner is %d (%v), want %d", owner, err, stranger)
	}
	users, err := linux.OpenUserNamespaceFile(h.Namespace("user"))
	if err != nil {
		t.Fatal(err)
	}
	defer users.Close()
	if pids, err := users.Processes(); err != nil || len(pids) != 1 || pids[0] != h.PID {
		t.Errorf("processes in its user namespace: %v, %v; want %d", pids, err, h.PID)
	}
	var names []string
	own, _ := os.Readlink("/proc/thread-self/ns/net")
	var inside string
	err = linux.InNetwork(open(t, h.Namespace("net")), func() error {
		inside, _ = os.Readlink("/proc/thread-self/ns/net")
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Attrs().Flags != 0 || l.Attrs().Name == "lo" {
				names = append(names, l.Attrs().Name)
			}
		}
		return err
	})
	if err != nil || inside == own || len(names) == 0 || names[0] != "lo" {
		t.Errorf("its network namespace is %s (ours is %s) with %q: %v", inside, own, names, err)
	}
}

func TestEntryJoinsNamespacesByTheirFiles(t *testing.T) {
	h := hold(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	files := []*os.File{open(t, h.Namespace("user")), open(t, h.Namespace("net"))}
	pid, err := linux.Entry{
		Files: files, New: unix.CLONE_NEWNS, Dir: "/", Program: program(t, "sh"), Outlive: true,
		Args:    []string{"sh", "-c", "for n in user net mnt; do readlink /proc/self/ns/$n; done; id -u; cat; cat <&3"},
		Env:     os.Environ(),
		Inherit: []*os.File{open(t, "/proc/self/comm"), w, os.Stderr, open(t, "/proc/self/comm")},
	}.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, status, err := linux.Wait(pid); err != nil || status.ExitStatus() != 0 {
		t.Errorf("wait: status %d, %v", status.ExitStatus(), err)
	}
	lines := strings.Split(string(said), "\n")
	for i, name := range []string{"user", "net"} {
		if want, _ := os.Readlink(h.Namespace(name)); lines[i] != want {
			t.Errorf("%s namespace %s, want %s", name, lines[i], want)
		}
	}
	if lines[2] == own || lines[3] != "0" || len(lines) != 7 {
		t.Errorf("a mount namespace of its own, root, and what descriptors 0 and 3 hold: %q (ours is %s)", lines[2:], own)
	}
}

func TestEntryNamesTheFileThatItCannotJoin(t *testing.T) {
	h := hold(t)
	pid, err := linux.Entry{
		Files: []*os.File{open(t, h.Namespace("user")), open(t, "/dev/null")}, Dir: "/", Program: program(t, "true"), Args: []string{"true"}, Outlive: true,
	}.Start()
	if err == nil || pid != 0 || !strings.Contains(err.Error(), "/dev/null: setns: invalid argument") {
		t.Errorf("process %d, %v", pid, err)
	}
}
