package parent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Evacuation of the gate's own cgroup (cgroups(7), version 2).
//
// An engine inside makes cgroups for its containers below the one that it sees
// as the root: the cgroup in which the gate was started. The kernel lets a cgroup
// hand controllers down only while no process is in it itself. So the gate moves
// its own processes one level down, and then hands down all controllers that it
// has:
//
//	user@1000.service/gate.scope       cgroup.subtree_control: +cpu +memory +pids
//	user@1000.service/gate.scope/GROUP the parent, the child, and all they start
//	user@1000.service/gate.scope/...   what the engine makes
//
// Only the processes that are named are moved. Others in the cgroup, such as the
// shell in which the gate was started, stay; while they do, the kernel hands no
// controllers down, which is a warning, since the gate works without.
//
// It takes a cgroup that was delegated to the user, with its cgroup.procs and
// cgroup.subtree_control. The child is moved before it starts the command and
// after its cgroup namespace was made, whose root is thus the upper cgroup.

// evacuation is a cgroup that is evacuated, and the way back.
type evacuation struct {
	dir     string   // where the gate was started
	to      string   // where it is moved
	pids    []int    // whom it is to move
	moved   []int    // whom it moved
	enabled []string // controllers that it handed down

	// write writes a file of the cgroup tree.
	write func(path, text string) error
}

// evacuateCgroup2 moves the processes pids from the cgroup of this process to
// the one called group below it, and hands down all controllers that it can. The
// function that it returns undoes this, once the processes inside have ended; it
// is never nil, and does nothing after an error.
func evacuateCgroup2(log *slog.Logger, group string, pids ...int) (moveBack func(), err error) {
	dir, err := ownCgroup2()
	if err != nil {
		return func() {}, fmt.Errorf("evacuate cgroup: %w", err)
	}
	e := newEvacuation(dir, group, pids)
	if err := e.run(log); err != nil {
		return func() {}, err
	}
	return func() {
		if err := e.undo(); err != nil {
			log.Warn("the gate's cgroup stays behind", "error", err)
		}
	}, nil
}

// ownCgroup2 returns the directory of the cgroup that this process is in.
func ownCgroup2() (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", err
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	return cgroup2Dir(mounts, string(self))
}

func newEvacuation(dir, group string, pids []int) *evacuation {
	return &evacuation{dir: dir, to: filepath.Join(dir, group), pids: pids, write: writeCgroupFile}
}

// writeCgroupFile writes in one call, as the kernel wants it, and makes no file.
func writeCgroupFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// cgroup2Dir finds the directory of the cgroup that /proc/PID/cgroup names,
// among the mounts of cgroup2.
func cgroup2Dir(mounts []*mountinfo.Info, procCgroup string) (string, error) {
	cgroup, found := "", false
	for line := range strings.Lines(procCgroup) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			cgroup, found = path, true
		}
	}
	if !found || len(mounts) == 0 {
		return "", errors.New("no cgroup version 2 is mounted on this host: boot it with systemd.unified_cgroup_hierarchy=1, or leave out parent.Options.EvacuateCgroup2")
	}
	for _, m := range mounts {
		rest, ok := strings.CutPrefix(cgroup, strings.TrimSuffix(m.Root, "/"))
		if ok && (rest == "" || rest[0] == '/') {
			return filepath.Join(m.Mountpoint, rest), nil
		}
	}
	return "", fmt.Errorf("%s, the cgroup of this process, is not below %s: start the gate inside the cgroup namespace of that mount, or leave out parent.Options.EvacuateCgroup2",
		cgroup, mounts[0].Mountpoint)
}

// run leaves nothing behind when it fails.
func (e *evacuation) run(log *slog.Logger) error {
	// The cgroup may be there, of a gate that was killed or of another one.
	if err := os.Mkdir(e.to, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return e.explain(err)
	}
	for _, pid := range e.pids {
		if err := e.write(filepath.Join(e.to, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			err = e.explain(err)
			if left := e.undo(); left != nil {
				err = fmt.Errorf("%w; %w", err, left)
			}
			return err
		}
		e.moved = append(e.moved, pid)
	}
	e.enableControllers(log)
	return nil
}

// explain names the cgroup and what mends a refusal.
func (e *evacuation) explain(err error) error {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("evacuate cgroup %s: it is not delegated to this user (%w): start the gate by `systemd-run --user --scope -p Delegate=yes ...`, or set Delegate=yes in its systemd unit", e.dir, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("evacuate cgroup %s: it is mounted read-only (%w), as in a container: mount it read-write, or leave out parent.Options.EvacuateCgroup2", e.dir, err)
	}
	return fmt.Errorf("evacuate cgroup %s: %w", e.dir, err)
}

// enableControllers hands down the controllers that the evacuated cgroup has,
// one by one: the kernel takes all of a line or none.
func (e *evacuation) enableControllers(log *slog.Logger) {
	available, err := e.words("cgroup.controllers")
	if err != nil {
		log.Warn("evacuated cgroup: no controllers for engines inside", "error", err)
		return
	}
	before, err := e.words("cgroup.subtree_control")
	if err != nil {
		log.Warn("evacuated cgroup: no controllers for engines inside", "error", err)
		return
	}
	control := filepath.Join(e.dir, "cgroup.subtree_control")
	for _, c := range available {
		if slices.Contains(before, c) {
			continue
		}
		err := e.write(control, "+"+c)
		if errors.Is(err, unix.EBUSY) {
			if strangers := e.strangers(); len(strangers) > 0 {
				log.Warn("evacuated cgroup: no controllers for engines inside, as processes that are not the gate's are in its cgroup: start the gate in one of its own, by `systemd-run --user --scope -p Delegate=yes ...`",
					"cgroup", e.dir, "processes", strings.Join(strangers, ", "))
				return
			}
		}
		if err != nil {
			log.Warn("evacuated cgroup: a controller is missing for engines inside", "cgroup", e.dir, "controller", c, "error", err)
			continue
		}
		e.enabled = append(e.enabled, c)
	}
}

// words reads a file of the evacuated cgroup.
func (e *evacuation) words(name string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(e.dir, name))
	return strings.Fields(string(b)), err
}

// maxStrangers is how many processes a warning names.
const maxStrangers = 10

// strangers names processes that are left in the evacuated cgroup, as "PID
// (program)".
func (e *evacuation) strangers() []string {
	pids, err := e.words("cgroup.procs")
	if err != nil {
		return nil
	}
	var names []string
	for i, pid := range pids {
		if i == maxStrangers {
			names = append(names, fmt.Sprintf("and %d more", len(pids)-i))
			break
		}
		comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil {
			comm = []byte("?") // of another pid namespace, or gone by now
		}
		names = append(names, pid+" ("+strings.TrimSpace(string(comm))+")")
	}
	return names
}

// undo takes the controllers back, moves the processes that still live back, and
// removes the cgroup. Those that the gate started have ended by then.
//
// All stays as it is for others: while a process that the gate did not move is in
// the cgroup (of another gate that was given the same name), and where an engine
// left cgroups that use a controller, which are the engine's; systemd removes
// those with the scope.
func (e *evacuation) undo() error {
	others, err := e.others()
	if err != nil || others {
		return err
	}
	for _, c := range e.enabled {
		err := e.write(filepath.Join(e.dir, "cgroup.subtree_control"), "-"+c)
		if err != nil {
			return e.unlessBusy(err)
		}
	}
	for _, pid := range e.moved {
		err := e.write(filepath.Join(e.dir, "cgroup.procs"), strconv.Itoa(pid))
		if err != nil && !errors.Is(err, unix.ESRCH) { // ESRCH: it has ended
			return e.unlessBusy(err)
		}
	}
	if err := os.Remove(e.to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return e.unlessBusy(err)
	}
	return nil
}

// unlessBusy is the error of undo, or nil where the kernel says that others use
// the cgroup.
func (e *evacuation) unlessBusy(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return fmt.Errorf("leave cgroup %s: %w", e.to, err)
}

// others says whether a process that the gate did not move itself is where it
// moved to.
func (e *evacuation) others() (bool, error) {
	b, err := os.ReadFile(filepath.Join(e.to, "cgroup.procs"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	for _, pid := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(pid); err != nil || !slices.Contains(e.moved, n) {
			return true, nil
		}
	}
	return false, nil
}
