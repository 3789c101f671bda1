package test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestAHostIsPreparedWithIDsThatNobodyHas(t *testing.T) {
	// Above the numbers that the users of a Host have.
	for name, c := range map[string]struct{ subuid, subgid, wantUID, wantGID string }{
		"the file of groups":     {"", "eve:1950000000:65536\n", "ada:1950065536:65536\n", "eve:1950000000:65536\nada:1950065536:65536\n"},
		"the file of users":      {"eve:1950000000:65536\n", "", "eve:1950000000:65536\nada:1950065536:65536\n", "ada:1950065536:65536\n"},
		"too few, in two ranges": {"ada:200000:1000\nada:1950000000:1000\n", "ada:200000:65536\n", "ada:200000:1000\nada:1950000000:1000\nada:1950001000:65536\n", "ada:200000:65536\n"},
	} {
		t.Run(name, func(t *testing.T) {
			h := testenv.NewHost(t)
			for _, script := range []string{"prepare-host", "host.sh", "run-packages"} {
				text, err := os.ReadFile(filepath.Join("..", "scripts", script))
				if err != nil {
					t.Fatal(err)
				}
				h.WriteFile(t, "/srv/"+script, string(text), 0o755)
			}
			h.SetSubIDs(t, c.subuid, c.subgid)
			for path, text := range map[string]string{"/etc/subuid": c.subuid, "/etc/subgid": c.subgid} {
				if text != "" {
					continue
				}
				if err := os.Remove(h.Path(path)); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // the second time there is nothing to do
				if r := h.Run(t, h.RootCommand("/srv/prepare-host", h.User.Name, "/usr/bin/gatekit")); r.Code != 0 {
					t.Fatal(r)
				}
				if uid, gid := h.ReadFile(t, "/etc/subuid"), h.ReadFile(t, "/etc/subgid"); uid != c.wantUID || gid != c.wantGID {
					t.Errorf("subuid %q, subgid %q; want %q, %q", uid, gid, c.wantUID, c.wantGID)
				}
			}
		})
	}
}
