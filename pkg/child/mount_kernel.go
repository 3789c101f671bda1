package child

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// The kernel's own file systems show the namespaces of whoever mounts them, so
// new namespaces need new mounts. In a user namespace the kernel allows a new
// proc or sysfs only where one is mounted that nothing covers in part, as
// containers do to hide files, and only with the same flags for access times; if
// all that are there are read-only, the new one must be too
// (mount_namespaces(7), "Restrictions on mount namespaces").

const (
	sysDir    = "/sys"
	cgroupDir = "/sys/fs/cgroup"
	procDir   = "/proc"

	kernelFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
)

// mountKernel mounts what the new namespaces need.
func (m Mounts) mountKernel(log *slog.Logger) error {
	if m.Sys {
		if err := mountSys(log); err != nil {
			return err
		}
	}
	if m.Cgroup {
		if err := mountCgroup2(); err != nil {
			return err
		}
	}
	if m.Proc {
		return mountProc()
	}
	return nil
}

// mountSys mounts a sysfs of the new network namespace on /sys, and the cgroup
// tree back below it. A sysfs that is refused is a warning: the command then
// sees the host's interfaces in /sys/class/net, and all else works.
func mountSys(log *slog.Logger) error {
	cgroups, err := cloneMounted(cgroupDir)
	if err != nil {
		return err
	}
	if cgroups != nil {
		defer cgroups.Close()
	}
	if err := newSysfs(); err != nil {
		log.Warn("/sys stays the host's, so /sys/class/net shows the host's interfaces",
			"error", err, "remedy", "if this is a container, which masks parts of /sys, start it with --security-opt systempaths=unconfined")
		return nil
	}
	if cgroups == nil {
		return nil
	}
	return linux.AttachTree(cgroups, cgroupDir)
}

// newSysfs mounts a sysfs on /sys, read-only if nothing else is allowed.
func newSysfs() error {
	atime, err := linux.AtimeFlags(sysDir)
	if err != nil {
		return err
	}
	err = linux.Mount("sysfs", sysDir, "sysfs", kernelFlags|atime, "")
	if errors.Is(err, unix.EPERM) {
		err = linux.Mount("sysfs", sysDir, "sysfs", kernelFlags|atime|unix.MS_RDONLY, "")
	}
	return err
}

// cloneMounted copies the mounts from path down, or returns nil where nothing is
// mounted on path.
func cloneMounted(path string) (*os.File, error) {
	mounted, err := mountinfo.Mounted(path)
	if errors.Is(err, os.ErrNotExist) || (err == nil && !mounted) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return linux.CloneTree(path)
}

// mountCgroup2 covers each cgroup2 below /sys/fs/cgroup (there itself, or at
// unified beside version 1) with one whose root is that of the new cgroup
// namespace. A host without cgroup2 needs none.
func mountCgroup2() error {
	places, err := cgroup2Places()
	if err != nil {
		return err
	}
	for _, place := range places {
		if err := newCgroup2(place); err != nil {
			return fmt.Errorf("mount the cgroup tree of the new cgroup namespace: %w", err)
		}
	}
	return nil
}

// newCgroup2 puts a cgroup2 of the cgroup namespace on place.
func newCgroup2(place string) error {
	tree, err := linux.NewTree("cgroup2", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	defer tree.Close()
	return linux.AttachTree(tree, place)
}

// cgroup2Places returns the paths at and below /sys/fs/cgroup where a cgroup2 is
// seen, each once. Mounts that others cover are listed by the kernel too.
func cgroup2Places() ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(cgroupDir))
	if err != nil {
		return nil, err
	}
	var places []string
	for _, m := range mounts {
		if m.FSType != "cgroup2" || slices.Contains(places, m.Mountpoint) {
			continue
		}
		mounted, err := mountinfo.Mounted(m.Mountpoint)
		if err != nil || !mounted {
			continue // covered
		}
		if seen, err := linux.OnCgroup2(m.Mountpoint); err == nil && seen {
			places = append(places, m.Mountpoint)
		}
	}
	return places, nil
}

// mountProc mounts a proc of the new PID namespace on /proc.
func mountProc() error {
	atime, err := linux.AtimeFlags(procDir)
	if err != nil {
		return err
	}
	err = linux.Mount("proc", procDir, "proc", kernelFlags|atime, "")
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: parts of /proc are masked, as in a container, and the kernel then allows no new one: start the container with --security-opt systempaths=unconfined (Kubernetes: procMount: Unmasked), or leave out parent.Options.CreatePIDNS", err)
	}
	return err
}
