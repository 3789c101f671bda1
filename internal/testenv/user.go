package testenv

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Ids far from those of real users. Each Host has a slot: its user's uid and
// gid are firstUID+slot, and a block of subordinate ids is its own.
const (
	maxHosts     = 1000
	firstUID     = 1_900_000_000
	firstSubID   = 1_000_000_000
	subIDBlock   = 1 << 17
	subIDDefault = 1 << 16
)

// IDRange is a range of user or group ids.
type IDRange struct {
	Start, Size uint32
}

func (r IDRange) contains(id uint32) bool { return id >= r.Start && id-r.Start < r.Size }

// User is the throw-away user of a Host. Only the Host's /etc/passwd knows it.
type User struct {
	Name     string
	UID, GID uint32

	// ExtraGID is a supplementary group of the user.
	ExtraGID uint32

	// Home and RuntimeDir (XDG_RUNTIME_DIR) belong to the user. Paths are those
	// of the Host.
	Home, RuntimeDir string

	// SubUIDs is the block of ids that is set aside for this user. /etc/subuid
	// and /etc/subgid give it the first half, until SetSubIDs says otherwise.
	SubUIDs IDRange
}

// slot is a number that nobody else on this machine has, and a directory under
// the temp directory. An abstract socket holds the number, which the kernel
// gives free when the process dies.
type slot struct {
	number int
	dir    string
	held   net.Listener
}

// takeSlot takes a free number and makes a directory, of mode 0700, that is
// called by it and by what it is for. What a killed test binary left under the
// same number is removed.
func takeSlot(purpose string) (slot, error) {
	for n := range maxHosts {
		held, err := net.Listen("unix", fmt.Sprintf("@gatekit-testenv-%d", n))
		if err != nil {
			continue
		}
		s := slot{number: n, held: held}
		stale, _ := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("gatekit-test-%d-*", n)))
		for _, dir := range stale {
			os.RemoveAll(dir)
		}
		if s.dir, err = os.MkdirTemp("", fmt.Sprintf("gatekit-test-%d-%s-", n, purpose)); err != nil {
			held.Close()
			return slot{}, err
		}
		return s, nil
	}
	return slot{}, fmt.Errorf("all %d numbers are taken", maxHosts)
}

// free removes the directory and gives the number back.
func (s slot) free() {
	os.RemoveAll(s.dir)
	s.held.Close()
}

func newUser(slot int) *User {
	uid := uint32(firstUID + slot)
	return &User{
		Name:       "ada",
		UID:        uid,
		GID:        uid,
		ExtraGID:   uid + maxHosts,
		Home:       "/home/ada",
		RuntimeDir: fmt.Sprintf("/run/user/%d", uid),
		SubUIDs:    IDRange{Start: uint32(firstSubID + slot*subIDBlock), Size: subIDBlock},
	}
}

// credential makes a command run as the user.
func (u *User) credential() *syscall.Credential {
	return &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: []uint32{u.GID, u.ExtraGID}}
}

// DefaultSubIDs is the line that /etc/subuid and /etc/subgid hold at first.
func (u *User) DefaultSubIDs() string {
	return fmt.Sprintf("%s:%d:%d\n", u.Name, u.SubUIDs.Start, subIDDefault)
}

// SetSubIDs replaces the Host's /etc/subuid and /etc/subgid.
func (h *Host) SetSubIDs(t testing.TB, subuid, subgid string) {
	t.Helper()
	h.WriteFile(t, "/etc/subuid", subuid, 0o644)
	h.WriteFile(t, "/etc/subgid", subgid, 0o644)
}

// addUser makes the user known in the Host's /etc and gives it its directories.
func (h *Host) addUser() error {
	u := h.User
	for path, line := range map[string]string{
		"/etc/passwd": fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", u.Name, u.UID, u.GID, u.Home),
		"/etc/group":  fmt.Sprintf("%s:x:%d:\n%s-extra:x:%d:%s\n", u.Name, u.GID, u.Name, u.ExtraGID, u.Name),
	} {
		if err := appendTo(h.Path(path), line); err != nil {
			return err
		}
	}
	for _, path := range []string{"/etc/subuid", "/etc/subgid"} {
		if err := os.WriteFile(h.Path(path), []byte(u.DefaultSubIDs()), 0o644); err != nil {
			return err
		}
	}
	for _, dir := range []string{u.Home, u.RuntimeDir} {
		if err := os.MkdirAll(h.Path(dir), 0o700); err != nil {
			return err
		}
		if err := os.Chown(h.Path(dir), int(u.UID), int(u.GID)); err != nil {
			return err
		}
	}
	return nil
}

func appendTo(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(old) > 0 && !strings.HasSuffix(string(old), "\n") {
		text = "\n" + text
	}
	return os.WriteFile(path, append(old, text...), 0o644)
}
