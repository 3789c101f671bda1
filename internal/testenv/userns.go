package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// UserNS runs a part of a test in a user and a mount namespace of its own, as a
// gate's child stands in. It needs no privilege.
//
// The test is executed once more for it, by a process born in the namespaces
// (clone(2)); the part calls t as any test does. Real root maps all ids to
// themselves there, as a gate of real root may; others are root inside.
//
//	host            outer (optional)          inner
//	test  --clone-->  Outer(t)  ---clone--->  Inner(t)
//
// Run is the last call of the test: what is before it runs in every process.
type UserNS struct {
	// Flags are the CLONE_NEW* flags of further namespaces. Both parts have them,
	// but for CLONE_NEWPID, which is Inner's alone: Outer needs a /proc that
	// shows its children.
	Flags uintptr

	// Outer prepares what the machine looks like for Inner: its mounts are
	// locked for Inner, as a host's are for a gate (mount_namespaces(7)). nil
	// does nothing.
	Outer func(t *testing.T)

	// Inner is the part. All mounts are private when it starts, or slaves of
	// Outer's shared ones.
	Inner func(t *testing.T)
}

const (
	levelEnv   = "GATEKIT_TEST_USERNS"
	scratchEnv = "GATEKIT_TEST_SCRATCH"
)

// Scratch is a directory for Outer and Inner. It is removed on the host, where
// their mounts are not in the way.
func Scratch() string { return os.Getenv(scratchEnv) }

// Run runs the test's parts, each in its process.
func (u UserNS) Run(t *testing.T) {
	t.Helper()
	switch level := os.Getenv(levelEnv); {
	case level == "inner":
		u.Inner(t)
	case level == "outer":
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			t.Fatalf("mount / private: %v", err)
		}
		u.Outer(t)
		u.again(t, "inner")
	case u.Outer != nil:
		u.again(t, "outer")
	default:
		u.again(t, "inner")
	}
}

// again executes this test in new namespaces.
func (u UserNS) again(t *testing.T, level string) {
	t.Helper()
	pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(t.Name()), "/", "$/^") + "$"
	cmd := exec.Command("/proc/self/exe", "-test.run="+pattern, "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), levelEnv+"="+level)
	if Scratch() == "" {
		cmd.Env = append(cmd.Env, scratchEnv+"="+t.TempDir())
	}
	ids := 1
	if os.Getuid() == 0 && AllIDs() {
		ids = allIDs
	}
	flags := unix.CLONE_NEWUSER | unix.CLONE_NEWNS | u.Flags
	if level == "outer" {
		flags &^= unix.CLONE_NEWPID
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  flags,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: ids}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: ids}},
		Pdeathsig:   unix.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if cmd.Process == nil && os.Getenv(levelEnv) == "" && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC)) {
		Skip(t, "this host allows no user namespaces: "+err.Error())
	}
	if err != nil {
		t.Fatalf("%s namespaces: %v\n%s", level, err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("%s namespaces: the test did not run:\n%s", level, out)
	}
}

// allIDs is how many ids real root gives to its namespaces.
const allIDs = 65536

// AllIDs says whether the ids from 0 to 65535 are mapped here, as they are for
// real root, and for Inner when real root runs the test.
func AllIDs() bool {
	for _, kind := range []string{"uid", "gid"} {
		b, err := os.ReadFile("/proc/self/" + kind + "_map")
		if err != nil {
			return false
		}
		var inside, outside, size int
		if _, err := fmt.Sscan(string(b), &inside, &outside, &size); err != nil {
			return false
		}
		if inside != 0 || size < allIDs {
			return false
		}
	}
	return true
}
