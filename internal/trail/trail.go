// Package trail follows a file of the host as it is written, replaced, and led to by
// other symbolic links. It costs nothing while nothing changes: the kernel tells of
// changes (inotify(7)).
//
// What a path leads to is decided by each name on the way. The path is walked name
// by name, as the kernel does it (path_resolution(7)), and each directory is watched
// for the name that is looked up in it:
//
//	/etc/resolv.conf -> ../run/dns/resolv.conf, where /run/dns -> /run/vpn
//
//	/         etc, run, run
//	/etc      resolv.conf
//	/run      dns, vpn
//	/run/vpn  resolv.conf
//	the file  (one that is a mount changes without its directory)
//
// After each change of these it is walked anew. Each watch is there before the name is
// looked up, so that no change is lost. Another mount on the way is not noticed.
package trail

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// settle is how long Follow waits before it begins. A gate that runs one short command
// ends before that, and is spared the 15 ms that the kernel takes to close an inotify
// instance.
const settle = time.Second

// Follow calls changed after a second, for what has changed until then, and again
// whenever the file at an absolute path may be another or has been written, until ctx
// is done. What keeps it from noticing is logged.
func Follow(ctx context.Context, path string, log *slog.Logger, changed func()) {
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return
	}
	log = log.With("file", path)
	inotify, err := linux.NewInotify()
	if err != nil {
		log.Warn("changes of a file of the host will not be noticed; sysctl fs.inotify.max_user_instances allows more watchers", "error", err)
		changed()
		return
	}
	stop := context.AfterFunc(ctx, func() { inotify.Close() })
	defer func() {
		if stop() {
			inotify.Close()
		}
	}()
	t := trail{inotify: inotify, path: path}
	for {
		if err := t.lay(); err != nil && ctx.Err() == nil {
			log.Warn("changes of a file of the host may not be noticed", "error", err)
		}
		changed()
		if err := t.await(); err != nil {
			if ctx.Err() == nil {
				log.Warn("changes of a file of the host will not be noticed any more", "error", err)
			}
			return
		}
	}
}

// trail is the set of watches on all that decides what a path leads to.
type trail struct {
	inotify *linux.Inotify
	path    string
	watches map[int][]string // the names that matter in a directory; none for a file
}

// maxLinks is how many symbolic links Linux follows (path_resolution(7)).
const maxLinks = 40

// What is watched for. A directory may be on the way more than once, with all names
// that are looked up in it (IN_MASK_ADD).
const (
	nameChanges = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_ONLYDIR | unix.IN_MASK_ADD
	fileChanges = unix.IN_CLOSE_WRITE | unix.IN_MASK_ADD
)

// lay puts the watches where they belong now.
func (t *trail) lay() error {
	before := t.watches
	t.watches = make(map[int][]string)
	err := t.walk()
	for watch := range before {
		if _, ok := t.watches[watch]; !ok {
			t.inotify.Unwatch(watch)
		}
	}
	return err
}

// walk goes the way of the path, to the file or to the first name that is missing.
func (t *trail) walk() error {
	dir, links := "/", 0
	for names := split(t.path); len(names) > 0; {
		name := names[0]
		names = names[1:]
		if name == ".." {
			dir = filepath.Dir(dir) // dir has no links
			continue
		}
		mask := uint32(nameChanges)
		if len(names) == 0 {
			mask |= unix.IN_CLOSE_WRITE
		}
		err := t.watch(dir, mask, name)
		switch {
		case isMissing(err):
			return nil // since a moment: its own directory is watched
		case errors.Is(err, unix.EACCES) && len(names) > 0:
			// One that may be passed and not be read, as some home directories.
		case err != nil:
			return err
		}
		path := filepath.Join(dir, name)
		target, err := os.Readlink(path)
		switch {
		case isMissing(err):
			return nil
		case err != nil: // no link
			dir = path
			continue
		case links == maxLinks:
			return &os.PathError{Op: "follow", Path: t.path, Err: unix.ELOOP}
		}
		links++
		if filepath.IsAbs(target) {
			dir = "/"
		}
		names = slices.Concat(split(target), names)
	}
	// What cannot be watched itself is by its directory.
	_ = t.watch(dir, fileChanges)
	return nil
}

// split returns the names in a path.
func split(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." })
}

// isMissing says whether nothing is there, or no directory where one has to be.
func isMissing(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

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
