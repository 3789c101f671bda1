package copyup

import (
	"errors"
	"os"
	"path/filepath"
)

// symlinks copies the directory up as tmpfs+symlink.
func (o *original) symlinks() error {
	if err := o.mountTmpfs(); err != nil {
		return err
	}
	hidden, err := o.hide()
	if err != nil {
		return err
	}
	err = o.each(hidden, func(name string, kind os.FileMode) error { return o.link(name, kind, hidden) })
	if err != nil {
		return err
	}
	return o.dress(o.dir)
}

// each calls f for the entries of the original, which is at hidden by now, with what
// kind of file each is. One that the host has taken away meanwhile is none.
func (o *original) each(hidden string, f func(name string, kind os.FileMode) error) error {
	for _, e := range o.entries {
		kind := e.Type()
		info, err := os.Lstat(filepath.Join(o.dir, hidden, e.Name()))
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err == nil: // FUSE refuses strangers to look
			kind = info.Mode().Type()
		}
		if err := f(e.Name(), kind); err != nil {
			return err
		}
	}
	return nil
}

// link makes the link that stands for an entry of the original. A link is
// copied: it then resolves from the place that it was made for.
func (o *original) link(name string, kind os.FileMode, hidden string) error {
	to := filepath.Join(hidden, name)
	if kind == os.ModeSymlink {
		var err error
		if to, err = os.Readlink(filepath.Join(o.dir, to)); err != nil {
			return err
		}
	}
	return os.Symlink(to, filepath.Join(o.dir, name))
}
