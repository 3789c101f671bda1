// Package statedir is the room that knows the layout of a gate's state dir and
// where the gates of a user are found. It knows nothing of what the files mean
// to the gate or to its clients.
package statedir

// How it works.
//
// A state dir belongs to the process that holds the lock on its file "lock"
// (flock(2)). The kernel drops the lock when that process ends, however it
// ends, so a directory whose lock is free was left by a gate that was killed:
// Create takes it over and removes what that gate left.
//
//	<state dir>/lock         locked by the parent; holds its pid, decimal
//	            child_pid    pid of the child, decimal, there when it is ready
//	            api.sock     the REST API
//	            resolv.conf  of the namespace
//	            hosts        of the namespace
//	            netns        the network namespace, when it is detached
//	            notify.sock  for the command to say that it is ready (sd_notify(3))
//	            ports.json   the forwards; the one file that outlives a gate
//
// All gates of a user are found under one directory, Base: a state dir that was
// made there is an entry itself, called <name>@<random>, and one at a path of the
// user's choice has a symbolic link there.
//
// Three races are settled so:
//
//   - A lock file may be removed by its last holder between another's open and
//     lock. Whoever gets the lock compares the inode with the one at the path,
//     and begins again when they differ.
//   - Those who only look (List, the sweep) take the lock shared, and only for
//     a moment. Create, when it finds the lock taken, tries it shared as well:
//     if that works there is no owner, and Create tries again.
//   - Entries of Base change under the lock of <base>/.lock. It is waited for
//     for a moment only: a stopped process must not stop others.
//
// systemd-tmpfiles(8), which removes old files from the temp directory, leaves
// directories alone on which it cannot get an exclusive lock. So a gate holds a
// shared lock on its state dir, and on Base, as directories.

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/gofrs/flock"

	"github.com/gatekit/gatekit/pkg/api"
)

// The names in a state dir.
const (
	lockName       = "lock"
	childPIDName   = "child_pid"
	socketName     = api.SocketName
	resolvConfName = "resolv.conf"
	hostsName      = "hosts"
	netnsName      = "netns"
	notifyName     = "notify.sock"
	portsName      = "ports.json"

	// childPIDNew is where child_pid is written before it gets its name.
	childPIDNew = ".child_pid"
)

// madeByGate lists what a running gate makes and what is gone after it.
var madeByGate = [...]string{socketName, childPIDName, childPIDNew, resolvConfName, hostsName, netnsName, notifyName}

// ErrInUse marks a state dir that a running gate holds.
var ErrInUse = errors.New("in use")

// Options for Create.
type Options struct {
	// Path is the state dir. It is made when it is missing, with its parents,
	// all of mode 0700; a relative path counts from the working directory.
	// Empty makes a new directory under Base.
	//
	// Who else may write to a directory that exists already is the user's
	// business: it is not checked.
	Path string

	// Name is the gate's name, see CheckName. It makes the entry under Base
	// readable for people, and nothing else. Empty stands for "gate".
	Name string
}

// Dir is a state dir that this process holds. Its methods may be called
// concurrently.
type Dir struct {
	path string
	root *os.Root
	lock *flock.Flock

	auto bool // under Base, under a name of our own
	made bool // by this Create

	base  string         // "" when there is none
	entry string         // the symbolic link under base; "" where there is none
	guard []*flock.Flock // against systemd-tmpfiles

	unlisted error
	once     sync.Once
	closeErr error
}

// Create makes or takes over a state dir, locks it, and registers it under
// Base. The caller closes it.
//
// The error wraps ErrInUse when another gate holds the directory, and names the
// pid of that gate. All errors are one line that names the path and what mends
// it.
func Create(o Options) (*Dir, error) {
	if o.Name == "" {
		o.Name = "gate"
	}
	if err := CheckName(o.Name); err != nil {
		return nil, err
	}
	if o.Path == "" {
		return createAuto(o.Name)
	}
	return createAt(o.Path, o.Name)
}

// createAuto makes a directory of a new name under Base.
func createAuto(name string) (*Dir, error) {
	base, err := Base()
	if err != nil {
		return nil, err
	}
	defer lockBase(base)()
	sweep(base)
	for {
		path, err := os.MkdirTemp(base, name+autoMark+"*")
		if err != nil {
			return nil, unwritable(base, err)
		}
		d := &Dir{path: path, auto: true, made: true, base: base}
		switch err := d.acquire(); {
		case err == nil:
			d.keepFromCleaners()
			return d, nil
		case errors.Is(err, errVanished):
			// A sweep that did not wait for the lock of Base took it away.
		default:
			os.Remove(path)
			return nil, err
		}
	}
}

// createAt makes or takes over the directory at path. That it cannot be
// registered does not stop the gate.
func createAt(path, name string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("state dir %s: %w", path, err)
	}
	d := &Dir{path: abs}
	for {
		made, err := makeDir(abs)
		if err != nil {
			return nil, err
		}
		d.made = d.made || made
		if err = d.acquire(); err == nil {
			break
		}
		// The gate that held it has just removed it: it is ours to make again.
		if !errors.Is(err, errVanished) {
			if made {
				os.Remove(abs)
			}
			return nil, err
		}
	}
	if d.base, d.unlisted = Base(); d.unlisted == nil {
		d.register(name)
	}
	d.keepFromCleaners()
	return d, nil
}

// makeDir makes the directory and says whether it was missing.
func makeDir(path string) (made bool, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return false, unwritable(path, err)
	}
	err = os.Mkdir(path, 0o700)
	switch {
	case err == nil:
		return true, nil
	case !errors.Is(err, fs.ErrExist):
		return false, unwritable(path, err)
	}
	if st, err := os.Stat(path); err == nil && !st.IsDir() {
		return false, fmt.Errorf("state dir %s: %w: remove the file, or choose another path", path, syscall.ENOTDIR)
	}
	return false, nil
}

// acquire opens and locks the directory, clears it of what a killed gate left,
// and writes the pid.
func (d *Dir) acquire() (err error) {
	d.root, err = os.OpenRoot(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return errVanished
	}
	if err != nil {
		return unwritable(d.path, err)
	}
	_, err = d.root.Lstat(lockName)
	reused := err == nil
	if d.lock, err = lockDir(d.path); err != nil {
		d.root.Close()
		return err
	}
	defer func() {
		if err != nil {
			d.lock.Unlock()
			d.root.Close()
		}
	}()
	// The directory may have been replaced since it was opened.
	if !d.atPath() {
		return errVanished
	}
	if err := d.clear(reused); err != nil {
		if !reused {
			d.root.Remove(lockName)
		}
		return err
	}
	if err := writePID(d.root); err != nil {
		return unwritable(d.path, err)
	}
	return nil
}

// clear removes what a killed gate left. A directory without a lock file was not
// left by a gate, and files of these names in it are somebody's (think of
// --state-dir=/etc).
func (d *Dir) clear(reused bool) error {
	for _, name := range madeByGate {
		if _, err := d.root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !reused {
			return fmt.Errorf("state dir %s: it holds a file %s that no gate left there: choose another directory", d.path, name)
		}
		if err := d.root.RemoveAll(name); err != nil {
			return fmt.Errorf("state dir %s: remove what a killed gate left: %w: remove it, or choose another directory", d.path, err)
		}
	}
	return nil
}

// atPath says whether the directory is still what its path names.
func (d *Dir) atPath() bool {
	mine, err := d.root.Stat(".")
	if err != nil {
		return false
	}
	there, err := os.Stat(d.path)
	return err == nil && os.SameFile(mine, there)
}

// unwritable explains why path cannot be a state dir.
func unwritable(path string, err error) error {
	// The error's own text names a file below path; the errno is enough.
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return fmt.Errorf("state dir %s: %w: make it writable for uid %d, or choose another directory", path, err, os.Geteuid())
}

// Path is the state dir's absolute path.
func (d *Dir) Path() string { return d.path }

// Socket is the path of the API's socket. It may be longer than the 107 bytes
// that fit a socket address (unix(7)).
func (d *Dir) Socket() string { return Socket(d.path) }

// ResolvConf is the path of the namespace's resolv.conf.
func (d *Dir) ResolvConf() string { return filepath.Join(d.path, resolvConfName) }

// Hosts is the path of the namespace's hosts file.
func (d *Dir) Hosts() string { return filepath.Join(d.path, hostsName) }

// Netns is the path where a detached network namespace is mounted.
func (d *Dir) Netns() string { return filepath.Join(d.path, netnsName) }

// Notify is the path of the socket on which the command says that it is ready.
func (d *Dir) Notify() string { return filepath.Join(d.path, notifyName) }

// Ports is the path of the file that holds the forwards.
func (d *Dir) Ports() string { return filepath.Join(d.path, portsName) }

// Unlisted says why this gate is not found by List: Base cannot be used. It is
// nil when it is found. The gate works all the same, for those who know its
// state dir.
func (d *Dir) Unlisted() error { return d.unlisted }

// SetChildPID makes child_pid, with mode 0444. It appears in one step: who sees
// the file sees the whole pid.
func (d *Dir) SetChildPID(pid int) error {
	f, err := d.root.OpenFile(childPIDNew, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("state dir %s: make %s: %w", d.path, childPIDName, err)
	}
	_, err = f.WriteString(strconv.Itoa(pid))
	if err == nil {
		err = f.Chmod(0o444) // whatever the umask is
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = d.root.Rename(childPIDNew, childPIDName)
	}
	if err != nil {
		d.root.Remove(childPIDNew)
		return fmt.Errorf("state dir %s: make %s: %w", d.path, childPIDName, err)
	}
	return nil
}

// Close removes what the gate made, takes the gate off the list, and lets go of
// the lock last.
//
// A directory that was made under Base goes wholly. One at a path of the user's
// choice goes if Create made it and nothing is left in it; so it stays with
// ports.json, for the next gate to read, and with files of the user's.
//
// Close may be called again, and returns the same.
func (d *Dir) Close() error {
	d.once.Do(func() { d.closeErr = d.close() })
	return d.closeErr
}

func (d *Dir) close() error {
	if d.base != "" {
		defer lockBase(d.base)()
	}
	var errs []error
	for _, name := range madeByGate {
		errs = append(errs, d.root.RemoveAll(name))
	}
	// A directory that was removed and made anew is another gate's, and so is
	// its entry.
	if d.entry != "" && d.atPath() {
		if err := os.Remove(d.entry); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if d.auto {
		errs = append(errs, empty(d.root))
	}
	// From here on the directory is another's to take.
	if err := d.root.Remove(lockName); !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	if d.made && d.atPath() {
		err := os.Remove(d.path)
		if !errors.Is(err, fs.ErrNotExist) && (d.auto || !errors.Is(err, fs.ErrExist)) {
			errs = append(errs, err)
		}
	}
	for _, g := range d.guard {
		g.Unlock()
	}
	errs = append(errs, d.lock.Unlock(), d.root.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clear state dir %s: %w", d.path, err)
	}
	return nil
}
