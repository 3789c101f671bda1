package site

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

// The test binary is the program inside, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "inside" {
		if err := inside(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "dial" {
		conn, err := net.DialTimeout("tcp", os.Args[2], 10*time.Second)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		conn.Close()
		os.Exit(0)
	}
	testenv.Main(m)
}

// inside makes the site, says what it sees, and waits to be killed when there is a
// file that asks for it.
func inside(dir string) error {
	s, err := Open(dir)
	if err != nil {
		return err
	}
	defer s.Close()
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		fmt.Println("interface", i.Name)
	}
	if err := run(s.Start(Host, "sh", "-c", `test "$(id -un)" = ada && : <>/dev/net/tun`)); err != nil {
		return err
	}
	fmt.Println("the user is ada")
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := s.Install(self)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(HostAddr.String(), "0"))
	if err != nil {
		return err
	}
	defer listener.Close()
	dialled := make(chan error, 1)
	go func() { dialled <- run(s.Start(Outside, program, "dial", listener.Addr().String())) }()
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	fmt.Println("a connection from", conn.RemoteAddr().(*net.TCPAddr).IP)
	conn.Close()
	if err := <-dialled; err != nil {
		return err
	}
	failed, err := s.Start(Host, "sh", "-c", "echo oh >&2; exit 3")
	if err != nil {
		return err
	}
	fmt.Println("failed:", failed.Err())
	sleeper, err := s.Start(Host, "sleep", "600")
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if os.Getenv("BENCH_SITE_STAYS") != "" {
		select {}
	}
	sleeper.Stop(10 * time.Second)
	return nil
}

func run(p *Process, err error) error {
	if err != nil {
		return err
	}
	return p.Err()
}

func TestASiteIsApartFromTheMachine(t *testing.T) {
	testenv.RequireRoot(t)
	dir := reachable(t)
	var out, stderr bytes.Buffer
	err := Enter(t.Context(), Options{Dir: dir, Args: []string{"inside", dir}, Stdout: &out, Stderr: &stderr})
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	want := "interface lo\ninterface eth0\nthe user is ada\na connection from 198.51.100.2\nfailed: sh: exit status 3: oh\nready\n"
	if out.String() != want {
		t.Errorf("inside:\n%swant:\n%s", &out, want)
	}
	left(t, dir)
}

func TestASiteIsKilledWithAllThatIsInIt(t *testing.T) {
	testenv.RequireRoot(t)
	t.Setenv("BENCH_SITE_STAYS", "1")
	dir := reachable(t)
	reader, writer := io.Pipe()
	defer reader.Close()
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for lines := bufio.NewScanner(reader); lines.Scan(); {
			if lines.Text() == "ready" {
				cancel(reason)
			}
		}
	}()
	err := Enter(ctx, Options{Dir: dir, Args: []string{"inside", dir}, Stdout: writer, Stderr: io.Discard})
	writer.Close()
	if !errors.Is(err, reason) {
		t.Errorf("Enter: %v, want %v", err, reason)
	}
	left(t, dir)
}

// reachable makes a directory that every user can reach; those of t.TempDir are not.
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "gatekit-site-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// left fails the test when there is a trace of the site on the machine.
func left(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("files of the site are left: %v, %v", entries, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Error("mounts of the site are left")
	}
}

func TestOnlyEnterOpensASite(t *testing.T) {
	if _, err := entered(); !errors.Is(err, errNotInside) {
		t.Errorf("this process is taken for the first of a site: %v", err)
	}
}
