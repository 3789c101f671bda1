package parent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// IDMap maps Size ids from Inside on, in the gate, to those from Outside on, on
// the host: a line of /proc/PID/uid_map (user_namespaces(7)). Size is at least 1, and
// ids end at 4294967294.
type IDMap struct {
	Inside, Outside, Size uint32
}

// ParseIDMap parses INSIDE:OUTSIDE:SIZE. What does not fit a map is for Validate.
func ParseIDMap(s string) (IDMap, error) {
	bad := fmt.Errorf("%q: want INSIDE:OUTSIDE:SIZE, for example 0:100000:65536", s)
	fields := strings.Split(s, ":")
	if len(fields) != 3 {
		return IDMap{}, bad
	}
	var n [3]uint32
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return IDMap{}, bad
		}
		n[i] = uint32(v)
	}
	return IDMap{n[0], n[1], n[2]}, nil
}

// String is INSIDE:OUTSIDE:SIZE.
func (m IDMap) String() string { return fmt.Sprintf("%d:%d:%d", m.Inside, m.Outside, m.Size) }

// maxExtents is how many lines the kernel takes in a map (UID_GID_MAP_MAX_EXTENTS,
// include/linux/user_namespace.h).
const maxExtents = 340

// validateMaps finds explicit maps that the kernel refuses, and those without a
// root.
func validateMaps(maps []IDMap) error {
	if len(maps) > maxExtents {
		return fmt.Errorf("%d ranges: the kernel takes %d", len(maps), maxExtents)
	}
	hasRoot := len(maps) == 0
	for i, m := range maps {
		if m.Size == 0 {
			return fmt.Errorf("%v: the size is 0", m)
		}
		if uint64(m.Inside)+uint64(m.Size) > math.MaxUint32 || uint64(m.Outside)+uint64(m.Size) > math.MaxUint32 {
			return fmt.Errorf("%v: ids end at %d", m, uint32(math.MaxUint32-1))
		}
		hasRoot = hasRoot || m.Inside == 0
		for _, n := range maps[:i] {
			if overlap(m.Inside, m.Size, n.Inside, n.Size) || overlap(m.Outside, m.Size, n.Outside, n.Size) {
				return fmt.Errorf("%v and %v overlap", n, m)
			}
		}
	}
	if !hasRoot {
		return errors.New("no range holds id 0 inside: the command runs as root inside, so one must")
	}
	return nil
}

func overlap(a, na, b, nb uint32) bool {
	return uint64(a) < uint64(b)+uint64(nb) && uint64(b) < uint64(a)+uint64(na)
}

// idMaps are the maps of one gate and the way to write them.
type idMaps struct {
	uid, gid []IDMap

	// newuidmap and newgidmap are the paths of the programs that write them;
	// empty writes them directly, as root and for a single id.
	newuidmap, newgidmap string

	// denySetgroups is what the kernel asks of a caller who writes a gid map
	// without the capability for it (user_namespaces(7)).
	denySetgroups bool
}

// readMap reads a map as the kernel shows it; none where it cannot be read.
func readMap(path string) []IDMap {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var maps []IDMap
	for line := range strings.Lines(string(text)) {
		m, err := ParseIDMap(strings.Join(strings.Fields(line), ":"))
		if err != nil {
			return nil
		}
		maps = append(maps, m)
	}
	return maps
}

// check finds ids that the kernel will not map, because the caller's user namespace
// does not have them.
func (m idMaps) check(c caller) error {
	for _, kind := range []struct {
		word      string
		maps, own []IDMap
	}{{"user", m.uid, c.uids}, {"group", m.gid, c.gids}} {
		for _, wanted := range kind.maps {
			there := slices.ContainsFunc(kind.own, func(own IDMap) bool {
				return wanted.Outside >= own.Inside && uint64(wanted.Outside)+uint64(wanted.Size) <= uint64(own.Inside)+uint64(own.Size)
			})
			if !there && len(kind.own) > 0 {
				return fmt.Errorf("%s ids %d to %d are not to be had in this user namespace, of a container or another gate, which has %v: name some of those in parent.Options.UIDMap and parent.Options.GIDMap, or use parent.Options.SingleID",
					kind.word, wanted.Outside, wanted.Outside+wanted.Size-1, kind.own)
			}
		}
	}
	return nil
}

// root is the user outside who is root inside. In a user namespace that was joined
// it is the caller, to whom that belongs.
func (m idMaps) root() uint32 {
	if len(m.uid) == 0 {
		return uint32(os.Geteuid())
	}
	i := slices.IndexFunc(m.uid, func(r IDMap) bool { return r.Inside == 0 })
	return m.uid[i].Outside // there is one: see validateMaps
}

// mapTimeout bounds newuidmap and getsubids: behind them may be a directory
// service that does not answer.
const mapTimeout = 30 * time.Second

// write maps the ids of the process pid, both kinds at once. The zero value has
// none to map.
func (m idMaps) write(ctx context.Context, pid int) error {
	if len(m.uid) == 0 {
		return nil
	}
	if m.denySetgroups {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/setgroups", pid), []byte("deny"), 0); err != nil {
			return fmt.Errorf("deny setgroups: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, mapTimeout)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return writeMap(ctx, m.newuidmap, pid, "uid_map", m.uid) })
	group.Go(func() error { return writeMap(ctx, m.newgidmap, pid, "gid_map", m.gid) })
	return group.Wait()
}

func writeMap(ctx context.Context, program string, pid int, file string, maps []IDMap) error {
	if program == "" {
		var lines strings.Builder
		for _, m := range maps {
			fmt.Fprintf(&lines, "%d %d %d\n", m.Inside, m.Outside, m.Size)
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, file), []byte(lines.String()), 0); err != nil {
			return fmt.Errorf("map ids %v: %w", maps, err)
		}
		return nil
	}
	args := []string{strconv.Itoa(pid)}
	for _, m := range maps {
		args = append(args, fmt.Sprint(m.Inside), fmt.Sprint(m.Outside), fmt.Sprint(m.Size))
	}
	_, err := runHelper(ctx, program, args...)
	if err != nil && strings.Contains(err.Error(), "not allowed") {
		return fmt.Errorf("%w: a user may map its own id, and those that /etc/subuid and /etc/subgid list for it; add some with: sudo usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST USER", err)
	}
	return err
}

// runHelper runs a program of the host's to its end and returns what it printed.
func runHelper(ctx context.Context, program string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no end after %v", mapTimeout)
	}
	line := strings.Join(strings.Fields(stderr.String()), " ")
	if line != "" {
		return nil, fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, line)
	}
	return nil, fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
}
