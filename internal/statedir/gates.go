package statedir

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/gofrs/flock"
)

// baseLockName is the lock under which the entries of Base change. The dot
// keeps it apart from the entries.
const baseLockName = ".lock"

// autoMark is in the name of each directory that Create made under Base, and in
// no gate's name. Directories without it are not swept: the user made them.
const autoMark = "@"

// Gate is a running gate.
type Gate struct {
	// StateDir is its state dir.
	StateDir string

	// PID is its parent's process id.
	PID int
}

// Socket is the path of the API's socket in the state dir at path.
func Socket(path string) string { return filepath.Join(path, socketName) }

// CheckName says whether a gate may have this name: up to 63 letters, digits,
// dots, dashes and underscores, the first a letter or a digit.
func CheckName(name string) error {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r))
	}
	if name == "" || len(name) > 63 || strings.ContainsFunc(name, bad) || strings.ContainsRune("_.-", rune(name[0])) {
		return fmt.Errorf("bad gate name %q: a name is up to 63 letters, digits, dots, dashes and underscores, the first a letter or a digit", name)
	}
	return nil
}

// bases lists the directories that may be Base, the best first.
// $XDG_RUNTIME_DIR counts when it is an absolute path to a directory of this
// user, as its specification asks; under sudo it may be another's.
//
// https://specifications.freedesktop.org/basedir/latest/
func bases() []string {
	uid := os.Geteuid()
	var out []string
	if run := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) {
		if st, err := os.Stat(run); err == nil && st.IsDir() && owner(st) == uid {
			out = append(out, filepath.Join(run, "gatekit"))
		}
	}
	return append(out, filepath.Join(os.TempDir(), "gatekit-"+strconv.Itoa(uid)))
}

// Base is the directory under which the gates of this user are found:
// $XDG_RUNTIME_DIR/gatekit, or gatekit-<uid> in the temp directory where there
// is no such run-time directory or it cannot be written. It is made, with mode
// 0700, when it is missing.
//
// The temp directory is everyone's, so a Base that exists must be a directory,
// owned by this user and open to nobody else; the error says what it is
// instead.
func Base() (string, error) {
	var base string
	var err error
	for _, base = range bases() {
		err = os.Mkdir(base, 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			continue
		}
		if err = checkBase(base); err != nil {
			return "", err
		}
		return base, nil
	}
	return "", unwritable(base, err)
}

func checkBase(base string) error {
	st, err := os.Lstat(base)
	if err != nil {
		return err
	}
	switch uid := os.Geteuid(); {
	case st.Mode().Type() == fs.ModeSymlink:
		return fmt.Errorf("%s is a symbolic link: gates are kept there, remove it", base)
	case !st.IsDir():
		return fmt.Errorf("%s is not a directory: gates are kept there, remove it", base)
	case owner(st) != uid:
		return fmt.Errorf("%s belongs to uid %d, not to uid %d: gates are kept there, have it removed, or set XDG_RUNTIME_DIR to a directory of yours", base, owner(st), uid)
	case st.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s is open to other users (mode %04o): run chmod 700 %s", base, st.Mode().Perm(), base)
	}
	return nil
}

func owner(st fs.FileInfo) int {
	return int(st.Sys().(*syscall.Stat_t).Uid)
}

// List returns the running gates of this user, ordered by state dir. A gate
// that is just starting may be missing.
func List() ([]Gate, error) {
	var gates []Gate
	var errs []error
	var seen []fs.FileInfo
	for _, base := range bases() {
		entries, err := os.ReadDir(base)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = checkBase(base)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, e := range entries {
			dir := target(base, e)
			st, err := os.Stat(dir)
			if dir == "" || err != nil || slices.ContainsFunc(seen, func(s fs.FileInfo) bool { return os.SameFile(s, st) }) {
				continue
			}
			if pid, _ := holder(dir); pid != 0 {
				gates = append(gates, Gate{StateDir: dir, PID: pid})
				seen = append(seen, st)
			}
		}
	}
	slices.SortFunc(gates, func(a, b Gate) int { return strings.Compare(a.StateDir, b.StateDir) })
	if len(gates) > 0 {
		return gates, nil
	}
	return nil, errors.Join(errs...)
}

// target is the state dir that an entry of base stands for, "" for none.
func target(base string, e fs.DirEntry) string {
	path := filepath.Join(base, e.Name())
	switch {
	case strings.HasPrefix(e.Name(), "."):
		return ""
	case e.IsDir():
		return path
	case e.Type() == fs.ModeSymlink:
		if dir, err := os.Readlink(path); err == nil && filepath.IsAbs(dir) {
			return dir
		}
	}
	return ""
}

// lockBase takes the lock of Base and returns what lets go of it. When it is
// not to be had, the caller goes on without: what may go wrong then is that a
// gate is missing in List.
func lockBase(base string) (unlock func()) {
	ctx, cancel := context.WithTimeout(context.Background(), basePatience)
	defer cancel()
	l := flock.New(filepath.Join(base, baseLockName), flock.SetFlag(os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW))
	if locked, err := l.TryLockContext(ctx, pollInterval); err != nil || !locked {
		return func() {}
	}
	return func() { l.Unlock() }
}

// sweep removes the entries of gates that are no more: links, and directories
// that Create made. It is housekeeping: what it cannot remove stays for the
// next sweep. The lock of Base is held.
func sweep(base string) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		dir := target(base, e)
		if dir == "" {
			continue
		}
		if _, free := holder(dir); !free {
			continue
		}
		switch {
		case !e.IsDir():
			os.Remove(filepath.Join(base, e.Name()))
		case strings.Contains(e.Name(), autoMark):
			removeAbandoned(dir)
		}
	}
}

// removeAbandoned removes a directory that nobody holds. The lock is held
// meanwhile and goes last, so that a Create at this very path waits and then
// begins anew.
func removeAbandoned(dir string) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return
	}
	defer root.Close()
	path := filepath.Join(dir, lockName)
	l := flock.New(path, flock.SetFlag(os.O_RDONLY|syscall.O_NOFOLLOW))
	if locked, err := l.TryRLock(); err == nil {
		if !locked {
			return
		}
		defer l.Unlock()
		if !isAt(l, path) || empty(root) != nil {
			return
		}
		root.Remove(lockName)
	}
	// Without a lock file only an empty directory is ours to remove.
	os.Remove(dir)
}

// register sweeps, and makes the link under Base to a state dir elsewhere. Its
// name follows from the gate's name and the path, so a gate that is killed and
// started again does not add links.
func (d *Dir) register(name string) {
	defer lockBase(d.base)()
	sweep(d.base)
	if filepath.Dir(d.path) == d.base {
		return // an entry by its place
	}
	sum := sha256.Sum256([]byte(d.path))
	entry := filepath.Join(d.base, name+"-at-"+hex.EncodeToString(sum[:8]))
	if err := os.Symlink(d.path, entry); err != nil && !errors.Is(err, fs.ErrExist) {
		d.unlisted = fmt.Errorf("register the gate: %w", err)
		return
	}
	d.entry = entry
}
