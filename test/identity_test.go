package test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// idMaps are the two maps of the process that reads them, one blank between
// numbers, as "0 1000 1; 1 100000 65536".
func idMaps(t *testing.T, out string) (uids, gids string) {
	t.Helper()
	u, g, ok := strings.Cut(out, "--\n")
	if !ok {
		t.Fatalf("no two maps in %q", out)
	}
	return ranges(u), ranges(g)
}

func ranges(m string) string {
	var lines []string
	for line := range strings.Lines(m) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "; ")
}

// showMaps is a command whose output idMaps reads.
var showMaps = []string{"sh", "-c", "cat /proc/self/uid_map; echo --; cat /proc/self/gid_map"}

func TestSubordinateIDsAreMappedAfterTheCaller(t *testing.T) {
	h := testenv.NewHost(t)
	u := h.User
	first, second, third := u.SubUIDs.Start, u.SubUIDs.Start+70000, u.SubUIDs.Start+100000
	one := fmt.Sprintf("0 %d 1; 1 %d 65536", u.UID, first)
	three := fmt.Sprintf("0 %d 1; 1 %d 65536; 65537 %d 20000; 85537 %d 10000", u.UID, first, second, third)
	for name, c := range map[string]struct{ subuid, subgid, uids, gids string }{
		"one range found by name": {
			fmt.Sprintf("ada:%d:65536\n", first), fmt.Sprintf("ada:%d:65536\n", first), one, one,
		},
		"one range found by uid": {
			fmt.Sprintf("%d:%d:65536\n", u.UID, first), fmt.Sprintf("%d:%d:65536\n", u.UID, first), one, one,
		},
		"several ranges in the order of the file": {
			fmt.Sprintf("ada:%d:65536\nada:%d:20000\nada:%d:10000\n", first, second, third),
			fmt.Sprintf("%d:%d:65536\n%d:%d:20000\n%d:%d:10000\n", u.UID, first, u.UID, second, u.UID, third),
			three, three,
		},
		"ranges by name and by uid, and those of others": {
			fmt.Sprintf("adam:1:65536\nada:%d:65536\n1%d:2:65536\n%d:%d:20000\nada:%d:10000\n", first, u.UID, u.UID, second, third),
			fmt.Sprintf("eve:1:65536\nada:%d:65536\n", first),
			three, one,
		},
		"group ids that differ from user ids": {
			fmt.Sprintf("ada:%d:65536\n", first), fmt.Sprintf("ada:%d:20000\nada:%d:65536\n", third, first),
			one, fmt.Sprintf("0 %d 1; 1 %d 20000; 20001 %d 65536", u.UID, third, first),
		},
	} {
		t.Run(name, func(t *testing.T) {
			h.SetSubIDs(t, c.subuid, c.subgid)
			uids, gids := idMaps(t, output(t, h, showMaps...))
			if uids != c.uids {
				t.Errorf("uid_map is %q, want %q", uids, c.uids)
			}
			if gids != c.gids {
				t.Errorf("gid_map is %q, want %q", gids, c.gids)
			}
		})
	}
}

func TestExplicitMappingsReplaceTheDefaults(t *testing.T) {
	h := testenv.NewHost(t)
	u, sub := h.User, h.User.SubUIDs.Start
	args := []string{
		fmt.Sprintf("--uidmap=0:%d:1", u.UID), fmt.Sprintf("--uidmap=1:%d:1000", sub), fmt.Sprintf("--uidmap=5000:%d:10", sub+2000),
		fmt.Sprintf("--gidmap=0:%d:1", u.GID), fmt.Sprintf("--gidmap=100:%d:50", sub),
	}
	uids, gids := idMaps(t, output(t, h, append(args, showMaps...)...))
	if want := fmt.Sprintf("0 %d 1; 1 %d 1000; 5000 %d 10", u.UID, sub, sub+2000); uids != want {
		t.Errorf("uid_map is %q, want %q", uids, want)
	}
	if want := fmt.Sprintf("0 %d 1; 100 %d 50", u.GID, sub); gids != want {
		t.Errorf("gid_map is %q, want %q", gids, want)
	}
}

func TestRootInsideMayBeAnotherThanTheCaller(t *testing.T) {
	h := testenv.NewHost(t)
	u, sub := h.User, h.User.SubUIDs.Start
	args := []string{
		fmt.Sprintf("--uidmap=0:%d:1000", sub), fmt.Sprintf("--uidmap=%d:%d:1", u.UID, u.UID),
		fmt.Sprintf("--gidmap=0:%d:1000", sub), fmt.Sprintf("--gidmap=%d:%d:1", u.GID, u.GID),
	}
	for name, flags := range processFlags {
		t.Run(name, func(t *testing.T) {
			// It can do what root can, and the gate is its own to steer.
			got := output(t, h, append(append(args, flags...), "sh", "-c",
				"id -u; id -g; mount -t tmpfs none /mnt && gatectl info --json | grep -o apiVersion")...)
			if want := "0\n0\napiVersion\n"; got != want {
				t.Errorf("inside: %q, want %q", got, want)
			}
		})
	}
}

func TestASingleIDNeedsNoSubordinateIDsAndNoHelpers(t *testing.T) {
	h := testenv.NewHost(t)
	h.SetSubIDs(t, "", "")
	h.Hide(t, "/usr/bin/newuidmap")
	h.Hide(t, "/usr/bin/newgidmap")
	r := runGate(t, h, "--single-id", "sh", "-c", "cat /proc/self/uid_map; echo --; cat /proc/self/gid_map; cat /proc/self/setgroups >&2")
	if r.Code != 0 {
		t.Fatal(r)
	}
	uids, gids := idMaps(t, r.Stdout)
	if want := fmt.Sprintf("0 %d 1", h.User.UID); uids != want || gids != want {
		t.Errorf("uid_map is %q and gid_map %q, want %q", uids, gids, want)
	}
	if !strings.Contains(r.Stderr, "deny") {
		t.Errorf("setgroups is %q, want deny", r.Stderr)
	}
}

func TestSubordinateIDsComeFromTheSourceThatWasChosen(t *testing.T) {
	h := testenv.NewHost(t)
	u := h.User
	inFile, elsewhere := u.SubUIDs.Start, u.SubUIDs.Start+65536
	// The directory that getsubids asks gives another range than the file. What
	// newuidmap allows is both.
	h.SetSubIDs(t, fmt.Sprintf("ada:%d:65536\nada:%d:65536\n", inFile, elsewhere), fmt.Sprintf("ada:%d:65536\nada:%d:65536\n", inFile, elsewhere))
	h.WriteFile(t, "/srv/getsubids", fmt.Sprintf("#!/bin/sh\necho '0: ada %d 65536'\n", elsewhere), 0o755)
	static := fmt.Sprintf("0 %d 1; 1 %d 65536; 65537 %d 65536", u.UID, inFile, elsewhere)
	dynamic := fmt.Sprintf("0 %d 1; 1 %d 65536", u.UID, elsewhere)
	check := func(t *testing.T, want string, args ...string) {
		t.Helper()
		uids, gids := idMaps(t, output(t, h, append(args, showMaps...)...))
		if uids != want || gids != want {
			t.Errorf("uid_map is %q and gid_map %q, want %q", uids, gids, want)
		}
	}
	t.Run("dynamic asks the real getsubids", func(t *testing.T) { check(t, static, "--subid-source=dynamic") })
	h.Bind(t, "/srv/getsubids", "/usr/bin/getsubids")
	t.Run("dynamic asks getsubids and not the files", func(t *testing.T) { check(t, dynamic, "--subid-source=dynamic") })
	t.Run("static asks the files and not getsubids", func(t *testing.T) { check(t, static, "--subid-source=static") })
}

func TestRealRootIsServedAndWarned(t *testing.T) {
	h := testenv.NewHost(t)
	sub := h.User.SubUIDs.Start
	h.SetSubIDs(t, fmt.Sprintf("root:%d:65536\n", sub), fmt.Sprintf("root:%d:65536\n", sub))
	want := fmt.Sprintf("0 0 1; 1 %d 65536", sub)
	mine, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	for name, hidden := range map[string][]string{
		"with newuidmap": nil,
		"without newuidmap, ids written directly": {"/usr/bin/newuidmap", "/usr/bin/newgidmap"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, program := range hidden {
				h.Hide(t, program)
			}
			r := h.Run(t, h.RootCommand("gatekit", "sh", "-c",
				"cat /proc/self/uid_map; echo --; cat /proc/self/gid_map; readlink /proc/self/ns/user >&2"))
			if r.Code != 0 {
				t.Fatal(r)
			}
			uids, gids := idMaps(t, r.Stdout)
			if uids != want || gids != want {
				t.Errorf("uid_map is %q and gid_map %q, want %q", uids, gids, want)
			}
			if missing := lacks(r.Stderr, "warn", "root"); missing != nil {
				t.Errorf("no warning about real root in %q", r.Stderr)
			}
			if strings.Contains(r.Stderr, mine) {
				t.Error("the command runs in the machine's user namespace")
			}
		})
	}
}

func TestAGateRunsInAGate(t *testing.T) {
	h := testenv.NewHost(t)
	// Root's ids on the host are not those of root in the outer gate.
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		h.WriteFile(t, file, h.ReadFile(t, file)+"root:500000:65536\n", 0o644)
	}
	for name, flags := range map[string][]string{
		"plain":         {},
		"network":       {"--net=slirp"},
		"pid namespace": {"--net=slirp", "--pidns", "--copy-up=/etc"},
	} {
		t.Run(name, func(t *testing.T) {
			inner := append(append([]string{"gatekit"}, flags...), "sh", "-c", "cat /proc/self/uid_map; echo --; cat /proc/self/gid_map")
			r := runGate(t, h, append(flags, inner...)...)
			uids, gids := idMaps(t, r.Stdout)
			if want := "0 0 1; 1 1 65536"; r.Code != 0 || r.Stderr != "" || uids != want || gids != want {
				t.Errorf("%v\nwant the maps %q and nothing on stderr", r, want)
			}
		})
	}
}

func TestSupplementaryGroupsAreKept(t *testing.T) {
	h := testenv.NewHost(t)
	h.WriteFile(t, "/srv/group-only", "secret of the group\n", 0o640)
	if err := os.Chown(h.Path("/srv/group-only"), 0, int(h.User.ExtraGID)); err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--single-id=false", "--single-id"} {
		if got := output(t, h, flag, "cat", "/srv/group-only"); got != "secret of the group\n" {
			t.Errorf("%s: the group's file holds %q", flag, got)
		}
	}
}

// securebits prints what of the capabilities is not in /proc/PID/status.
var _ = testenv.Probe("securebits", func([]string) int {
	bits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	keep, err := unix.PrctlRetInt(unix.PR_GET_KEEPCAPS, 0, 0, 0, 0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(bits, keep)
	return 0
})

func TestTheCommandHasAllCapabilitiesInItsNamespace(t *testing.T) {
	h := testenv.NewHost(t)
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	all, none := fmt.Sprintf("%016x", uint64(1)<<(last+1)-1), fmt.Sprintf("%016x", 0)
	for name, flags := range map[string][]string{
		"plain":                {},
		"with a pid namespace": {"--pidns"},
		"with a network":       {"--net=slirp"},
		"with a single id":     {"--single-id"},
	} {
		t.Run(name, func(t *testing.T) {
			status := output(t, h, append(flags, "cat", "/proc/self/status")...)
			for field1, want := range map[string]string{
				"CapEff": all, "CapPrm": all, "CapBnd": all, "CapInh": none, "CapAmb": none, "NoNewPrivs": "0", "Seccomp": "0",
			} {
				if got := field(t, status, field1); got != want {
					t.Errorf("%s is %s, want %s", field1, got, want)
				}
			}
			if got := output(t, h, append(flags, "probe", "securebits")...); got != "0 0\n" {
				t.Errorf("securebits and KEEP_CAPS are %q, want both 0", got)
			}
		})
	}
	t.Run("and they let it be root there", func(t *testing.T) {
		output(t, h, "sh", "-ec", `
			test "$(id -u)" = 0
			touch mine && chown 1:1 mine && test "$(stat -c %u mine)" = 1 && rm mine
			mount -t tmpfs none /mnt`)
	})
}

func TestTheCommandHasNoCapabilitiesOutside(t *testing.T) {
	h := testenv.NewHost(t)
	h.WriteFile(t, "/srv/roots-own", "secret of root\n", 0o600)
	for name, script := range map[string]string{
		"a file of real root cannot be read":       "cat /srv/roots-own",
		"a file of real root cannot be taken":      "chown 0 /srv/roots-own",
		"a process of real root gets no signal":    "kill -0 1",
		"the host's network cannot be configured":  "ip link set lo down",
		"the host's host name cannot be changed":   "hostname intruder",
		"a device of the host cannot be made":      "mknod /tmp/null c 1 3",
		"the host's mounts cannot be uncovered":    "umount /srv",
		"the host's user namespace cannot be left": "nsenter -U -t 1 true",
	} {
		t.Run(name, func(t *testing.T) {
			if r := runGate(t, h, "sh", "-c", script); r.Code == 0 {
				t.Errorf("%s worked: %v", script, r)
			}
		})
	}
	t.Run("the gate's parent has none either", func(t *testing.T) {
		g := startGate(t, h, "--net=slirp", "sleep", "infinity")
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.PID()))
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
			if got := field(t, string(status), set); got != fmt.Sprintf("%016x", 0) {
				t.Errorf("%s of the parent is %s, want none", set, got)
			}
		}
	})
}

func TestTheCommandGetsTheStandardDescriptorsOnly(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range map[string][]string{
		"plain":             {},
		"with all we offer": {"--net=slirp", "--pidns", "--cgroupns", "--utsns", "--ipcns", "--copy-up=/etc"},
		"detached":          {"--net=slirp", "--detach-netns"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := h.Command("gatekit", append(flags, "ls", "/proc/self/fd")...)
			extra, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer extra.Close()
			cmd.ExtraFiles = []*os.File{extra, extra}
			r := h.Run(t, cmd)
			// 3 is the directory that ls reads.
			if r.Stdout != "0\n1\n2\n3\n" {
				t.Errorf("descriptors of the command: %v", r)
			}
		})
	}
}

func TestNoNewPrivilegesIsExplained(t *testing.T) {
	h := testenv.NewHost(t)
	setpriv := func(args ...string) *exec.Cmd {
		return h.Command("setpriv", append([]string{"--no-new-privs", "gatekit"}, args...)...)
	}
	r := h.Run(t, setpriv("true"))
	if r.Code != 1 || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("got %v, want exit code 1 and one line", r)
	}
	if missing := lacks(r.Stderr, "no_new_privs"); missing != nil {
		t.Errorf("%q does not name no_new_privs", r.Stderr)
	}
	if r := h.Run(t, setpriv("--single-id", "true")); r.Code != 0 {
		t.Errorf("with a single id, which needs no privileges: %v", r)
	}
}
