package linux

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInotifyTellsOfChanges(t *testing.T) {
	n, err := NewInotify()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	watch, err := n.Watch(dir, unix.IN_CLOSE_WRITE|unix.IN_DELETE_SELF|unix.IN_ONLYDIR)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a file")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	changes, err := n.Changes()
	if want := (Change{watch, unix.IN_CLOSE_WRITE, "a file"}); err != nil || len(changes) != 1 || changes[0] != want {
		t.Errorf("changes are %+v, %v, want %+v", changes, err, want)
	}
	if _, err := n.Watch(path, unix.IN_CLOSE_WRITE|unix.IN_ONLYDIR); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file as a directory: %v", err)
	}
	n.Unwatch(watch)
	if changes, err = n.Changes(); err != nil || len(changes) != 1 || changes[0].Mask&unix.IN_IGNORED == 0 {
		t.Errorf("changes are %+v, %v, want the end of the watch", changes, err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := n.Changes()
		ended <- err
	}()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
