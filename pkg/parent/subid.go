package parent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
)

// caller is who starts the gate.
type caller struct {
	uid, gid int
	name     string // as in /etc/passwd; the uid in decimal where there is none

	// uids and gids are the ids that there are for the caller: the maps of its
	// user namespace. None where /proc does not tell.
	uids, gids []IDMap
}

// currentCaller looks at this process. proc is "/proc".
func currentCaller(proc string) caller {
	c := caller{uid: os.Geteuid(), gid: os.Getegid()}
	c.uids, c.gids = readMap(filepath.Join(proc, "self/uid_map")), readMap(filepath.Join(proc, "self/gid_map"))
	c.name = strconv.Itoa(c.uid)
	if u, err := osuser.LookupId(c.name); err == nil {
		c.name = u.Username
	}
	return c
}

// realRoot says whether the caller is root of the host.
func (c caller) realRoot() bool { return c.uid == 0 && !c.contained() }

// contained says whether the caller is in a user namespace that is not the host's:
// in a container or another gate.
func (c caller) contained() bool {
	return len(c.uids) > 0 && !slices.Equal(c.uids, []IDMap{{0, 0, math.MaxUint32}})
}

// minSubIDs is the smallest number of subordinate ids with which distributions
// and images work: they use ids up to 65535.
const minSubIDs = 65536

// idMaps makes the maps of these options for the caller.
func (o *Options) idMaps(ctx context.Context, c caller) (idMaps, error) {
	if o.SingleID {
		return c.alone(), nil
	}
	var m idMaps
	if err := m.findPrograms(c, programs{}); err != nil {
		return m, err
	}
	m.uid, m.gid = o.UIDMap, o.GIDMap
	if len(m.uid) > 0 {
		return m, m.check(c)
	}
	if c.uid == 0 && c.contained() && o.autoSubIDs() {
		// All ids of its namespace are at root's command, and files that list
		// subordinate ids may be the host's.
		m.uid = append([]IDMap{{0, 0, 1}}, inOrder(butRoot(c.uids))...)
		m.gid = append([]IDMap{{0, uint32(c.gid), 1}}, inOrder(butRoot(c.gids))...)
		return m, nil
	}
	err := m.addSubIDs(ctx, o.SubIDSource, c)
	if errors.As(err, new(noSubIDs)) && c.realRoot() && o.autoSubIDs() {
		return c.alone(), nil // and told so (gate.checkHost)
	}
	return m, err
}

// autoSubIDs says whether nobody has said where subordinate ids come from.
func (o *Options) autoSubIDs() bool { return o.SubIDSource == "" || o.SubIDSource == "auto" }

// alone maps the caller and nobody else.
func (c caller) alone() idMaps {
	return idMaps{
		uid:           []IDMap{{0, uint32(c.uid), 1}},
		gid:           []IDMap{{0, uint32(c.gid), 1}},
		denySetgroups: true,
	}
}

// addSubIDs maps 0 to the caller, and from 1 on all subordinate ids. It refuses those
// that are not to be had here.
func (m *idMaps) addSubIDs(ctx context.Context, source string, c caller) error {
	uids, err := subIDs(ctx, source, c, subuid)
	if err != nil {
		return err
	}
	gids, err := subIDs(ctx, source, c, subgid)
	if err != nil {
		return err
	}
	m.uid = append([]IDMap{{0, uint32(c.uid), 1}}, inOrder(uids)...)
	m.gid = append([]IDMap{{0, uint32(c.gid), 1}}, inOrder(gids)...)
	return m.check(c)
}

// butRoot are the ids of a user namespace, as ranges, without 0.
func butRoot(own []IDMap) []user.SubID {
	var ranges []user.SubID
	for _, m := range own {
		r := user.SubID{SubID: int64(m.Inside), Count: int64(m.Size)}
		if r.SubID == 0 {
			r.SubID, r.Count = 1, r.Count-1
		}
		if r.Count > 0 {
			ranges = append(ranges, r)
		}
	}
	return ranges
}

// inOrder maps ids from 1 on to the ranges, one after the other.
func inOrder(ranges []user.SubID) []IDMap {
	var maps []IDMap
	next := int64(1)
	for _, r := range ranges {
		maps = append(maps, IDMap{uint32(next), uint32(r.SubID), uint32(r.Count)})
		next += r.Count
	}
	return maps
}

// subKind is one of the two kinds of subordinate ids.
type subKind struct {
	file string   // where they stand (subuid(5))
	args []string // what getsubids(1) wants to hear
	flag string   // of usermod(8)
	word string
}

var (
	subuid = subKind{"/etc/subuid", nil, "--add-subuids", "user"}
	subgid = subKind{"/etc/subgid", []string{"-g"}, "--add-subgids", "group"}
)

// subIDs finds the caller's ranges, in the order in which they are listed.
func subIDs(ctx context.Context, source string, c caller, kind subKind) ([]user.SubID, error) {
	if source == "" || source == "auto" {
		source = autoSource("/etc/nsswitch.conf")
	}
	var ranges []user.SubID
	var err error
	where := kind.file
	if source == "dynamic" {
		where = "the ranges that getsubids lists"
		ranges, err = dynamicSubIDs(ctx, c, kind)
	} else {
		ranges, err = staticSubIDs(c, kind)
	}
	if err != nil {
		return nil, err
	}
	ranges = disjoint(ranges)
	return ranges, checkSubIDs(ranges, c, kind, where)
}

// disjoint leaves out of each range what those before it hold: the kernel maps no
// id twice, and a file may list a range by name and by uid.
func disjoint(ranges []user.SubID) []user.SubID {
	var out []user.SubID
	for _, r := range ranges {
		if badRange(r) {
			out = append(out, r) // to be refused
			continue
		}
		parts := []user.SubID{r}
		for _, taken := range out {
			parts = without(parts, taken)
		}
		out = append(out, parts...)
	}
	return out
}

// without is what is left of the ranges where none of taken's ids are.
func without(ranges []user.SubID, taken user.SubID) []user.SubID {
	var left []user.SubID
	for _, r := range ranges {
		end := r.SubID + r.Count
		first, last := max(r.SubID, taken.SubID), min(end, taken.SubID+taken.Count)
		if first >= last || badRange(taken) {
			left = append(left, r)
			continue
		}
		for _, part := range []user.SubID{{Name: r.Name, SubID: r.SubID, Count: first - r.SubID}, {Name: r.Name, SubID: last, Count: end - last}} {
			if part.Count > 0 {
				left = append(left, part)
			}
		}
	}
	return left
}

// badRange says whether a range can never be mapped. A number that cannot be read
// comes as 0, which is root's.
func badRange(r user.SubID) bool {
	const end = 1<<32 - 1
	return r.SubID < 1 || r.Count < 1 || r.SubID > end || r.Count > end-r.SubID
}

// autoSource follows nsswitch.conf, as shadow's programs do: its subid line
// names another source than files, or there is none and it is files.
func autoSource(nsswitch string) string {
	f, err := os.Open(nsswitch)
	if err != nil {
		return "static"
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "subid:"); ok && strings.TrimSpace(value) != "files" {
			return "dynamic"
		}
	}
	return "static"
}

// staticSubIDs reads the ranges of the file, listed by name or by uid.
func staticSubIDs(c caller, kind subKind) ([]user.SubID, error) {
	ranges, err := user.ParseSubIDFileFilter(kind.file, func(s user.SubID) bool {
		return s.Name == c.name || s.Name == strconv.Itoa(c.uid)
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kind.file, err)
	}
	return ranges, nil
}

// dynamicSubIDs asks getsubids, whose lines read "0: alice 100000 65536".
func dynamicSubIDs(ctx context.Context, c caller, kind subKind) ([]user.SubID, error) {
	ctx, cancel := context.WithTimeout(ctx, mapTimeout)
	defer cancel()
	program, err := exec.LookPath("getsubids")
	if err != nil {
		return nil, errors.New("getsubids is not installed: install it (Debian and Ubuntu: uidmap; Fedora: shadow-utils-subid), or use parent.Options.SubIDSource=static")
	}
	out, err := runHelper(ctx, program, append(kind.args, c.name)...)
	if err != nil {
		return nil, fmt.Errorf("%w: is %s allowed subordinate ids? parent.Options.SubIDSource=static reads %s instead", err, c.name, kind.file)
	}
	return parseGetsubids(bytes.NewReader(out))
}

func parseGetsubids(r io.Reader) ([]user.SubID, error) {
	var ranges []user.SubID
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 4 {
			return nil, fmt.Errorf("getsubids: cannot read %q", lines.Text())
		}
		start, err1 := strconv.ParseUint(fields[2], 10, 32)
		count, err2 := strconv.ParseUint(fields[3], 10, 32)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("getsubids: cannot read %q", lines.Text())
		}
		ranges = append(ranges, user.SubID{Name: fields[1], SubID: int64(start), Count: int64(count)})
	}
	return ranges, lines.Err()
}

// checkSubIDs refuses ranges, found in where, that hold too few ids, with the
// command that gives enough.
func checkSubIDs(ranges []user.SubID, c caller, kind subKind, where string) error {
	var total int64
	for _, r := range ranges {
		if badRange(r) {
			return fmt.Errorf("%s has a bad range in %s: start %d, count %d; mend it there", c.name, where, r.SubID, r.Count)
		}
		total += r.Count
	}
	if total >= minSubIDs {
		return nil
	}
	what := fmt.Sprintf("%s has no subordinate %s ids in %s", c.name, kind.word, where)
	if total > 0 {
		what = fmt.Sprintf("%s has only %d subordinate %s ids in %s, and %d are needed", c.name, total, kind.word, where, minSubIDs)
	}
	start := nextFree(kind.file)
	err := fmt.Errorf("%s; add them with: sudo usermod %s %d-%d %s (or use parent.Options.SingleID)",
		what, kind.flag, start, start+minSubIDs-1, c.name)
	if total == 0 {
		return noSubIDs{err}
	}
	return err
}

// noSubIDs is the error of a caller for whom no subordinate ids are listed at all.
type noSubIDs struct{ error }

// nextFree is the start of a range behind all that the file lists.
func nextFree(file string) int64 {
	next := int64(100000) // SUB_UID_MIN of login.defs(5)
	ranges, err := user.ParseSubIDFile(file)
	if err != nil {
		return next
	}
	for _, r := range ranges {
		next = max(next, r.SubID+r.Count)
	}
	return next
}
