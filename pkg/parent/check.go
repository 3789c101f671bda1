package parent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// programs says where to look for newuidmap and newgidmap. Zero values mean
// PATH, and the directories that a service's PATH may lack.
type programs struct {
	dirs []string
}

// find returns the path of a program.
func (p programs) find(name string) (string, error) {
	dirs := p.dirs
	if dirs == nil {
		dirs = append(filepath.SplitList(os.Getenv("PATH")), "/usr/bin", "/usr/local/bin", "/bin")
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if !filepath.IsAbs(path) {
			continue
		}
		if _, err := exec.LookPath(path); err == nil {
			return path, nil
		}
	}
	return "", os.ErrNotExist
}

// findPrograms finds the two programs that write maps, and what would keep them
// from it. Root does without, also where they are: they know of no id that is not
// listed, and root may map all.
func (m *idMaps) findPrograms(c caller, p programs) error {
	if c.uid == 0 {
		return nil
	}
	for _, program := range []struct {
		name string
		path *string
	}{{"newuidmap", &m.newuidmap}, {"newgidmap", &m.newgidmap}} {
		path, err := p.find(program.name)
		if err != nil {
			return fmt.Errorf("%s is not installed: install it with: sudo apt-get install uidmap (Fedora: shadow-utils; Alpine: shadow-subids; Arch: shadow), or use parent.Options.SingleID", program.name)
		}
		if err := checkPrivileged(path); err != nil {
			return err
		}
		*program.path = path
	}
	return checkNoNewPrivs()
}

// checkPrivileged finds out why a program would not gain its privilege: it has
// neither the set-user-ID bit nor file capabilities, or its mount ignores them.
func checkPrivileged(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	setuid := info.Mode()&os.ModeSetuid != 0 && owner == 0
	if !setuid {
		if n, err := unix.Getxattr(path, "security.capability", nil); err != nil || n == 0 {
			return fmt.Errorf("%s is not set-user-ID root and has no file capabilities, so it cannot map ids: mend it with: sudo chown root %s && sudo chmod u+s %s (or use parent.Options.SingleID)", path, path, path)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err == nil && fs.Flags&unix.ST_NOSUID != 0 {
		return fmt.Errorf("%s is on a mount with nosuid, so it cannot map ids: mount it without nosuid (or use parent.Options.SingleID)", path)
	}
	return nil
}

// checkNoNewPrivs: under no_new_privs newuidmap gains nothing, and fails with
// words that tell nobody why.
func checkNoNewPrivs() error {
	set, err := linux.NoNewPrivs()
	if err != nil || !set {
		return err
	}
	return errors.New("no_new_privs is set for this process, so newuidmap cannot map ids: start the gate without it (systemd: NoNewPrivileges=no; containers: without no-new-privileges; setpriv: without --no-new-privs), or use parent.Options.SingleID")
}

// sysctl is a setting below /proc/sys.
type sysctl string

// value reads the setting; empty when this kernel does not have it.
func (s sysctl) value(proc string) string {
	b, err := os.ReadFile(filepath.Join(proc, "sys", strings.ReplaceAll(string(s), ".", "/")))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// The settings that forbid user namespaces: the kernel's own, Debian's, and
// Ubuntu's.
const (
	maxUserNamespaces = sysctl("user.max_user_namespaces")
	unprivilegedClone = sysctl("kernel.unprivileged_userns_clone")
	apparmorRestrict  = sysctl("kernel.apparmor_restrict_unprivileged_userns")
)

// checkUserNamespaces finds a setting under which no user namespace can be made.
// proc is "/proc".
func checkUserNamespaces(proc string, c caller) error {
	if _, err := os.Stat(filepath.Join(proc, "self/ns/user")); errors.Is(err, os.ErrNotExist) {
		return errors.New("this kernel has no user namespaces: it needs CONFIG_USER_NS=y")
	}
	if maxUserNamespaces.value(proc) == "0" {
		return errors.New("user namespaces are forbidden: user.max_user_namespaces is 0; allow them with: sudo sysctl -w user.max_user_namespaces=28633")
	}
	if c.uid != 0 && unprivilegedClone.value(proc) == "0" {
		return errors.New("user namespaces are forbidden for users: kernel.unprivileged_userns_clone is 0; allow them with: sudo sysctl -w kernel.unprivileged_userns_clone=1")
	}
	return nil
}

// explainNamespaces adds to an error of making or using a user namespace, or of
// newuidmap, what most likely caused it. proc is "/proc".
func explainNamespaces(err error, proc string) error {
	var helper *exec.ExitError // newuidmap says in words what it got
	denied := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return fmt.Errorf("%w: too many user namespaces, or too many levels of them; raise the limit with: sudo sysctl -w user.max_user_namespaces=28633", err)
	case !denied && !errors.As(err, &helper):
		return err
	case apparmorRestrict.value(proc) == "1":
		return fmt.Errorf("%w: AppArmor keeps users from user namespaces; allow them with: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (or give this program a profile with `userns,`)", err)
	case status(proc, "TracerPid") != "0" && helper != nil:
		return fmt.Errorf("%w: a tracer keeps set-user-ID programs from their privilege; trace as root (strace -u USER)", err)
	case !denied:
		return err
	case status(proc, "Seccomp") == "2":
		return fmt.Errorf("%w: a seccomp filter forbids user namespaces, as containers do; start the container with --security-opt seccomp=unconfined", err)
	}
	return fmt.Errorf("%w: user namespaces are forbidden here, by a security module or a container", err)
}

// status reads a line of /proc/self/status (proc(5)); "0" where it is not there.
func status(proc, name string) string {
	b, err := os.ReadFile(filepath.Join(proc, "self/status"))
	if err != nil {
		return "0"
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return "0"
}
