package child

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/copyup"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func reads(t *testing.T, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	if string(b) != want {
		t.Errorf("%s holds %q, want %q", path, b, want)
	}
}

// apply applies m and returns what was logged.
func apply(t *testing.T, m Mounts) string {
	t.Helper()
	var log bytes.Buffer
	must(t, m.apply(slog.New(slog.NewTextHandler(&log, nil))))
	return log.String()
}

// topMount returns the last mount on path: the one that is seen.
func topMount(t *testing.T, path string) *mountinfo.Info {
	t.Helper()
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	must(t, err)
	if len(mounts) == 0 {
		t.Fatalf("nothing is mounted on %s", path)
	}
	return mounts[len(mounts)-1]
}

func TestMountsCrossTheHandshake(t *testing.T) {
	sent := Mounts{"rslave", []string{"/etc"}, "overlay", "/run/gate", true, true, true, "/run/gate/resolv.conf", "/run/gate/hosts"}
	b, err := json.Marshal(sent)
	must(t, err)
	var got Mounts
	must(t, json.Unmarshal(b, &got))
	if !reflect.DeepEqual(got, sent) {
		t.Errorf("sent %+v, got %+v", sent, got)
	}
}

func TestPropagation(t *testing.T) {
	const private, slave = "", "master:"
	for _, tc := range []struct {
		propagation string
		root, below string // the start of the optional fields in mountinfo
	}{
		{"", private, private},
		{"rprivate", private, private},
		{"private", private, slave},
		{"slave", slave, slave},
		{"rslave", slave, slave},
		{"shared", "shared:", slave},
		{"rshared", "shared:", "shared:"},
	} {
		t.Run("of "+tc.propagation, func(t *testing.T) {
			testenv.UserNS{
				Outer: func(t *testing.T) {
					must(t, linux.Mount("tmpfs", testenv.Scratch(), "tmpfs", 0, ""))
					must(t, linux.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""))
				},
				Inner: func(t *testing.T) {
					dir := testenv.Scratch() + "/etc"
					write(t, dir+"/passwd", "root")
					write(t, testenv.Scratch()+"/run/pid", "1")
					apply(t, Mounts{Propagation: tc.propagation, CopyUp: []string{dir, testenv.Scratch() + "/run"}})
					for path, want := range map[string]string{"/": tc.root, testenv.Scratch(): tc.below} {
						if got := topMount(t, path).Optional; !strings.HasPrefix(got, want) || (want == "" && got != "") {
							t.Errorf("%s has %q, want %q", path, got, want)
						}
					}
					reads(t, dir+"/passwd", "root")
					write(t, dir+"/new", "new")
					reads(t, dir+"/new", "new")
				},
			}.Run(t)
		})
	}
}

func TestASlaveSeesWhatTheHostMountsLater(t *testing.T) {
	for _, dirs := range [][]string{nil, {"run"}} {
		t.Run("copied up "+strings.Join(dirs, " "), func(t *testing.T) {
			media := func() string { return testenv.Scratch() + "/run/media" }
			applied := func() string { return testenv.Scratch() + "/applied" }
			testenv.UserNS{
				Outer: func(t *testing.T) {
					must(t, os.MkdirAll(media(), 0o755))
					must(t, linux.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""))
					done := make(chan error, 1)
					go func() {
						testenv.Eventually(testenv.Patience, func() bool {
							_, err := os.Stat(applied())
							return err == nil
						})
						done <- linux.Mount("tmpfs", media(), "tmpfs", 0, "")
					}()
					t.Cleanup(func() { must(t, <-done) })
				},
				Inner: func(t *testing.T) {
					var copyUp []string
					for _, d := range dirs {
						copyUp = append(copyUp, testenv.Scratch()+"/"+d)
					}
					apply(t, Mounts{Propagation: "rslave", CopyUp: copyUp})
					write(t, applied(), "")
					if !testenv.Eventually(testenv.Patience, func() bool {
						var st unix.Statfs_t
						return unix.Statfs(media(), &st) == nil && st.Type == unix.TMPFS_MAGIC
					}) {
						t.Error("the host's mount is not seen")
					}
				},
			}.Run(t)
		})
	}
}

func TestAnUnknownPropagationIsNamed(t *testing.T) {
	err := Mounts{Propagation: "secret"}.apply(slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), `unknown propagation "secret"`) {
		t.Error(err)
	}
}

func TestResolvConfAndHosts(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(t *testing.T, etc string)
		mounts  Mounts
		warns   string // and resolv.conf is not there
	}{
		{name: "over files",
			prepare: func(t *testing.T, etc string) { write(t, etc+"/resolv.conf", "host") }},
		{name: "over a file that is a mount",
			prepare: func(t *testing.T, etc string) {
				write(t, etc+"/resolv.conf", "host")
				must(t, linux.Mount(etc+"/resolv.conf", etc+"/resolv.conf", "", unix.MS_BIND, ""))
			},
			mounts: Mounts{CopyUp: []string{"/etc"}}},
		{name: "through a link",
			prepare: func(t *testing.T, etc string) {
				write(t, etc+"/stub/resolv.conf", "host")
				must(t, os.Symlink("stub/resolv.conf", etc+"/resolv.conf"))
			}},
		{name: "in place of a link when etc is copied up",
			prepare: func(t *testing.T, etc string) {
				write(t, etc+"/stub/resolv.conf", "host")
				must(t, os.Symlink("stub/resolv.conf", etc+"/resolv.conf"))
			},
			mounts: Mounts{CopyUp: []string{"/etc"}}},
		{name: "in place of a dangling link when etc is overlaid",
			prepare: func(t *testing.T, etc string) {
				must(t, os.Symlink("../run/missing/resolv.conf", etc+"/resolv.conf"))
			},
			mounts: Mounts{CopyUp: []string{"/etc"}, CopyUpMode: copyup.ModeOverlay}},
		{name: "in place of nothing when etc is copied up",
			mounts: Mounts{CopyUp: []string{"/etc"}}},
		{name: "over a file when etc is overlaid",
			prepare: func(t *testing.T, etc string) { write(t, etc+"/resolv.conf", "host") },
			mounts:  Mounts{CopyUp: []string{"/etc"}, CopyUpMode: copyup.ModeOverlay}},
		{name: "with the state dir below a copied-up directory",
			prepare: func(t *testing.T, etc string) { write(t, etc+"/resolv.conf", "host") },
			mounts:  Mounts{CopyUp: []string{"/etc", "SCRATCH/run"}}},
		{name: "with the state dir below an overlaid directory",
			prepare: func(t *testing.T, etc string) { write(t, etc+"/resolv.conf", "host") },
			mounts:  Mounts{CopyUp: []string{"/etc", "SCRATCH/run"}, CopyUpMode: copyup.ModeOverlay}},
		{name: "missing is a warning",
			warns: "/etc/resolv.conf does not exist on the host and stays so: add parent.Options.CopyUpDirs=/etc"},
		{name: "a dangling link is a warning",
			prepare: func(t *testing.T, etc string) {
				must(t, os.Symlink("../run/missing/resolv.conf", etc+"/resolv.conf"))
			},
			warns: "/etc/resolv.conf does not exist on the host and stays so: add parent.Options.CopyUpDirs=/etc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testenv.UserNS{
				Outer: func(t *testing.T) {
					etc := testenv.Scratch() + "/etc"
					write(t, etc+"/hosts", "host")
					if tc.prepare != nil {
						tc.prepare(t, etc)
					}
					must(t, linux.Mount(etc, "/etc", "", unix.MS_BIND|unix.MS_REC, ""))
				},
				Inner: func(t *testing.T) { bindsFiles(t, tc.mounts, tc.warns) },
			}.Run(t)
		})
	}
}

func bindsFiles(t *testing.T, m Mounts, warns string) {
	state := testenv.Scratch() + "/run/gate"
	write(t, state+"/resolv.conf", "nameserver 10.0.2.3\n")
	write(t, state+"/hosts", "127.0.0.1 box\n")
	outside, err := linux.OpenPath(state)
	must(t, err)
	defer outside.Close()
	for i, dir := range m.CopyUp {
		m.CopyUp[i] = strings.Replace(dir, "SCRATCH", testenv.Scratch(), 1)
	}
	m.StateDir, m.ResolvConf, m.Hosts = state, state+"/resolv.conf", state+"/hosts"
	log := apply(t, m)
	reads(t, "/etc/hosts", "127.0.0.1 box\n")
	if warns != "" {
		if !strings.Contains(log, warns) {
			t.Errorf("logged %q, want %q", log, warns)
		}
		return
	}
	if log != "" {
		t.Errorf("logged %q", log)
	}
	reads(t, "/etc/resolv.conf", "nameserver 10.0.2.3\n")
	if fi, err := os.Lstat("/etc/resolv.conf"); len(m.CopyUp) > 0 && (err != nil || !fi.Mode().IsRegular()) {
		t.Errorf("resolv.conf is no file: %v, %v", fi, err)
	}
	// What the parent writes later, in place, is seen.
	write(t, linux.FDPath(outside)+"/resolv.conf", "nameserver 10.0.2.4\n")
	reads(t, "/etc/resolv.conf", "nameserver 10.0.2.4\n")
	write(t, linux.FDPath(outside)+"/child_pid", "1")
	reads(t, state+"/child_pid", "1")
}

func TestSysShowsTheNewNetworkAndTheCgroups(t *testing.T) {
	testenv.UserNS{Flags: unix.CLONE_NEWNET, Inner: func(t *testing.T) {
		before := cgroupMounts(t)
		if len(before) == 0 {
			t.Fatal("no cgroups are mounted on the host")
		}
		if log := apply(t, Mounts{Sys: true}); log != "" {
			t.Errorf("logged %q", log)
		}
		showsOwnInterfaces(t)
		if after := cgroupMounts(t); !slices.Equal(before, after) {
			t.Errorf("cgroups are %v, were %v", after, before)
		}
		for _, mount := range before {
			fstype, path, _ := strings.Cut(mount, " ")
			if !strings.HasPrefix(fstype, "cgroup") {
				continue
			}
			if _, err := os.ReadFile(path + "/cgroup.procs"); err != nil {
				t.Error(err)
			}
		}
		if m := topMount(t, "/sys"); slices.Contains(strings.Split(m.Options, ","), "ro") {
			t.Errorf("/sys is mounted %s", m.Options)
		}
	}}.Run(t)
}

// cgroupMounts lists what is seen at and below /sys/fs/cgroup, as "type path".
func cgroupMounts(t *testing.T) []string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(cgroupDir))
	must(t, err)
	seen := make(map[string]bool)
	for _, m := range mounts {
		// Those of the sysfs below are listed and cannot be reached.
		if ok, err := mountinfo.Mounted(m.Mountpoint); err == nil && ok {
			seen[m.FSType+" "+m.Mountpoint] = true
		}
	}
	var list []string
	for s := range seen {
		list = append(list, s)
	}
	slices.Sort(list)
	return list
}

// showsOwnInterfaces checks /sys/class/net against the kernel.
func showsOwnInterfaces(t *testing.T) {
	t.Helper()
	var want, got []string
	ifs, err := net.Interfaces()
	must(t, err)
	for _, i := range ifs {
		want = append(want, i.Name)
	}
	entries, err := os.ReadDir("/sys/class/net")
	must(t, err)
	for _, e := range entries {
		if fi, err := os.Stat("/sys/class/net/" + e.Name()); err == nil && fi.IsDir() { // bonding_masters is a file
			got = append(got, e.Name())
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("/sys/class/net shows %q, the network namespace has %q", got, want)
	}
}

func TestSysIsReadOnlyWhereTheHostsIs(t *testing.T) {
	testenv.UserNS{
		Flags: unix.CLONE_NEWNET,
		Outer: func(t *testing.T) {
			atime, err := linux.AtimeFlags("/sys")
			must(t, err)
			must(t, linux.Mount("sysfs", "/sys", "sysfs", kernelFlags|atime|unix.MS_RDONLY, ""))
		},
		Inner: func(t *testing.T) {
			if log := apply(t, Mounts{Sys: true}); log != "" {
				t.Errorf("logged %q", log)
			}
			showsOwnInterfaces(t)
			if m := topMount(t, "/sys"); !slices.Contains(strings.Split(m.Options, ","), "ro") {
				t.Errorf("/sys is mounted %s", m.Options)
			}
		},
	}.Run(t)
}

func TestAMaskedSysIsAWarning(t *testing.T) {
	testenv.UserNS{
		Flags: unix.CLONE_NEWNET,
		Outer: func(t *testing.T) { must(t, linux.Mount("tmpfs", "/sys/kernel", "tmpfs", 0, "")) },
		Inner: func(t *testing.T) {
			log := apply(t, Mounts{Sys: true})
			if !strings.Contains(log, "level=WARN") || !strings.Contains(log, "/sys stays the host's") {
				t.Errorf("logged %q", log)
			}
			if len(cgroupMounts(t)) == 0 {
				t.Error("the cgroups are gone")
			}
		},
	}.Run(t)
}

func TestProcShowsTheNewPIDNamespace(t *testing.T) {
	testenv.UserNS{Flags: unix.CLONE_NEWPID, Inner: func(t *testing.T) {
		apply(t, Mounts{Proc: true})
		if self, err := os.Readlink("/proc/self"); self != "1" {
			t.Errorf("/proc/self is %s, %v", self, err)
		}
		entries, err := os.ReadDir("/proc/1/task")
		must(t, err)
		if len(entries) == 0 {
			t.Error("process 1 has no threads")
		}
		options := strings.Split(topMount(t, "/proc").Options, ",")
		for _, want := range []string{"nosuid", "nodev", "noexec"} {
			if !slices.Contains(options, want) {
				t.Errorf("/proc is mounted %s", options)
			}
		}
	}}.Run(t)
}

func TestAMaskedProcIsAnErrorWithItsMend(t *testing.T) {
	testenv.UserNS{
		Flags: unix.CLONE_NEWPID,
		Outer: func(t *testing.T) {
			must(t, linux.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""))
		},
		Inner: func(t *testing.T) {
			err := Mounts{Proc: true}.apply(slog.New(slog.DiscardHandler))
			if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "systempaths=unconfined") || strings.Contains(err.Error(), "\n") {
				t.Error(err)
			}
		},
	}.Run(t)
}

func TestCgroup2IsMountedAnew(t *testing.T) {
	for _, tc := range []struct {
		name  string
		outer func(t *testing.T)
		at    string
	}{
		{"beside version 1", func(t *testing.T) {
			must(t, linux.Mount("tmpfs", cgroupDir, "tmpfs", 0, ""))
			must(t, os.Mkdir(cgroupDir+"/unified", 0o755))
			putCgroup2(t, cgroupDir+"/unified", 0)
		}, cgroupDir + "/unified"},
		{"alone", func(t *testing.T) {
			putCgroup2(t, cgroupDir, 0)
		}, cgroupDir},
		{"alone and read-only", func(t *testing.T) {
			putCgroup2(t, cgroupDir, unix.MOUNT_ATTR_RDONLY)
		}, cgroupDir},
	} {
		for _, sys := range []bool{false, true} {
			name := tc.name
			if sys {
				name += " with a new sys"
			}
			t.Run(name, func(t *testing.T) {
				testenv.UserNS{
					Flags: unix.CLONE_NEWCGROUP | unix.CLONE_NEWNET,
					Outer: tc.outer,
					Inner: func(t *testing.T) {
						if log := apply(t, Mounts{Cgroup: true, Sys: sys}); log != "" {
							t.Errorf("logged %q", log)
						}
						m := topMount(t, tc.at)
						if m.FSType != "cgroup2" || m.Root != "/" || !strings.HasPrefix(m.Options, "rw,nosuid") {
							t.Errorf("%s is %s %s, root %s", tc.at, m.FSType, m.Options, m.Root)
						}
						if _, err := os.ReadFile(tc.at + "/cgroup.controllers"); err != nil {
							t.Error(err)
						}
					},
				}.Run(t)
			})
		}
	}
}

func putCgroup2(t *testing.T, at string, attr int) {
	t.Helper()
	tree, err := linux.NewTree("cgroup2", attr)
	must(t, err)
	defer tree.Close()
	must(t, linux.AttachTree(tree, at))
}

func TestBindNetnsNamesTheNetworkNamespace(t *testing.T) {
	testenv.UserNS{Flags: unix.CLONE_NEWNET, Inner: func(t *testing.T) {
		path := testenv.Scratch() + "/netns"
		must(t, bindNetns(path))
		same(t, "/proc/thread-self/ns/net", path)
		// A gate that was killed leaves the file.
		must(t, unix.Unmount(path, 0))
		must(t, bindNetns(path))
		same(t, "/proc/thread-self/ns/net", path)
		if err := bindNetns(testenv.Scratch() + "/missing/netns"); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}}.Run(t)
}

func same(t *testing.T, a, b string) {
	t.Helper()
	var sa, sb syscall.Stat_t
	must(t, syscall.Stat(a, &sa))
	must(t, syscall.Stat(b, &sb))
	if sa.Ino != sb.Ino || sa.Dev != sb.Dev {
		t.Errorf("%s is %d:%d, %s is %d:%d", a, sa.Dev, sa.Ino, b, sb.Dev, sb.Ino)
	}
}
