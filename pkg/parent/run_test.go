package parent_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/parent"
)

func TestTheCommandReadsAndWritesWhatItIsGiven(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "in")
	if err := os.WriteFile(in, []byte("asked"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	o := parent.Options{
		Command:  []string{"sh", "-c", "cat; echo wrong >&2"},
		SingleID: true,
		Stdin:    open("in"), Stdout: open("out"), Stderr: open("err"),
	}
	if err := parent.Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[*os.File]string{o.Stdout: "asked", o.Stderr: "wrong\n"} {
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			t.Fatalf("the caller's file is closed: %v", err)
		}
		if got, err := io.ReadAll(file); err != nil || string(got) != want {
			t.Errorf("%s has %q (%v), want %q", file.Name(), got, err, want)
		}
	}
}

// What is given to one gate is not for the next: Options are a value.
func TestGatesInOneProcessRunAtOnce(t *testing.T) {
	ended := make(chan error, 4)
	for range cap(ended) {
		go func() {
			ended <- parent.Run(t.Context(), parent.Options{Command: []string{"sh", "-c", "exit 5"}, SingleID: true})
		}()
	}
	for range cap(ended) {
		var exit *parent.ExitError
		if err := <-ended; !errors.As(err, &exit) || *exit != (parent.ExitError{Code: 5}) {
			t.Errorf("%v, want exit code 5", err)
		}
	}
}

func TestTheErrorSaysHowTheCommandEnded(t *testing.T) {
	for command, want := range map[string]struct {
		exit   parent.ExitError
		status int
		text   string
	}{
		"exit 3":     {parent.ExitError{Code: 3}, 3, "the command ended with exit code 3"},
		"kill -9 $$": {parent.ExitError{Signal: unix.SIGKILL}, 137, "the command was ended by SIGKILL"},
		"exit 137":   {parent.ExitError{Code: 137}, 137, "the command ended with exit code 137"},
	} {
		err := parent.Run(t.Context(), parent.Options{Command: []string{"sh", "-c", command}, SingleID: true})
		var exit *parent.ExitError
		if !errors.As(err, &exit) || *exit != want.exit || exit.Status() != want.status || err.Error() != want.text {
			t.Errorf("%s: %v, want %q", command, err, want.text)
		}
	}
}

// The signal is one that would end this process, where nobody asks for it.
func TestSignalsThatAreNamedReachTheCommand(t *testing.T) {
	said, says, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	ended := make(chan error, 1)
	go func() {
		ended <- parent.Run(t.Context(), parent.Options{
			Command:  []string{"sh", "-c", "trap 'exit 4' USR1; echo ready; while :; do sleep 0.01; done"},
			SingleID: true,
			Signals:  []os.Signal{unix.SIGUSR1},
			Stdout:   says,
		})
		says.Close()
	}()
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil {
		t.Fatalf("%q: %v", line, <-ended)
	}
	if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	var exit *parent.ExitError
	if err := <-ended; !errors.As(err, &exit) || exit.Code != 4 {
		t.Errorf("%v, want exit code 4", err)
	}
}

// ours is a network driver of a program's own: its child half, in TestMain, opens the
// namespace that it is in.
type ours struct{ inode uint64 }

func (*ours) Plan() network.Plan { return network.Plan{Driver: "ours", Namespace: true} }
func (*ours) Info() network.Info { return network.Info{Driver: "ours"} }

func (d *ours) Run(ctx context.Context, files []*os.File, ready func()) error {
	var st unix.Stat_t
	err := unix.Fstat(int(files[0].Fd()), &st)
	files[0].Close()
	if err != nil {
		return err
	}
	d.inode = st.Ino
	ready()
	<-ctx.Done()
	return nil
}

func TestAProgramBringsItsOwnNetworkDriver(t *testing.T) {
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	driver := &ours{}
	o := parent.Options{
		Command:  []string{"stat", "-L", "-c", "%i", "/proc/self/ns/net"},
		SingleID: true, Network: driver, Stdout: out,
	}
	if err := parent.Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	said, err := os.ReadFile(out.Name())
	if inside := strings.TrimSpace(string(said)); err != nil || inside != fmt.Sprint(driver.inode) {
		t.Errorf("the command is in namespace %s (%v), and the child half was in %d", inside, err, driver.inode)
	}
	driver = &ours{}
	o.Network = named{driver}
	if err := parent.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), `"theirs" has no child half`) {
		t.Errorf("a driver that the child does not know: %v", err)
	}
}

// named is ours under a name that the child does not know.
type named struct{ *ours }

func (named) Plan() network.Plan { return network.Plan{Driver: "theirs", Namespace: true} }
