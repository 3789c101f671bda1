package linux_test

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
)

// self holds on to the test's own process.
func self(t *testing.T) *linux.Process {
	t.Helper()
	p, err := linux.OpenProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// program opens a program by its name in PATH.
func program(t *testing.T, name string) *os.File {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := linux.OpenPath(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// noChildren fails the test if a process is left, a zombie too.
func noChildren(t *testing.T) {
	t.Helper()
	if left := testenv.Children(os.Getpid()); len(left) != 0 {
		t.Errorf("children left behind: %v", left)
	}
}

func TestEntryStartsAChildOfTheCaller(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, err := linux.Entry{
		Target: self(t), Dir: t.TempDir(), Program: program(t, "sh"),
		Args: []string{"sh", "-c", "exit $CODE"}, Env: []string{"CODE=23"},
	}.Start()
	if err != nil {
		t.Fatal(err)
	}
	who, status, err := linux.Wait(pid)
	if err != nil || who != pid || status.ExitStatus() != 23 {
		t.Errorf("wait: process %d, status %d, %v", who, status.ExitStatus(), err)
	}
	noChildren(t)
}

func TestEntryThatFailsSaysAtWhichStepAndLeavesNoProcess(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	script, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer script.Close()
	ok := linux.Entry{Target: self(t), Dir: "/", Program: program(t, "true"), Args: []string{"true"}}
	for name, tc := range map[string]struct {
		change func(*linux.Entry)
		want   string
		errno  error
	}{
		"a namespace that is no namespace": {func(e *linux.Entry) { e.Namespaces = unix.CLONE_FS }, "setns", unix.EINVAL},
		"our own user namespace":           {func(e *linux.Entry) { e.Namespaces = unix.CLONE_NEWUSER }, "setns", unix.EINVAL},
		"a program that is not executable": {func(e *linux.Entry) { e.Program = script }, "execveat", unix.EACCES},
		"a directory with a zero byte":     {func(e *linux.Entry) { e.Dir = "a\x00b" }, "chdir", unix.EINVAL},
		"an argument with a zero byte":     {func(e *linux.Entry) { e.Args = []string{"\x00"} }, "argument", unix.EINVAL},
		"a variable with a zero byte":      {func(e *linux.Entry) { e.Env = []string{"\x00"} }, "environment", unix.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			e := ok
			tc.change(&e)
			pid, err := e.Start()
			if err == nil || pid != 0 || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, tc.errno) {
				t.Errorf("pid %d, error %v, want %s: %v", pid, err, tc.want, tc.errno)
			}
			noChildren(t)
		})
	}
}

// While the copy is made, other goroutines allocate, collect and fork.
func TestEntryWorksWhileTheRuntimeIsBusy(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	for range 2 {
		go func() {
			var keep [][]byte
			for {
				select {
				case <-stop:
					runtime.KeepAlive(keep)
					return
				default:
					keep = append(keep[len(keep)/2:], make([]byte, 64<<10))
				}
			}
		}()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	e := linux.Entry{Target: self(t), Dir: "/", Program: program(t, "true"), Args: []string{"true"}}
	for range 100 {
		pid, err := e.Start()
		if err != nil {
			t.Fatal(err)
		}
		if _, status, err := linux.Wait(pid); err != nil || status.ExitStatus() != 0 || !status.Exited() {
			t.Fatalf("status %v, %v", status, err)
		}
	}
	noChildren(t)
}

func TestAProcessIsKnownToBeGone(t *testing.T) {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = []string{"A=b"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := linux.OpenProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Signal(0); err != nil {
		t.Errorf("while it runs: %v", err)
	}
	// execve(2) closes what is close-on-exec before it puts the environment in
	// place.
	testenv.Until(t, "the environment", func() bool {
		environ, err := p.Environ()
		return err == nil && string(environ) == "A=b\x00"
	})
	if flags, err := p.OtherNamespaces(); err != nil || flags != 0 {
		t.Errorf("other namespaces than ours: %#x, %v", flags, err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(0); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("afterwards: %v", err)
	}
	if _, err := linux.OpenProcess(cmd.Process.Pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("open afterwards: %v", err)
	}
}

func TestNamespacesOfAnotherProcessAndTheirOwner(t *testing.T) {
	const flags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWUTS
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  flags,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		testenv.Skip(t, "this kernel makes no user namespace here: "+err.Error())
	}
	defer cmd.Wait()
	defer stdin.Close()
	p, err := linux.OpenProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got, err := p.OtherNamespaces(); err != nil || got != flags {
		t.Errorf("other namespaces %#x, %v, want %#x", got, err, flags)
	}
	if uid, err := p.OwnerUID(); err != nil || uid != os.Geteuid() {
		t.Errorf("owner %d, %v", uid, err)
	}
}
