package slirp

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// upstreamSource knows the DNS servers to ask, and the search domains and options
// of the namespace: those of Options, and for what these leave out those of the
// host's resolv.conf, which follow keeps current.
type upstreamSource struct {
	fixed resolvConf // of Options; its empty fields are the host's
	path  string

	host atomic.Pointer[resolvConf]
	turn atomic.Uint32 // counts queries, for "rotate"

	// changed gets a value when the host's file may have.
	changed chan struct{}
}

// newUpstreamSource reads the host's file once. A host without one has the
// resolver on its loopback (resolv.conf(5)).
func newUpstreamSource(o Options, path string) *upstreamSource {
	u := &upstreamSource{
		fixed:   resolvConf{upstreams: o.Upstreams, search: o.Search, options: o.Options},
		path:    path,
		changed: make(chan struct{}, 1),
	}
	conf, err := readResolvConf(path)
	if err != nil {
		conf = parseResolvConf(nil)
	}
	u.host.Store(&conf)
	return u
}

// conf is the configuration now.
func (u *upstreamSource) conf() resolvConf {
	conf, host := u.fixed, u.host.Load()
	if len(conf.upstreams) == 0 {
		conf.upstreams = host.upstreams
	}
	if len(conf.search) == 0 {
		conf.search = host.search
	}
	if len(conf.options) == 0 {
		conf.options = host.options
	}
	return conf
}

// reload reads the host's file again, and says so. A file that vanished, or that is empty,
// leaves all as it was: it is on its way to be replaced.
func (u *upstreamSource) reload() {
	conf, err := readResolvConf(u.path)
	if err == nil {
		u.host.Store(&conf)
	}
	select {
	case u.changed <- struct{}{}:
	default: // the reader has not come to the last one
	}
}

// Limits of the resolver's options, as in the C library.
const (
	defaultWait     = 5 * time.Second
	maxWait         = 30 * time.Second
	defaultAttempts = 2
	maxAttempts     = 5
)

// Bounds of what one upstream is given.
const (
	shortestTry = 250 * time.Millisecond
	longestTry  = 2 * time.Second
)

// schedule is how a query is asked.
type schedule struct {
	upstreams []netip.AddrPort // in the order in which to ask them
	attempts  int              // rounds
	timeout   time.Duration    // of one upstream in one round
	budget    time.Duration    // of all
}

// schedule plans for one query. "timeout" is how long the namespace's resolver
// waits for us, since its resolv.conf has the same options: all upstreams and
// attempts have to share that, less a tenth for the way.
func (u *upstreamSource) schedule() schedule {
	conf := u.conf()
	s := schedule{upstreams: conf.upstreams, attempts: defaultAttempts, timeout: longestTry}
	wait, rotate := defaultWait, false
	for _, o := range conf.options {
		name, value, _ := strings.Cut(o, ":")
		n, err := strconv.Atoi(value)
		switch {
		case name == "rotate":
			rotate = true
		case err != nil || n < 1:
		case name == "timeout":
			wait = min(time.Duration(n)*time.Second, maxWait)
			s.timeout = wait
		case name == "attempts":
			s.attempts = min(n, maxAttempts)
		}
	}
	s.budget = wait - wait/10
	share := s.budget / time.Duration(s.attempts*len(s.upstreams))
	s.timeout = max(shortestTry, min(s.timeout, share))
	if rotate {
		first := int(u.turn.Add(1)-1) % len(s.upstreams)
		s.upstreams = slices.Concat(s.upstreams[first:], s.upstreams[:first])
	}
	return s
}

// follow keeps the host's part current until ctx is done. It costs nothing while
// nothing changes: the kernel tells of changes (inotify).
func (u *upstreamSource) follow(ctx context.Context, log *slog.Logger) {
	inotify, err := linux.NewInotify()
	if err != nil {
		log.Warn("changes of the host's resolv.conf will not be noticed; sysctl fs.inotify.max_user_instances allows more watchers", "error", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { inotify.Close() })
	defer func() {
		if stop() {
			inotify.Close()
		}
	}()
	t := trail{inotify: inotify, path: u.path}
	for {
		if err := t.lay(); err != nil && ctx.Err() == nil {
			log.Warn("changes of the host's resolv.conf may not be noticed", "error", err)
		}
		u.reload()
		if err := t.await(); err != nil {
			if ctx.Err() == nil {
				log.Warn("changes of the host's resolv.conf will not be noticed any more", "error", err)
			}
			return
		}
	}
}

// trail is the set of watches on all that decides what a path leads to: the
// directory of each symbolic link on the way, that of the file, and the file. (A
// file that is a mount changes without its directory.)
type trail struct {
	inotify *linux.Inotify
	path    string
	watches map[int][]string // the names that matter in a directory; none for a file
}

// maxLinks is how many symbolic links Linux follows (path_resolution(7)).
const maxLinks = 40

const (
	dirChanges = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_CLOSE_WRITE |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	fileChanges = unix.IN_CLOSE_WRITE
)

// lay puts the watches where they belong now. Each is there before what it is for
// is looked at, so that no change is lost.
func (t *trail) lay() error {
	before := t.watches
	t.watches = make(map[int][]string)
	err := t.walk()
	for errors.Is(err, errAppeared) {
		err = t.walk()
	}
	for watch := range before {
		if _, ok := t.watches[watch]; !ok {
			t.inotify.Unwatch(watch)
		}
	}
	return err
}

func (t *trail) walk() error {
	path := t.path
	for range maxLinks {
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err == nil {
			err = t.watch(dir, dirChanges, filepath.Base(path))
		}
		switch {
		case errors.Is(err, os.ErrNotExist):
			return t.watchMissing(path)
		case err != nil:
			return err
		}
		target, err := os.Readlink(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil
		case err != nil: // no link
			// What cannot be watched itself is by its directory.
			_ = t.watch(path, fileChanges)
			return nil
		case filepath.IsAbs(target):
			path = target
		default:
			path = filepath.Join(dir, target)
		}
	}
	return unix.ELOOP
}

// errAppeared says that what was missing is there now, and may have come before
// the watch for it.
var errAppeared = errors.New("appeared")

// watchMissing waits for the first directory of a path that is not there.
func (t *trail) watchMissing(path string) error {
	for path != filepath.Dir(path) {
		missing := path
		path = filepath.Dir(path)
		err := t.watch(path, dirChanges, filepath.Base(missing))
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			continue
		case err != nil:
			return err
		}
		if _, err := os.Stat(missing); err == nil {
			return errAppeared
		}
		return nil
	}
	return nil
}

func (t *trail) watch(path string, mask uint32, names ...string) error {
	watch, err := t.inotify.Watch(path, mask)
	if err == nil {
		t.watches[watch] = append(t.watches[watch], names...)
	}
	return err
}

// await returns when something has changed that matters.
func (t *trail) await() error {
	for {
		changes, err := t.inotify.Changes()
		if err != nil {
			return err
		}
		for _, c := range changes {
			names, ours := t.watches[c.Watch]
			switch {
			case c.Mask&unix.IN_Q_OVERFLOW != 0:
				return nil
			case !ours: // of a watch that has ended
			case c.Name == "" || slices.Contains(names, c.Name):
				return nil
			}
		}
	}
}
