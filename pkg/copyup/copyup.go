// Package copyup makes directories of the host writable inside a mount
// namespace, without a change on the host. It knows of mounts and links only;
// what is to be copied up, and when, is said by its callers.
//
// # How it works
//
// The caller stands in a mount namespace of its own, owned by its user
// namespace, and has CAP_SYS_ADMIN there. Directories are made canonical first
// (/var/run becomes /run), doubles are dropped, and a directory comes before
// the one that holds it (/run/user before /run), so that the order and the
// repetition of flags do not matter.
//
// Each directory is copied with all mounts below it (open_tree(2)): the
// original. Then, by mode:
//
// tmpfs+symlink puts a tmpfs on the directory and, in it, a link for each entry
// of the original:
//
//	/etc                          tmpfs
//	/etc/passwd                -> .ro123/etc/passwd
//	/etc/ssl                   -> .ro123/etc/ssl
//	/etc/mtab                  -> ../proc/self/mounts    (was a link: kept as it was)
//	/etc/.ro123                   looks like the root directory:
//	/etc/.ro123/etc               the original, a mount
//	/etc/.ro123/usr            -> /usr
//	/etc/.ro123/var            -> /var                   (and so on)
//
// Why the root is rebuilt under .ro123: the kernel resolves ".." from where a
// directory really is. Were the original at /etc/.ro123 itself, a link such as
// /etc/ssl/certs/x.pem -> ../../../usr/share/ca-certificates/x.pem would lead
// to /etc/usr/share, and certificates would not verify. Here it leads from
// .ro123/etc/ssl/certs to .ro123/usr, and on to /usr. For /var/lib the same is
// done level by level: .ro123/var/lib is the original, .ro123/var/log a link.
// This costs a link for each neighbour of the directory and of the directories
// that hold it, and no walk through the original, whose size is not known.
//
// Every entry is a link, also a directory that is a mount or holds mounts
// (/run/user): what is mounted there is in the original, and so it is seen and
// written through the link as before. Programs that prepare a copied-up /run by
// `rm -f /run/docker` remove links only, and nothing on the host.
//
// overlay mounts an overlayfs on the directory (Linux 5.11), with the original
// below and a private tmpfs above. The kernel refuses this for a directory with
// mounts below it, since the lower layer would uncover what they hide. Such a
// directory gets a tmpfs as above, with its directories in place of links: those
// that are mounts or hold some are bound back, the others get an overlay each.
//
// # Limits
//
//   - What ids the host gave to others stays theirs: a file of the host's root
//     can be replaced or removed where its directory is copied up, and not be
//     changed in place; directories further below are as writable as before.
//   - A link from inside the original to an entry of the copied-up directory
//     ("../hosts" in /etc/ssl) finds the original's entry. A link with more ".."
//     than it has directories above it may miss.
//   - Neighbours of the directory that the host makes later are not reached by
//     relative links that lead out of the original; absolute ones do reach them.
//   - A mount that the host makes later below the directory is seen, with slave
//     propagation, in tmpfs+symlink, and not under an overlay.
//   - Before Linux 6.6 a tmpfs keeps no user xattrs: overlay then fails with EIO
//     to make a directory in place of a removed one.
//
// Nothing is undone on an error: the mounts go away with the namespace.
package copyup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The modes of copy-up. "" is ModeSymlink.
const (
	// ModeSymlink puts a tmpfs on the directory, with links into the original.
	ModeSymlink = "tmpfs+symlink"
	// ModeOverlay mounts an overlayfs on the directory; Linux 5.11 or newer.
	ModeOverlay = "overlay"
)

// ErrUsage marks directories or a mode that can never work.
var ErrUsage = errors.New("invalid copy-up")

// Options say what to copy up.
type Options struct {
	// Dirs are absolute paths of directories, in any order. Doubles, links and
	// directories within each other are allowed. None does nothing.
	Dirs []string

	// Mode is ModeSymlink, ModeOverlay, or "", which is ModeSymlink.
	Mode string

	// Keep are paths on which others work from outside the namespace while it
	// lives, such as the state dir: they show the host's files as they change,
	// also below a directory in Dirs. Missing ones are ignored.
	Keep []string
}

// Validate checks directories and mode on the host, before there is a
// namespace. Errors wrap ErrUsage.
func Validate(dirs []string, mode string) error {
	switch mode {
	case "", ModeSymlink, ModeOverlay:
	default:
		return fmt.Errorf("%w: unknown mode %q (%s or %s)", ErrUsage, mode, ModeSymlink, ModeOverlay)
	}
	for _, dir := range dirs {
		if _, err := canonical(dir); err != nil {
			return err
		}
	}
	return nil
}

// canonical checks one directory and returns its path without links.
func canonical(dir string) (string, error) {
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("%w: %q is not an absolute path", ErrUsage, dir)
	}
	path, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w: %s does not exist", ErrUsage, dir)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUsage, err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if !fi.IsDir() {
		return "", fmt.Errorf("%w: %s is not a directory", ErrUsage, dir)
	}
	if err := unix.Access(path, unix.R_OK|unix.X_OK); err != nil {
		return "", fmt.Errorf("%w: %s cannot be read: %w", ErrUsage, dir, err)
	}
	return path, allowed(dir, path)
}

// allowed refuses what cannot be copied up for what it is. dir is the directory
// as it was given, path its canonical name.
func allowed(dir, path string) error {
	tmp, err := filepath.EvalSymlinks("/tmp")
	if err != nil {
		tmp = "/tmp"
	}
	if path == tmp {
		return fmt.Errorf("%w: %s is writable as it is, and programs meet there: it is never copied up", ErrUsage, dir)
	}
	if holds(path, tmp) {
		return fmt.Errorf("%w: %s holds %s, which is never copied up: name directories below it", ErrUsage, dir, tmp)
	}
	for _, kernel := range []string{"/proc", "/sys"} {
		if path == kernel || holds(kernel, path) {
			return fmt.Errorf("%w: %s belongs to the kernel", ErrUsage, dir)
		}
	}
	return nil
}

// holds says whether path is below dir. Both are clean.
func holds(dir, path string) bool {
	return path != dir && strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// Do copies the directories up and returns their canonical names, each once.
// The caller is in a mount namespace of its own. Errors that wrap ErrUsage are
// those of Validate.
func Do(opts Options) ([]string, error) {
	if err := Validate(nil, opts.Mode); err != nil {
		return nil, err
	}
	var dirs []string
	for _, dir := range opts.Dirs {
		path, err := canonical(dir)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(dirs, path) {
			dirs = append(dirs, path)
		}
	}
	// The deeper comes first: what holds it then copies it as a mount.
	slices.SortStableFunc(dirs, func(a, b string) int {
		return strings.Count(b, "/") - strings.Count(a, "/")
	})
	var keep []string
	for _, path := range opts.Keep {
		if path, err := filepath.EvalSymlinks(path); err == nil {
			keep = append(keep, path)
		}
	}
	for _, dir := range dirs {
		if err := copyUp(dir, opts.Mode, keep); err != nil {
			return nil, fmt.Errorf("copy-up of %s: %w", dir, err)
		}
	}
	return dirs, nil
}

// copyUp does one canonical directory.
func copyUp(dir, mode string, keep []string) error {
	o, err := open(dir)
	if err != nil {
		return err
	}
	defer o.tree.Close()
	if mode == ModeOverlay {
		return o.overlay(keep)
	}
	return o.symlinks()
}
