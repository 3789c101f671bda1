package copyup

import (
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
	for _, e := range o.entries {
		if err := o.link(e, hidden); err != nil {
			return err
		}
	}
	return o.dress(o.dir)
}

// link makes the link that stands for an entry of the original. A link is
// copied: it then resolves from the place that it was made for.
func (o *original) link(e os.DirEntry, hidden string) error {
	to := filepath.Join(hidden, e.Name())
	if e.Type()&os.ModeSymlink != 0 {
		var err error
		if to, err = os.Readlink(filepath.Join(o.dir, to)); err != nil {
			return err
		}
	}
	return os.Symlink(to, filepath.Join(o.dir, e.Name()))
}
