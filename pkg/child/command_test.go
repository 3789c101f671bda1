package child

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gatekit/gatekit/internal/handshake"
)

func TestACommandThatCannotStartHasTheCodeOfShells(t *testing.T) {
	dir := t.TempDir()
	closed := filepath.Join(dir, "closed")
	if err := os.WriteFile(closed, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		command string
		code    int
	}{
		"in no directory of PATH": {"gatekit-test-no-such-command", 127},
		"a path that is not":      {filepath.Join(dir, "none"), 127},
		"without the x bit":       {closed, 126},
		"a directory":             {dir, 126},
	} {
		c2 := &child{setup: handshake.Setup{Command: []string{c.command}}}
		_, err := c2.newCommand()
		var failure *handshake.Failure
		if !errors.As(err, &failure) || failure.Code != c.code {
			t.Errorf("%s: %v, %+v", name, err, failure)
		}
	}
}

func TestSocketsOfActivationFollowTheStandardThree(t *testing.T) {
	c := &child{setup: handshake.Setup{Command: []string{"sh", "-c", "true"}, ListenFDs: 2}}
	cmd, err := c.newCommand()
	if err != nil {
		t.Fatal(err)
	}
	if want := []uintptr{0, 1, 2, 4, 5}; !slices.Equal(cmd.fds[:len(cmd.fds)-1], want) || len(cmd.fds) != len(want)+1 {
		t.Errorf("descriptors %v, want %v", cmd.fds, want)
	}
	defer cmd.failure.Close()
	defer cmd.report.Close()
	if cmd.argv[0] != activateName || cmd.argv[1] != "2" || cmd.argv[3] != "sh" {
		t.Errorf("arguments %q", cmd.argv)
	}
}

func TestTheActivatedCommandIsNamedOnce(t *testing.T) {
	got := activated([]string{"LISTEN_PID=1", "A=b", "LISTEN_PIDFDID=77", "LISTEN_FDS=3", "LISTEN_PID=3"}, 42, 2)
	if want := []string{"A=b", "LISTEN_PID=42", "LISTEN_FDS=2"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
