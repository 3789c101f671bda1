package parent_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

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
	if exit, err := parent.Run(t.Context(), o); err != nil || exit != (parent.Exit{}) {
		t.Fatalf("%+v, %v", exit, err)
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
			exit, err := parent.Run(t.Context(), parent.Options{Command: []string{"sh", "-c", "exit 5"}, SingleID: true})
			if err == nil && exit.Code != 5 {
				t.Errorf("exit %+v, want code 5", exit)
			}
			ended <- err
		}()
	}
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
