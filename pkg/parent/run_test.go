package parent_test

import (
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
