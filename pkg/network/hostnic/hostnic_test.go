package hostnic

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// lent is a directory that looks as if a card was lent to the caller.
func lent(t *testing.T) (dir string, s *state) {
	t.Helper()
	dir = t.TempDir()
	s = &state{Version: stateVersion, User: "ada", UID: os.Geteuid(), Ready: true, Card: card{Name: "eth1"}}
	if err := s.write(dir); err != nil {
		t.Fatal(err)
	}
	for name, ns := range map[string]string{usernsFile: "user", netnsFile: "net"} {
		if err := os.Symlink("/proc/self/ns/"+ns, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, lockFile), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, s
}

func TestACardThatIsTakenAwayAfterTheCheckIsNotJoined(t *testing.T) {
	dir, s := lent(t)
	c, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	joined, err := c.Join(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := joined.Leave(); err != nil {
		t.Fatal(err)
	}
	s.Ready = false // as Destroy says first
	if err := s.write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Join(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "is not whole") {
		t.Errorf("joined: %v", err)
	}
	free, err := lock(dir, false)
	if err != nil {
		t.Fatalf("the lock was kept: %v", err)
	}
	free.Close()
}
