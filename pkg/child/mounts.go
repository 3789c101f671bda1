package child

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/copyup"
	"golang.org/x/sys/unix"
)

// Mounts is what the child changes in its mount namespace. It crosses the
// handshake as JSON; the zero value makes all mounts private and changes nothing
// else. The parent makes it of its options: who embeds a gate sets parent.Options.
//
// apply works in this order, and why:
//
//  1. Propagation to private or slave, so that what follows stays ours.
//  2. The files to bind are opened, before a copy-up can cover them.
//  3. Copy-up.
//  4. /sys, cgroup2 and /proc of the new namespaces.
//  5. The files are bound, where copy-up may have made their place.
//  6. Propagation to shared, when all mounts stand: before, they would be copied
//     onto each other.
//
// Nothing is undone on an error: the mounts go away with the namespace. The
// working directory stays what it was, which copy-up may have covered: the caller
// enters it again by its path.
type Mounts struct {
	// Propagation is "private", "rprivate", "slave", "rslave", "shared" or
	// "rshared", of / and, for the r forms, of all below
	// (mount_namespaces(7)). "" is rprivate. No form lets mounts out to the
	// host: the kernel has made all mounts slaves of the host's.
	Propagation string `json:"propagation,omitempty"`

	// CopyUp are the directories to make writable; CopyUpMode says how
	// (copyup.ModeSymlink, also for "", or copyup.ModeOverlay).
	CopyUp     []string `json:"copyUp,omitempty"`
	CopyUpMode string   `json:"copyUpMode,omitempty"`

	// StateDir is the state dir, which shows what the parent writes into it also
	// where it is below a copied-up directory. "" is none.
	StateDir string `json:"stateDir,omitempty"`

	// Sys says that the network namespace is new and that /sys is to show it.
	Sys bool `json:"sys,omitempty"`

	// Proc says that the PID namespace is new and gets a /proc of its own.
	Proc bool `json:"proc,omitempty"`

	// Cgroup says that the cgroup namespace is new; cgroup2 is mounted anew
	// where the host has it.
	Cgroup bool `json:"cgroup,omitempty"`

	// ResolvConf and Hosts are the files to bind over /etc/resolv.conf and
	// /etc/hosts: what is later written to them in place shows inside. "" leaves
	// the host's.
	ResolvConf string `json:"resolvConf,omitempty"`
	Hosts      string `json:"hosts,omitempty"`
}

// propagation maps the values of Mounts.Propagation to mount(2) flags.
var propagation = map[string]uintptr{
	"":         unix.MS_PRIVATE | unix.MS_REC,
	"private":  unix.MS_PRIVATE,
	"rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"slave":    unix.MS_SLAVE,
	"rslave":   unix.MS_SLAVE | unix.MS_REC,
	"shared":   unix.MS_SHARED,
	"rshared":  unix.MS_SHARED | unix.MS_REC,
}

// apply makes the mounts. The process is in a new mount namespace owned by its
// user namespace, its ids are mapped, and it has all capabilities there.
func (m Mounts) apply(log *slog.Logger) error {
	flags, ok := propagation[m.Propagation]
	if !ok {
		return fmt.Errorf("unknown propagation %q", m.Propagation)
	}
	shared := flags&unix.MS_SHARED != 0
	if !shared {
		if err := linux.Mount("", "/", "", flags, ""); err != nil {
			return fmt.Errorf("propagation %s: %w", m.Propagation, err)
		}
	}
	binds, err := openBinds(m)
	defer closeBinds(binds)
	if err != nil {
		return err
	}
	copied, err := copyup.Do(copyup.Options{Dirs: m.CopyUp, Mode: m.CopyUpMode, Keep: keep(m.StateDir)})
	if err != nil {
		return err
	}
	if err := m.mountKernel(log); err != nil {
		return err
	}
	for _, b := range binds {
		if err := b.bind(copied, log); err != nil {
			return err
		}
	}
	if shared {
		if err := linux.Mount("", "/", "", flags, ""); err != nil {
			return fmt.Errorf("propagation %s: %w", m.Propagation, err)
		}
	}
	return nil
}

func keep(stateDir string) []string {
	if stateDir == "" {
		return nil
	}
	return []string{stateDir}
}

// fileBind is a file to bind over one in /etc.
type fileBind struct {
	tree   *os.File
	target string
}

// openBinds opens the files to bind. The caller closes them, also on an error.
func openBinds(m Mounts) ([]fileBind, error) {
	var binds []fileBind
	for _, b := range []struct{ source, target string }{
		{m.ResolvConf, "/etc/resolv.conf"},
		{m.Hosts, "/etc/hosts"},
	} {
		if b.source == "" {
			continue
		}
		tree, err := linux.CloneTree(b.source)
		if err != nil {
			return binds, err
		}
		binds = append(binds, fileBind{tree, b.target})
	}
	return binds, nil
}

func closeBinds(binds []fileBind) {
	for _, b := range binds {
		b.tree.Close()
	}
}

// bind binds the file over its target. In a copied-up directory a link or a gap
// gives way to a file. Elsewhere a link is followed, and a target that is missing
// or dangles cannot be mounted on: that is a warning, as the network works.
func (b fileBind) bind(copied []string, log *slog.Logger) error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(b.target))
	if err == nil && slices.Contains(copied, dir) {
		if err := makeFile(b.target); err != nil {
			return err
		}
	}
	if _, err := os.Stat(b.target); errors.Is(err, os.ErrNotExist) {
		log.Warn(b.target+" does not exist on the host and stays so: add parent.Options.CopyUpDirs="+filepath.Dir(b.target)+" to have one inside",
			"file", b.tree.Name())
		return nil
	}
	return linux.AttachTree(b.tree, b.target)
}

// rebind binds the files again that are no longer in place: when the host puts
// another file in the place of one (rename(2), unlink(2)), as programs do that
// write resolv.conf, the kernel takes away what other namespaces have mounted on it.
// A target that is missing waits for the next call.
func (m Mounts) rebind() error {
	binds, err := openBinds(m)
	defer closeBinds(binds)
	if err != nil {
		return err
	}
	for _, b := range binds {
		ours, err := os.Stat(b.tree.Name())
		if err != nil {
			return err
		}
		now, err := os.Stat(b.target)
		if errors.Is(err, os.ErrNotExist) || err == nil && os.SameFile(ours, now) {
			continue
		}
		// The host may be just putting another in its place, and then there is a
		// next call.
		if err := linux.AttachTree(b.tree, b.target); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// makeFile makes path a regular file to mount on. A link is replaced, its target
// left alone.
func makeFile(path string) error {
	fi, err := os.Lstat(path)
	if err == nil {
		if fi.Mode().IsRegular() {
			return nil
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// bindNetns binds the network namespace of the calling thread on path, a file
// which it makes where there is none, so that it can be entered by that name
// (`nsenter --net=path`) from inside the mount namespace.
func bindNetns(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	return linux.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
}
