package copyup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// overlay copies the directory up as overlayfs. keep are canonical.
func (o *original) overlay(keep []string) error {
	held, err := o.held(keep)
	if err != nil {
		return err
	}
	// The layers are on a tmpfs that the visible mount covers.
	if err := o.mountTmpfs(); err != nil {
		return err
	}
	layers, err := linux.OpenPath(o.dir)
	if err != nil {
		return err
	}
	defer layers.Close()
	if len(held) > 0 {
		return o.split(held, layers)
	}
	lower := filepath.Join(o.dir, "lower")
	if err := os.Mkdir(lower, 0o755); err != nil {
		return err
	}
	if err := linux.AttachTree(o.tree, lower); err != nil {
		return err
	}
	return mountOverlay(o.tree, layers, "", o.dir)
}

// held returns the names of the entries that are mounts, hold some, or hold one
// of keep.
func (o *original) held(keep []string) (map[string]bool, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !holds(o.dir, m.Mountpoint), false
	})
	if err != nil {
		return nil, err
	}
	held := make(map[string]bool)
	note := func(path string) {
		name, _, _ := strings.Cut(strings.TrimPrefix(path, o.dir+"/"), "/")
		held[name] = true
	}
	for _, m := range mounts {
		note(m.Mountpoint)
	}
	for _, path := range keep {
		if holds(o.dir, path) {
			note(path)
		}
	}
	return held, nil
}

// split copies up a directory that has mounts below it: a tmpfs with a link for
// each entry that is no directory, the held ones bound back, and an overlay for
// each other directory that can be read.
func (o *original) split(held map[string]bool, layers *os.File) error {
	if err := o.mountTmpfs(); err != nil {
		return err
	}
	hidden, err := o.hide()
	if err != nil {
		return err
	}
	err = o.each(hidden, func(name string, kind os.FileMode) error {
		from := filepath.Join(o.dir, hidden, name)
		readable := unix.Access(from, unix.R_OK|unix.X_OK) == nil
		if kind != os.ModeDir || (!held[name] && !readable) {
			return o.link(name, kind, hidden)
		}
		return o.place(name, from, held[name], layers)
	})
	if err != nil {
		return err
	}
	return o.dress(o.dir)
}

// place makes the directory for an entry and mounts on it what is at from: as
// it is, or under an overlay.
func (o *original) place(name, from string, asIs bool, layers *os.File) error {
	target := filepath.Join(o.dir, name)
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	if asIs {
		tree, err := linux.CloneTree(from)
		if err != nil {
			return err
		}
		defer tree.Close()
		return linux.AttachTree(tree, target)
	}
	lower, err := linux.OpenPath(from)
	if err != nil {
		return err
	}
	defer lower.Close()
	return mountOverlay(lower, layers, name, target)
}

// mountOverlay mounts an overlay on target. Its upper and work directories are
// made in layers, below name. All are named by descriptor: paths in the options
// of an overlay would need escapes, and layers is covered.
func mountOverlay(lower, layers *os.File, name, target string) error {
	at := filepath.Join(linux.FDPath(layers), name)
	var dirs [2]*os.File
	for i, layer := range []string{"upper", "work"} {
		path := filepath.Join(at, layer)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		f, err := linux.OpenPath(path)
		if err != nil {
			return err
		}
		defer f.Close()
		dirs[i] = f
	}
	// The upper directory is what the overlay's own mode, owner and times are.
	var st unix.Stat_t
	if err := unix.Fstat(int(lower.Fd()), &st); err != nil {
		return &os.PathError{Op: "fstat", Path: lower.Name(), Err: err}
	}
	if err := dress(linux.FDPath(dirs[0]), &st); err != nil {
		return err
	}
	data := fmt.Sprintf("userxattr,lowerdir=%s,upperdir=%s,workdir=%s",
		linux.FDPath(lower), linux.FDPath(dirs[0]), linux.FDPath(dirs[1]))
	if err := linux.Mount("overlay", target, "overlay", 0, data); err != nil {
		return fmt.Errorf("%w: this kernel or sandbox refuses an overlay in a user namespace (Linux 5.11 or newer is needed): use copyup.Options.Mode=%s", err, ModeSymlink)
	}
	return nil
}
