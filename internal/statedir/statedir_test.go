package statedir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/gofrs/flock"

	"github.com/gatekit/gatekit/internal/testenv"
)

// helperEnv makes the test binary hold a state dir until its stdin ends.
const helperEnv = "STATEDIR_TEST_HOLD"

func TestMain(m *testing.M) {
	if path, ok := os.LookupEnv(helperEnv); ok {
		hold(path)
		return
	}
	testenv.Main(m)
}

// hold is a gate: it makes its files, says so, and waits to be killed.
func hold(path string) {
	d, err := Create(Options{Path: path})
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	for _, f := range []string{d.Socket(), d.ResolvConf(), d.Hosts(), d.Netns(), d.Notify(), d.Ports()} {
		if err := os.WriteFile(f, []byte("left"), 0o600); err != nil {
			fmt.Println("error:", err)
			return
		}
	}
	if err := d.SetChildPID(1); err != nil {
		fmt.Println("error:", err)
		return
	}
	fmt.Println(d.Path())
	os.Stdin.Read(make([]byte, 1))
}

// startGate runs another process that holds a state dir, and returns its path
// and pid. kill ends it by SIGKILL.
func startGate(t *testing.T, path string) (dir string, pid int, kill func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill = func() {
		once.Do(func() {
			cmd.Process.Kill()
			cmd.Wait()
			stdin.Close()
		})
	}
	t.Cleanup(kill)
	buf := make([]byte, 4096)
	n, err := stdout.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(buf[:n]))
	if strings.HasPrefix(line, "error:") {
		t.Fatal(line)
	}
	return line, cmd.Process.Pid, kill
}

// home gives the test a run-time directory of its own.
func home(t *testing.T) (base string) {
	t.Helper()
	run := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", run)
	t.Setenv("TMPDIR", t.TempDir())
	return filepath.Join(run, "gatekit")
}

func create(t *testing.T, o Options) *Dir {
	t.Helper()
	d, err := Create(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func closeDir(t *testing.T, d *Dir) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// entries lists what is under base, but for the lock.
func entries(t *testing.T, base string) []string {
	t.Helper()
	list, err := os.ReadDir(base)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		if e.Name() != baseLockName {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestADirectoryMadeUnderBaseIsListedAndGoesWholly(t *testing.T) {
	base := home(t)
	d := create(t, Options{Name: "web"})
	if filepath.Dir(d.Path()) != base || !strings.HasPrefix(filepath.Base(d.Path()), "web@") {
		t.Errorf("state dir is %s, want web@... under %s", d.Path(), base)
	}
	for _, path := range []string{base, d.Path()} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: mode %v, error %v, want 0700", path, st.Mode(), err)
		}
	}
	gates, err := List()
	if err != nil || len(gates) != 1 || gates[0] != (Gate{StateDir: d.Path(), PID: os.Getpid()}) {
		t.Errorf("List() = %v, %v", gates, err)
	}
	if err := os.WriteFile(d.Ports(), []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	closeDir(t, d)
	if exists(d.Path()) {
		t.Error("the directory is still there after Close")
	}
	if gates, err := List(); len(gates) != 0 || err != nil {
		t.Errorf("List() after Close = %v, %v", gates, err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
}

func TestADirectoryElsewhereIsListedByALink(t *testing.T) {
	base := home(t)
	path := filepath.Join(t.TempDir(), "a", "b")
	d := create(t, Options{Path: path})
	if d.Unlisted() != nil {
		t.Error(d.Unlisted())
	}
	if gates, err := List(); err != nil || len(gates) != 1 || gates[0].StateDir != path {
		t.Errorf("List() = %v, %v", gates, err)
	}
	closeDir(t, d)
	if exists(path) || !exists(filepath.Dir(path)) {
		t.Error("Close removes the directory that Create made, and not its parents")
	}
	if left := entries(t, base); len(left) != 0 {
		t.Errorf("left under base: %v", left)
	}
}

func TestADirectoryThatExistedStaysAndKeepsTheUsersFiles(t *testing.T) {
	home(t)
	path := t.TempDir()
	mine := filepath.Join(path, "mine")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := create(t, Options{Path: path})
	if err := os.WriteFile(d.Socket(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	closeDir(t, d)
	if list, _ := os.ReadDir(path); len(list) != 1 || !exists(mine) {
		t.Errorf("left: %v, want only the user's file", list)
	}
}

func TestADirectoryMadeAtAPathStaysWhenItHoldsPorts(t *testing.T) {
	home(t)
	path := filepath.Join(t.TempDir(), "state")
	d := create(t, Options{Path: path})
	if err := os.WriteFile(d.Ports(), []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	closeDir(t, d)
	if list, _ := os.ReadDir(path); len(list) != 1 || list[0].Name() != portsName {
		t.Errorf("left: %v, want only ports.json", list)
	}
}

func TestARelativePathCountsFromTheWorkingDirectory(t *testing.T) {
	home(t)
	wd := t.TempDir()
	t.Chdir(wd)
	d := create(t, Options{Path: "state"})
	if d.Path() != filepath.Join(wd, "state") {
		t.Errorf("path is %s", d.Path())
	}
}

func TestADirectoryInUseIsRefusedWithThePidThatHoldsIt(t *testing.T) {
	home(t)
	path := filepath.Join(t.TempDir(), "state")
	_, pid, kill := startGate(t, path)
	for range 3 {
		_, err := Create(Options{Path: path})
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d:", pid)) || !strings.Contains(err.Error(), path) {
			t.Fatalf("error is %v, want in use by process %d", err, pid)
		}
	}
	if gates, err := List(); err != nil || len(gates) != 1 || gates[0].PID != pid {
		t.Errorf("List() = %v, %v, want process %d", gates, err, pid)
	}
	kill()
	create(t, Options{Path: path})
}

func TestWhatAKilledGateLeftIsRemovedAndPortsAreKept(t *testing.T) {
	base := home(t)
	path := filepath.Join(t.TempDir(), "state")
	_, _, kill := startGate(t, path)
	kill()
	if len(entries(t, base)) != 1 || !exists(filepath.Join(path, socketName)) {
		t.Fatal("a killed gate leaves its files")
	}
	if gates, err := List(); len(gates) != 0 || err != nil {
		t.Errorf("List() = %v, %v, want no gate", gates, err)
	}
	d := create(t, Options{Path: path})
	list, err := os.ReadDir(path)
	if err != nil || len(list) != 2 || list[0].Name() != lockName || list[1].Name() != portsName {
		t.Errorf("the directory holds %v (%v), want lock and ports.json", list, err)
	}
	if text, _ := os.ReadFile(filepath.Join(path, lockName)); string(text) != strconv.Itoa(os.Getpid()) {
		t.Errorf("lock holds %q", text)
	}
	if n := len(entries(t, base)); n != 1 {
		t.Errorf("%d entries under base, want the one of this path", n)
	}
	closeDir(t, d)
}

func TestEntriesOfKilledGatesAreSwept(t *testing.T) {
	base := home(t)
	_, _, kill := startGate(t, "")
	kill()
	gone := filepath.Join(t.TempDir(), "gone")
	_, _, kill = startGate(t, gone)
	kill()
	if err := os.RemoveAll(gone); err != nil {
		t.Fatal(err)
	}
	_, _, kill = startGate(t, filepath.Join(t.TempDir(), "state"))
	kill()
	byHand := filepath.Join(base, "mine")
	if err := os.Mkdir(byHand, 0o700); err != nil {
		t.Fatal(err)
	}
	live, _, _ := startGate(t, "")
	d := create(t, Options{})
	want := []string{filepath.Base(d.Path()), filepath.Base(live), "mine"}
	if got := entries(t, base); len(got) != len(want) {
		t.Errorf("under base: %v, want %v", got, want)
	}
	if !exists(byHand) || !exists(live) {
		t.Error("a running gate's directory, or one that the user made, was swept")
	}
}

func TestOfManyCreatesOfOnePathOneWins(t *testing.T) {
	home(t)
	path := filepath.Join(t.TempDir(), "state")
	const n = 8
	dirs := make(chan *Dir, n)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			d, err := Create(Options{Path: path})
			switch {
			case err == nil:
				dirs <- d
			case !errors.Is(err, ErrInUse):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(dirs) != 1 {
		t.Fatalf("%d of %d got the directory", len(dirs), n)
	}
	closeDir(t, <-dirs)
}

// The holder count would exceed one if a lock on a removed file counted.
func TestCreateAndCloseOfOnePathMayRace(t *testing.T) {
	home(t)
	path := filepath.Join(t.TempDir(), "state")
	var mu sync.Mutex
	holders, wins := 0, 0
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				d, err := Create(Options{Path: path})
				if errors.Is(err, ErrInUse) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				holders++
				wins++
				if holders != 1 {
					t.Errorf("%d hold the directory", holders)
				}
				mu.Unlock()
				if err := d.SetChildPID(1); err != nil {
					t.Error(err)
				}
				mu.Lock()
				holders--
				mu.Unlock()
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if wins == 0 {
		t.Error("nobody ever got the directory")
	}
	// A gate that came while another was going found the directory, and did not
	// make it: then it stays.
	if list, err := os.ReadDir(path); len(list) != 0 {
		t.Errorf("the directory holds %v, %v", list, err)
	}
}

func TestLookingDoesNotMakeCreateFail(t *testing.T) {
	home(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if _, err := List(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	path := filepath.Join(t.TempDir(), "state")
	for range 100 {
		for _, p := range []string{"", path} {
			d, err := Create(Options{Path: p})
			if err != nil {
				t.Error(err)
				continue
			}
			closeDir(t, d)
		}
	}
	close(stop)
	wg.Wait()
}

func TestADirectoryThatWasRemovedUnderTheGateIsNoError(t *testing.T) {
	home(t)
	for _, path := range []string{"", filepath.Join(t.TempDir(), "state")} {
		d := create(t, Options{Path: path})
		if err := os.RemoveAll(d.Path()); err != nil {
			t.Fatal(err)
		}
		// Another gate may have it meanwhile, and keeps it.
		next := create(t, Options{Path: d.Path()})
		closeDir(t, d)
		if gates, err := List(); err != nil || len(gates) != 1 || gates[0].StateDir != next.Path() {
			t.Errorf("List() = %v, %v, want the next gate at %s", gates, err, next.Path())
		}
		closeDir(t, next)
	}
}

func TestChildPIDAppearsReadOnlyWhateverTheUmask(t *testing.T) {
	home(t)
	d := create(t, Options{})
	if err := d.SetChildPID(4711); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Path(), "child_pid")
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "4711" {
		t.Errorf("child_pid holds %q, %v", text, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o444 {
		t.Errorf("mode %v, %v, want 0444", st.Mode(), err)
	}
}

func TestBadPathsGetOneClearLine(t *testing.T) {
	base := home(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	etc := t.TempDir()
	if err := os.WriteFile(filepath.Join(etc, "hosts"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := t.TempDir()
	if err := os.Symlink(file, filepath.Join(link, "lock")); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		o    Options
		want []string
	}{
		"a file":                          {Options{Path: file}, []string{file, "not a directory"}},
		"a path below a file":             {Options{Path: file + "/x"}, []string{file + "/x", "not a directory", "choose another"}},
		"a path that cannot be made":      {Options{Path: "/proc/none/x"}, []string{"/proc/none/x", "make it writable"}},
		"a directory with somebody's":     {Options{Path: etc}, []string{etc, "hosts", "choose another"}},
		"a lock that is a symbolic link":  {Options{Path: link}, []string{link, "symbolic link"}},
		"a name with a slash":             {Options{Name: "a/b"}, []string{`"a/b"`, "letters"}},
		"a name that starts with a dot":   {Options{Name: ".a"}, []string{`".a"`}},
		"a name with the mark of our own": {Options{Name: "a@b"}, []string{`"a@b"`}},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := Create(tc.o)
			if err == nil {
				d.Close()
				t.Fatal("no error")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q is not one line", err)
			}
		})
	}
	if !exists(filepath.Join(etc, "hosts")) || exists(filepath.Join(etc, "lock")) {
		t.Error("somebody's directory was changed")
	}
	if left := entries(t, base); len(left) != 0 {
		t.Errorf("left under base: %v", left)
	}
}

func TestBaseFallsBackToTheTempDirectory(t *testing.T) {
	for name, run := range map[string]string{
		"unset":            "",
		"missing":          "/nonexistent/run",
		"relative":         "run",
		"not this user's":  "/proc/1",
		"not a directory":  "/dev/null",
		"not for creating": "/proc/self/fd",
	} {
		t.Run(name, func(t *testing.T) {
			home(t)
			t.Setenv("XDG_RUNTIME_DIR", run)
			want := filepath.Join(os.TempDir(), "gatekit-"+strconv.Itoa(os.Geteuid()))
			if base, err := Base(); err != nil || base != want {
				t.Errorf("Base() = %s, %v, want %s", base, err, want)
			}
		})
	}
}

func TestABaseThatIsNotOursAloneIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		make func(base string) error
		want string
	}{
		"a symbolic link":      {func(b string) error { return os.Symlink(filepath.Dir(b), b) }, "symbolic link"},
		"a file":               {func(b string) error { return os.WriteFile(b, nil, 0o600) }, "not a directory"},
		"open to other users":  {func(b string) error { return errors.Join(os.Mkdir(b, 0o700), os.Chmod(b, 0o755)) }, "chmod 700"},
		"of a user who is not": {func(b string) error { return errors.Join(os.Mkdir(b, 0o700), os.Chown(b, 12345, -1)) }, "uid 12345"},
	} {
		t.Run(name, func(t *testing.T) {
			base := home(t)
			if err := tc.make(base); errors.Is(err, fs.ErrPermission) {
				return // giving a directory away is for root; the rule is the same
			} else if err != nil {
				t.Fatal(err)
			}
			if _, err := Base(); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), base) {
				t.Errorf("Base() error is %v, want %q", err, tc.want)
			}
			if _, err := Create(Options{}); err == nil {
				t.Error("Create works under it")
			}
			d := create(t, Options{Path: filepath.Join(t.TempDir(), "state")})
			if d.Unlisted() == nil {
				t.Error("a gate with a state dir of the user's choice does not say that it is unlisted")
			}
			if _, err := List(); err == nil {
				t.Error("List says nothing about it")
			}
		})
	}
}

func TestTheDirectoryIsLockedAgainstCleaners(t *testing.T) {
	home(t)
	d := create(t, Options{})
	cleaner := flock.New(d.Path(), flock.SetFlag(os.O_RDONLY))
	if locked, err := cleaner.TryLock(); err != nil || locked {
		t.Errorf("a cleaner gets the directory's lock: %v, %v", locked, err)
	}
	cleaner.Unlock()
}
