package parent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestReadinessReachesAManagerOnAnAbstractSocket(t *testing.T) {
	name := fmt.Sprintf("@gatekit-test-%d", os.Getpid())
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	dir := t.TempDir()
	logs, toLogs := io.Pipe()
	defer logs.Close()
	n, env, err := newNotifier([]string{"A=b", "NOTIFY_SOCKET=" + name}, filepath.Join(dir, "notify.sock"), slog.New(slog.NewTextHandler(toLogs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(env, func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET="+dir) })
	if i < 0 {
		t.Fatalf("no socket in the state dir: %q", env)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		defer toLogs.Close()
		done <- n.run(ctx)
	}()
	service, err := net.Dial("unixgram", strings.TrimPrefix(env[i], "NOTIFY_SOCKET="))
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	if _, err := service.Write([]byte("READY=1")); err != nil {
		t.Fatal(err)
	}
	if err := manager.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 100)
	size, err := manager.Read(buffer)
	if err != nil || string(buffer[:size]) != "READY=1" {
		t.Errorf("the manager got %q, %v", buffer[:size], err)
	}
	// What a manager that is gone does not take is no reason to end.
	manager.Close()
	if _, err := service.Write([]byte("STATUS=lost")); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(logs).ReadString('\n'); err != nil || !strings.Contains(line, "did not take") {
		t.Errorf("the log says %q, %v", line, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestAManagerWithAPathIsReachedWithoutUs(t *testing.T) {
	for _, env := range [][]string{nil, {"A=b"}, {"NOTIFY_SOCKET=/run/systemd/notify"}} {
		n, got, err := newNotifier(env, filepath.Join(t.TempDir(), "notify.sock"), slog.New(slog.DiscardHandler))
		if n != nil || err != nil || !slices.Equal(got, env) {
			t.Errorf("%q: %v, %q, %v", env, n, got, err)
		}
	}
}
