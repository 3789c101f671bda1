package statedir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

const (
	// pollInterval is how often a lock that is taken is tried again.
	pollInterval = 2 * time.Millisecond

	// lookersPatience is how long Create tries again while others merely look
	// at the lock. A look takes microseconds.
	lookersPatience = 2 * time.Second

	// pidPatience is how long an owner may take from locking the file to
	// writing its pid.
	pidPatience = 200 * time.Millisecond

	// basePatience is how long the lock of Base is waited for.
	basePatience = 2 * time.Second
)

// errVanished says that the state dir was removed while it was opened: the
// caller begins again.
var errVanished = errors.New("the state dir vanished")

// lockDir locks the lock file of the state dir at dir, which it makes if it is
// missing.
func lockDir(dir string) (*flock.Flock, error) {
	path := filepath.Join(dir, lockName)
	for deadline := time.Now().Add(lookersPatience); ; time.Sleep(pollInterval) {
		l := flock.New(path, flock.SetFlag(os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW), flock.SetPermissions(0o600))
		locked, err := l.TryLock()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, errVanished
		case errors.Is(err, syscall.ELOOP):
			return nil, fmt.Errorf("state dir %s: lock is a symbolic link: remove it, or choose another directory", dir)
		case err != nil:
			return nil, unwritable(dir, err)
		case locked && isAt(l, path):
			return l, nil
		case locked:
			l.Unlock()
			continue
		}
		looking, err := l.TryRLock()
		if err == nil && !looking {
			return nil, inUse(dir, readPID(path))
		}
		l.Unlock()
		if time.Now().After(deadline) {
			return nil, inUse(dir, 0)
		}
	}
}

// isAt says whether the locked file is the one at path.
func isAt(l *flock.Flock, path string) bool {
	mine, err := l.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(mine, there)
}

func inUse(dir string, pid int) error {
	holder := "by another process"
	if pid != 0 {
		holder = fmt.Sprintf("by process %d", pid)
	}
	return fmt.Errorf("state dir %s: %w %s: end that gate, or choose another directory", dir, ErrInUse, holder)
}

// writePID writes the pid of this process into the lock file, which it holds.
func writePID(root *os.Root) error {
	f, err := root.OpenFile(lockName, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(os.Getpid()))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// readPID reads the pid of the owner from a lock file, 0 where there is none.
// An owner that has just got the lock is given a moment to write it.
func readPID(path string) int {
	for deadline := time.Now().Add(pidPatience); ; time.Sleep(pollInterval) {
		text, err := os.ReadFile(path)
		if err != nil {
			return 0
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err == nil && pid > 0 {
			return pid
		}
		if time.Now().After(deadline) {
			return 0
		}
	}
}

// holder says which process holds the state dir at dir. It is free when no one
// does; both are zero when that cannot be told.
func holder(dir string) (pid int, free bool) {
	path := filepath.Join(dir, lockName)
	l := flock.New(path, flock.SetFlag(os.O_RDONLY|syscall.O_NOFOLLOW))
	locked, err := l.TryRLock()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, true
	case err != nil:
		return 0, false
	case locked:
		l.Unlock()
		return 0, true
	}
	return readPID(path), false
}

// empty removes all that is in a state dir but its lock file.
func empty(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was removed while we held it
	}
	errs := []error{err}
	for _, name := range names {
		if name != lockName {
			errs = append(errs, root.RemoveAll(name))
		}
	}
	return errors.Join(errs...)
}

// keepFromCleaners locks the state dir and Base as directories against
// systemd-tmpfiles. That it fails harms nothing now.
func (d *Dir) keepFromCleaners() {
	for _, path := range []string{d.path, d.base} {
		if path == "" {
			continue
		}
		l := flock.New(path, flock.SetFlag(os.O_RDONLY|syscall.O_DIRECTORY))
		if locked, err := l.TryRLock(); err == nil && locked {
			d.guard = append(d.guard, l)
		}
	}
}
