package copyup

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/linux"
	"golang.org/x/sys/unix"
)

// levelEnv says in which namespaces a test body runs: unset on the host, "outer"
// in the first ones, "inner" in those of the gate.
const levelEnv = "GATEKIT_COPYUP_TEST_LEVEL"

// dirEnv names a directory for bodies, which is removed on the host, where no
// mount is in the way.
const dirEnv = "GATEKIT_COPYUP_TEST_DIR"

func scratch() string { return os.Getenv(dirEnv) }

// inNamespaces runs the calling test once more, in a process with a user and a
// mount namespace of its own, where body runs. prepare, which may be nil, runs
// before in namespaces between the two: its mounts are locked for body, as the
// host's are for a gate.
//
// The caller returns directly after it.
func inNamespaces(t *testing.T, prepare, body func(t *testing.T)) {
	t.Helper()
	switch os.Getenv(levelEnv) {
	case "":
		if prepare != nil {
			again(t, "outer")
		} else {
			again(t, "inner")
		}
	case "outer":
		private(t)
		prepare(t)
		again(t, "inner")
	case "inner":
		private(t)
		body(t)
	}
}

func private(t *testing.T) {
	t.Helper()
	if err := linux.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
}

// again executes this test in new namespaces. Real root maps all ids to
// themselves, as a gate of real root may; a user is root inside.
func again(t *testing.T, level string) {
	t.Helper()
	pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(t.Name()), "/", "$/^") + "$"
	cmd := exec.Command("/proc/self/exe", "-test.run="+pattern, "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), levelEnv+"="+level)
	if os.Getenv(dirEnv) == "" {
		cmd.Env = append(cmd.Env, dirEnv+"="+t.TempDir())
	}
	size := 1
	if os.Getuid() == 0 && mapped() >= 65536 {
		size = 65536
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: size}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: size}},
		Pdeathsig:   unix.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in namespaces (%s): %v\n%s", level, err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in namespaces (%s) the test did not run:\n%s", level, out)
	}
}

// mapped returns how many ids this process's user namespace has.
func mapped() int {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return 0
	}
	total := 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		n := 0
		for _, c := range f[2] {
			n = n*10 + int(c-'0')
		}
		total += n
	}
	return total
}
