package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hostPath is PATH in a Host.
const hostPath = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

// Host stands for the machine on which a gate runs: a mount, a network and a
// host name namespace, directories of its own, and a user.
type Host struct {
	// User is the Host's unprivileged user.
	User *User

	thread   *thread
	dir      string // holds etc, run, tmp ... as the machine sees them
	slot     int
	outsides int
}

// ownDirs are the directories that a Host does not share with the machine, in
// the order in which they are laid over the machine's. /tmp comes last, since
// it hides where the others come from. /srv is the tests' own, for files that
// are laid over others (Bind).
var ownDirs = []struct {
	path string
	mode os.FileMode
}{
	{"/etc", 0o755}, {"/run", 0o755}, {"/home", 0o755}, {"/srv", 0o755}, {"/tmp", 0o777 | os.ModeSticky},
}

// NewHost makes a Host that goes with the test. When the test ends, processes
// that are still in it, other than those that the test started and their
// children, fail the test.
func NewHost(t testing.TB) *Host {
	t.Helper()
	RequireRoot(t)
	bin := Binaries(t)
	s, err := takeSlot("host")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.free)
	h := &Host{User: newUser(s.number), dir: s.dir, slot: s.number}
	if err := h.furnish(); err != nil {
		t.Fatalf("make a Host: %v", err)
	}
	if h.thread, err = newThread(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
		Skip(t, fmt.Sprintf("unshare(CLONE_NEWNS|CLONE_NEWNET|CLONE_NEWUTS): %v", err))
	}
	t.Cleanup(h.thread.close)
	if err := h.thread.do(func() error { return h.enter(bin) }); err != nil {
		t.Fatalf("make a Host: %v", err)
	}
	t.Cleanup(func() {
		h.NoProcesses(t)
		h.killAll()
	})
	return h
}

// furnish makes the Host's directories.
func (h *Host) furnish() error {
	for _, d := range ownDirs {
		if err := os.Mkdir(h.Path(d.path), 0o755); err != nil {
			return err
		}
		if err := os.Chmod(h.Path(d.path), d.mode); err != nil {
			return err
		}
	}
	// A file of the machine's, such as a lock, may go while it is copied.
	var out []byte
	var err error
	if !Eventually(Patience, func() bool {
		out, err = exec.Command("cp", "-a", "/etc/.", h.Path("/etc")).CombinedOutput()
		return err == nil
	}) {
		return fmt.Errorf("copy /etc: %w: %s", err, out)
	}
	// A symlink to the machine's resolver must not be followed.
	if err := os.RemoveAll(h.Path("/etc/resolv.conf")); err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	for path, text := range map[string]string{
		"/etc/resolv.conf": "nameserver 192.0.2.53\nsearch example.test\n",
		"/etc/hosts":       "127.0.0.1 localhost\n::1 localhost\n198.51.100.80 www.example.test\n127.0.0.1 " + hostname + "\n",
	} {
		if err := os.WriteFile(h.Path(path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/run/lock", "/run/user/0"} {
		if err := os.MkdirAll(h.Path(dir), 0o755); err != nil {
			return err
		}
	}
	return h.addUser()
}

// enter runs on the Host's thread: it lays the Host's directories over the
// machine's, brings the loopback interface up, and lets everybody have ping
// sockets, as systemd does; the kernel itself allows none.
func (h *Host) enter(bin string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := bind(bin, "/usr/local/bin"); err != nil {
		return err
	}
	if err := h.openTUN(); err != nil {
		return err
	}
	for _, d := range ownDirs {
		if err := bind(h.Path(d.path), d.path); err != nil {
			return err
		}
	}
	// Shared, as systemd makes it, within this namespace only.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0o644)
}

// openTUN gives the Host a /dev/net/tun that everybody may open. The machine's
// own keeps its mode.
func (h *Host) openTUN() error {
	dev := filepath.Join(h.dir, "dev")
	if err := os.Mkdir(dev, 0o755); err != nil {
		return err
	}
	// The temp directory may be on a file system without devices.
	if err := unix.Mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	node := filepath.Join(dev, "tun")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		return fmt.Errorf("mknod %s: %w", node, err)
	}
	if err := os.Chmod(node, 0o666); err != nil {
		return err
	}
	return bind(node, "/dev/net/tun")
}

func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", source, target, err)
	}
	return nil
}

// marker is in the environment of each process of the Host.
func (h *Host) marker() string {
	return fmt.Sprintf("GATEKIT_TESTENV_HOST=%d", h.slot)
}

// Path is where the machine, and so the test itself, sees a file of the Host
// that is under /etc, /run, /home, /srv or /tmp.
func (h *Host) Path(path string) string { return filepath.Join(h.dir, path) }

// WriteFile writes a file that is under one of the Host's own directories; the
// file is root's.
func (h *Host) WriteFile(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(h.Path(path), []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.Path(path), mode); err != nil {
		t.Fatal(err)
	}
}

// ReadFile reads a file that is under one of the Host's own directories.
func (h *Host) ReadFile(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(h.Path(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Bind lays source over target in the Host, until the end of the test. Both
// are paths of the Host and exist.
func (h *Host) Bind(t testing.TB, source, target string) {
	t.Helper()
	if err := h.thread.do(func() error { return bind(source, target) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = h.thread.do(func() error { return unix.Unmount(target, unix.MNT_DETACH) })
	})
}

// Do runs f on the Host's thread: files it opens and sockets it makes are those
// of the Host, and can be used elsewhere then. f must not call t.Fatal, and must
// not leave the making of sockets to other goroutines: dial addresses, not names.
func (h *Host) Do(t testing.TB, f func() error) {
	t.Helper()
	if err := h.thread.do(f); err != nil {
		t.Fatal(err)
	}
}

// Command is a command in the Host that runs as its user, in the user's home,
// with a login's environment. The caller may change it before it is started.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	cmd := h.command(name, args)
	u := h.User
	cmd.Dir = u.Home
	cmd.SysProcAttr.Credential = u.credential()
	cmd.Env = append(cmd.Env, "HOME="+u.Home, "USER="+u.Name, "LOGNAME="+u.Name, "XDG_RUNTIME_DIR="+u.RuntimeDir)
	return cmd
}

// RootCommand is a command in the Host that runs as real root.
func (h *Host) RootCommand(name string, args ...string) *exec.Cmd {
	cmd := h.command(name, args)
	cmd.Dir = "/"
	cmd.Env = append(cmd.Env, "HOME=/root", "USER=root", "LOGNAME=root", "XDG_RUNTIME_DIR=/run/user/0")
	return cmd
}

func (h *Host) command(name string, args []string) *exec.Cmd {
	return &exec.Cmd{
		Path: lookUp(name),
		Args: append([]string{name}, args...),
		Env:  []string{"PATH=" + hostPath, "LANG=C.UTF-8", "TERM=xterm", h.marker()},
		// A test binary that is killed takes its gates along.
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	}
}

// lookUp finds a program in the PATH of a Host. exec.LookPath would look in the
// machine's.
func lookUp(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, dir := range filepath.SplitList(hostPath) {
		seen := dir
		if dir == "/usr/local/bin" {
			seen, _ = binaries()
		}
		if info, err := os.Stat(filepath.Join(seen, name)); err == nil && info.Mode()&0o111 != 0 {
			return filepath.Join(dir, name)
		}
	}
	return filepath.Join("/usr/local/bin", name) // starting it says that it is not there
}

// Start starts a command in the Host.
func (h *Host) Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	return start(t, cmd, h.thread.start)
}

// Run runs a command in the Host and waits for its end.
func (h *Host) Run(t testing.TB, cmd *exec.Cmd) Result {
	t.Helper()
	return h.Start(t, cmd).Wait(t)
}

// Trace is what a gate could leave behind on a Host.
type Trace struct {
	Mounts, Files, Interfaces []string
}

// Trace lists the Host's mounts, the files in its /run, /tmp and /home, and its
// network interfaces.
func (h *Host) Trace(t testing.TB) Trace {
	t.Helper()
	var trace Trace
	h.Do(t, func() error {
		mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err != nil {
			return err
		}
		trace.Mounts = strings.Split(string(mounts), "\n")
		links, err := netlink.LinkList()
		for _, l := range links {
			trace.Interfaces = append(trace.Interfaces, l.Attrs().Name)
		}
		return err
	})
	for _, dir := range []string{"/run", "/tmp", "/home"} {
		err := filepath.WalkDir(h.Path(dir), func(path string, _ os.DirEntry, err error) error {
			trace.Files = append(trace.Files, path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return trace
}

// NoTrace waits until no process of the Host is left, and fails the test when a
// process, mount, file or interface is there that was not there before.
func (h *Host) NoTrace(t testing.TB, before Trace) {
	t.Helper()
	h.NoProcesses(t)
	after := h.Trace(t)
	for _, kind := range []struct {
		name          string
		before, after []string
	}{
		{"mount", before.Mounts, after.Mounts},
		{"file", before.Files, after.Files},
		{"interface", before.Interfaces, after.Interfaces},
	} {
		for _, x := range kind.after {
			if !slices.Contains(kind.before, x) {
				t.Errorf("%s left behind: %s", kind.name, x)
			}
		}
	}
}

// Hide makes a file of the machine disappear from the Host, until the end of the
// test: an overlay that lacks it is laid over its directory.
func (h *Host) Hide(t testing.TB, path string) {
	t.Helper()
	dir := filepath.Dir(path)
	layers, err := os.MkdirTemp(h.Path("/srv"), "hide-")
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(layers, layer), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	seen := "/srv/" + filepath.Base(layers) // in the Host
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", dir, seen, seen)
	h.Do(t, func() error {
		if err := unix.Mount("overlay", dir, "overlay", 0, options); err != nil {
			return fmt.Errorf("mount an overlay on %s: %w", dir, err)
		}
		return os.Remove(path)
	})
	t.Cleanup(func() {
		_ = h.thread.do(func() error { return unix.Unmount(dir, unix.MNT_DETACH) })
	})
}
