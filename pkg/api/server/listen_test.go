package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

// helperEnv makes the test binary call the API at a socket and say what came.
const helperEnv = "API_TEST_CALL"

func callAsHelper(socket string) {
	c := client.New(client.Options{Socket: socket})
	defer c.CloseIdleConnections()
	_, err := c.Info(context.Background())
	var e *api.Error
	if errors.As(err, &e) {
		fmt.Println(e.Code)
		return
	}
	fmt.Println(err)
}

func TestAProcessOfAnotherUserIsRefused(t *testing.T) {
	testenv.RequireRoot(t)
	s := start(t, Options{Gate: &fakeGate{}})
	// Other users pass the directories and the socket: the door is what holds.
	for dir := filepath.Dir(s.socket); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(s.socket, 0o777); err != nil {
		t.Fatal(err)
	}
	const uid = 54321
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+s.socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != string(api.CodeForbidden) {
		t.Errorf("%q, %v, want %s", out, err, api.CodeForbidden)
	}
	if err := os.Chmod(s.socket, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+s.socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "permission denied") {
		t.Errorf("with mode 0600: %q, %v", out, err)
	}
}

func TestListenReplacesAStaleSocketOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "api.sock")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), path) {
		t.Errorf("on a live socket: %v", err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v, want a socket of 0600", st.Mode(), err)
	}
	ln.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left after Close: %v", err)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("on a file: %v", err)
	}
	if text, _ := os.ReadFile(file); string(text) != "mine" {
		t.Error("the file was touched")
	}
	if _, err := Listen(filepath.Join(dir, "none", "api.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in a missing directory: %v", err)
	}
}

func TestAPathLongerThanASocketAddressWorks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100), strings.Repeat("e", 100))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "api.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(Options{Gate: &fakeGate{}, UIDs: []uint32{uint32(os.Geteuid())}}).Run(ctx, ln) }()
	c := client.New(client.Options{Socket: path})
	if _, err := c.Info(ctx); err != nil {
		t.Error(err)
	}
	c.CloseIdleConnections()
	if _, err := Listen(path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("s", 100))); err == nil || !strings.Contains(err.Error(), "107 bytes") {
		t.Errorf("a name that cannot fit: %v, want the limit", err)
	}
}
