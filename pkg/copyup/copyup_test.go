package copyup

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var modes = []string{ModeSymlink, ModeOverlay}

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

func link(t *testing.T, to, path string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.Symlink(to, path))
}

func reads(t *testing.T, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	if string(b) != want {
		t.Errorf("%s holds %q, want %q", path, b, want)
	}
}

func do(t *testing.T, mode string, dirs ...string) []string {
	t.Helper()
	must(t, Validate(dirs, mode))
	done, err := Do(Options{Dirs: dirs, Mode: mode})
	must(t, err)
	return done
}

// beneath opens what is at path now, to look at it when mounts cover it.
func beneath(t *testing.T, path string) string {
	t.Helper()
	f, err := linux.OpenPath(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return linux.FDPath(f)
}

func inside(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	testenv.UserNS{Inner: test}.Run(t)
}

func eachMode(t *testing.T, test func(t *testing.T, mode string)) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			inside(t, func(t *testing.T) { test(t, mode) })
		})
	}
}

func TestACopiedUpDirectoryIsWritableAndTheOriginalIsNotTouched(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		dir := filepath.Join(testenv.Scratch(), "etc")
		write(t, dir+"/passwd", "root")
		write(t, dir+"/skel/profile", "profile")
		host := beneath(t, dir)
		if got := do(t, mode, dir); !slices.Equal(got, []string{dir}) {
			t.Errorf("Do returned %q", got)
		}
		reads(t, dir+"/passwd", "root")
		reads(t, dir+"/skel/profile", "profile")
		must(t, os.Remove(dir+"/passwd"))
		write(t, dir+"/passwd", "changed")
		write(t, dir+"/new/file", "new")
		reads(t, dir+"/passwd", "changed")
		reads(t, host+"/passwd", "root")
		if _, err := os.Stat(host + "/new"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a directory made inside is on the host: %v", err)
		}
	})
}

func TestAnOverlayTakesChangesInPlaceAndBelow(t *testing.T) {
	inside(t, func(t *testing.T) {
		dir := filepath.Join(testenv.Scratch(), "lib")
		write(t, dir+"/a/b/file", "host")
		write(t, dir+"/gone/file", "host")
		host := beneath(t, dir)
		do(t, ModeOverlay, dir)
		f, err := os.OpenFile(dir+"/a/b/file", os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString("+inside")
		must(t, err)
		must(t, f.Close())
		must(t, os.RemoveAll(dir+"/gone"))
		must(t, os.Mkdir(dir+"/gone", 0o755))
		reads(t, dir+"/a/b/file", "host+inside")
		reads(t, host+"/a/b/file", "host")
		reads(t, host+"/gone/file", "host")
		if left, err := os.ReadDir(dir + "/gone"); err != nil || len(left) > 0 {
			t.Errorf("a directory made anew holds %v, %v", left, err)
		}
	})
}

func TestLinksResolveAsBefore(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		root := testenv.Scratch()
		write(t, root+"/usr/share/ca/x.crt", "certificate")
		write(t, root+"/var/lib/ca/pem/y.pem", "bundle")
		write(t, root+"/sysroot/etc/hosts", "hosts")
		etc := root + "/sysroot/etc"
		link(t, "../../usr/share/ca/x.crt", etc+"/top.crt")
		link(t, "../../../../usr/share/ca/x.crt", etc+"/ssl/certs/deep.crt")
		link(t, "deep.crt", etc+"/ssl/certs/1234.0")
		link(t, "ssl/certs/1234.0", etc+"/chain")
		link(t, "../../../var/lib/ca/pem", etc+"/ssl/pem")
		link(t, "../hosts", etc+"/ssl/hosts")
		link(t, etc+"/ssl/certs", etc+"/absolute")
		link(t, "../../sysroot/etc/hosts", etc+"/round")
		do(t, mode, etc)
		for path, want := range map[string]string{
			"top.crt":            "certificate",
			"ssl/certs/deep.crt": "certificate",
			"ssl/certs/1234.0":   "certificate",
			"chain":              "certificate",
			"ssl/pem/y.pem":      "bundle",
			"ssl/hosts":          "hosts",
			"absolute/deep.crt":  "certificate",
			"round":              "hosts",
		} {
			reads(t, filepath.Join(etc, path), want)
		}
	})
}

func TestEveryPathOfEtcLeadsWhereItLed(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		before := survey(t, "/etc")
		do(t, mode, "/etc")
		after := survey(t, "/etc")
		for path, want := range before {
			if got := after[path]; got != want {
				t.Errorf("%s is %s, was %s", path, got, want)
			}
		}
	})
}

// survey describes what each path below dir leads to. The directory is walked by
// name, through links that copy-up made, and not through those that were there.
func survey(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrPermission) {
			return
		}
		must(t, err)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if strings.HasPrefix(e.Name(), ".ro") {
				continue
			}
			fi, err := os.Stat(path)
			if err != nil {
				found[path] = errors.Unwrap(err).Error()
				continue
			}
			if fi.IsDir() {
				found[path] = fi.Mode().String()
			} else {
				found[path] = fi.Mode().String() + " " + fi.ModTime().String()
			}
			to, _ := os.Readlink(path)
			if e.IsDir() || (fi.IsDir() && strings.HasPrefix(to, ".ro")) {
				walk(path)
			}
		}
	}
	walk(dir)
	return found
}

func TestCertificatesVerify(t *testing.T) {
	const certs = "/etc/ssl/certs"
	eachMode(t, func(t *testing.T, mode string) {
		do(t, mode, "/etc")
		file := aCertificate(t, certs)
		b, err := os.ReadFile(file)
		must(t, err)
		block, _ := pem.Decode(b)
		cert, err := x509.ParseCertificate(block.Bytes)
		must(t, err)
		roots, err := x509.SystemCertPool()
		must(t, err)
		opts := x509.VerifyOptions{Roots: roots, CurrentTime: cert.NotBefore.Add(time.Hour), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if _, err := cert.Verify(opts); err != nil {
			t.Errorf("crypto/x509: %v", err)
		}
		out, err := exec.Command("openssl", "verify", "-no_check_time", "-no-CAfile", "-no-CAstore", "-CApath", certs, file).CombinedOutput()
		if err != nil {
			t.Errorf("openssl verify: %v\n%s", err, out)
		}
	})
}

func aCertificate(t *testing.T, dir string) string {
	t.Helper()
	found, err := filepath.Glob(dir + "/*.pem")
	must(t, err)
	if len(found) == 0 {
		t.Fatalf("no certificate in %s: install ca-certificates", dir)
	}
	return found[0]
}

func TestALinkedDoubledOrNestedDirectoryIsCopiedUpOnce(t *testing.T) {
	for _, tc := range []struct {
		name string
		dirs []string
		want []string
	}{
		{"through a link", []string{"var/run"}, []string{"run"}},
		{"a link and what it leads to", []string{"var/run", "run"}, []string{"run"}},
		{"twice", []string{"run", "run/", "./run"}, []string{"run"}},
		{"the outer first", []string{"run", "run/user"}, []string{"run/user", "run"}},
		{"the inner first", []string{"run/user", "run"}, []string{"run/user", "run"}},
		{"the inner through a link", []string{"run", "var/run/user"}, []string{"run/user", "run"}},
		{"neighbours", []string{"var/lib", "run"}, []string{"var/lib", "run"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachMode(t, func(t *testing.T, mode string) {
				root := testenv.Scratch()
				write(t, root+"/run/pid", "1")
				write(t, root+"/run/user/1000/bus", "bus")
				write(t, root+"/var/lib/db", "db")
				link(t, "../run", root+"/var/run")
				var dirs, want []string
				for _, d := range tc.dirs {
					dirs = append(dirs, root+"/"+d)
				}
				for _, d := range tc.want {
					want = append(want, root+"/"+d)
				}
				if got := do(t, mode, dirs...); !slices.Equal(got, want) {
					t.Errorf("copied up %q, want %q", got, want)
				}
				for _, d := range dirs {
					write(t, d+"/new", "new")
					reads(t, d+"/new", "new")
				}
				reads(t, root+"/run/pid", "1")
				reads(t, root+"/var/run/pid", "1")
				reads(t, root+"/run/user/1000/bus", "bus")
				reads(t, root+"/var/lib/db", "db")
			})
		})
	}
}

func TestDockersRmRemovesLinksOnly(t *testing.T) {
	inside(t, func(t *testing.T) {
		run := filepath.Join(testenv.Scratch(), "run")
		write(t, run+"/docker/netns/default", "")
		write(t, run+"/containerd/containerd.sock", "")
		write(t, run+"/xtables.lock", "")
		// A rootful Docker has mounts there.
		must(t, linux.Mount("tmpfs", run+"/docker/netns", "tmpfs", 0, ""))
		write(t, run+"/docker/netns/mounted", "")
		host := beneath(t, run)
		do(t, ModeSymlink, run)
		out, err := exec.Command("rm", "-f", run+"/docker", run+"/containerd", run+"/xtables.lock").CombinedOutput()
		if err != nil {
			t.Fatalf("rm: %v\n%s", err, out)
		}
		for _, name := range []string{"docker", "containerd", "xtables.lock"} {
			if _, err := os.Lstat(run + "/" + name); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there: %v", name, err)
			}
			if _, err := os.Lstat(host + "/" + name); err != nil {
				t.Errorf("%s is gone from the host: %v", name, err)
			}
		}
		if _, err := os.Stat(host + "/docker/netns/mounted"); err != nil {
			t.Error(err)
		}
		must(t, os.Mkdir(run+"/docker", 0o755))
	})
}

// The host goes on while a directory is copied up.
func TestAnEntryMayGoMeanwhile(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		dir := filepath.Join(testenv.Scratch(), "run")
		write(t, dir+"/stays", "here")
		write(t, dir+"/mount/file", "here") // so that an overlay is one for each directory
		must(t, unix.Mount("tmpfs", dir+"/mount", "tmpfs", 0, ""))
		link(t, "stays", dir+"/gone-link")
		write(t, dir+"/gone-directory/file", "here")
		write(t, dir+"/gone-file", "here")
		o, err := open(dir)
		must(t, err)
		defer o.tree.Close()
		for _, name := range []string{"gone-link", "gone-directory", "gone-file"} {
			must(t, os.RemoveAll(filepath.Join(dir, name)))
		}
		if mode == ModeOverlay {
			must(t, o.overlay(nil))
		} else {
			must(t, o.symlinks())
		}
		reads(t, dir+"/stays", "here")
		left, err := filepath.Glob(dir + "/gone-*")
		must(t, err)
		if len(left) > 0 {
			t.Errorf("what is gone is there: %q", left)
		}
	})
}

func TestTheOriginalHidesUnderDotRo(t *testing.T) {
	inside(t, func(t *testing.T) {
		dir := filepath.Join(testenv.Scratch(), "etc")
		write(t, dir+"/ssl/openssl.cnf", "cnf")
		do(t, ModeSymlink, dir)
		found, err := filepath.Glob(dir + "/.ro*")
		must(t, err)
		if len(found) != 1 {
			t.Fatalf("found %q", found)
		}
		reads(t, found[0]+dir+"/ssl/openssl.cnf", "cnf")
		if to, err := os.Readlink(dir + "/ssl"); to != filepath.Base(found[0])+dir+"/ssl" {
			t.Errorf("ssl leads to %q, %v", to, err)
		}
		// What scripts do to get a writable copy of a linked directory.
		real, err := filepath.EvalSymlinks(dir + "/ssl")
		must(t, err)
		must(t, os.Remove(dir+"/ssl"))
		must(t, os.Mkdir(dir+"/ssl", 0o755))
		must(t, linux.Mount(real, dir+"/ssl", "", unix.MS_BIND|unix.MS_REC, ""))
		reads(t, dir+"/ssl/openssl.cnf", "cnf")
	})
}

func TestModeOwnerAndTimesOfTheDirectoryStay(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		dir := filepath.Join(testenv.Scratch(), "spool")
		write(t, dir+"/file", "")
		must(t, os.Mkdir(dir+"/sub", 0o700))
		must(t, unix.Chmod(dir, 0o3771))
		if testenv.AllIDs() {
			must(t, os.Chown(dir, 12, 34))
		}
		then := time.Unix(1_000_000_000, 5_000)
		must(t, os.Chtimes(dir, then, then))
		var before, after unix.Stat_t
		must(t, unix.Stat(dir, &before))
		do(t, mode, dir)
		must(t, unix.Stat(dir, &after))
		if before.Mode != after.Mode || before.Uid != after.Uid || before.Gid != after.Gid || before.Mtim != after.Mtim {
			t.Errorf("before mode %o owner %d:%d changed %v; after %o %d:%d %v",
				before.Mode, before.Uid, before.Gid, before.Mtim, after.Mode, after.Uid, after.Gid, after.Mtim)
		}
	})
}

func TestTheHostsDirectoriesCopyUp(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		dirs := []string{"/etc", "/run", "/var/run", "/var/lib", "/opt", "/etc"}
		do(t, mode, dirs...)
		for _, dir := range dirs {
			probe := dir + "/gatekit-copyup-test"
			if _, err := os.Lstat(probe); err == nil {
				continue // /var/run is /run
			}
			write(t, probe, dir)
			reads(t, probe, dir)
		}
	})
	for _, dir := range []string{"/etc", "/run", "/var/lib", "/opt"} {
		if _, err := os.Lstat(dir + "/gatekit-copyup-test"); testenv.Scratch() == "" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the host's %s was written to: %v", dir, err)
		}
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file", "")
	link(t, "/tmp", dir+"/tmp")
	link(t, "/", dir+"/root")
	link(t, "loop", dir+"/loop")
	must(t, os.Mkdir(dir+"/ok", 0o755))
	for _, tc := range []struct {
		name, dir, mode, want string
	}{
		{"a directory is fine", dir + "/ok", "", ""},
		{"a directory below /tmp is fine", dir + "/ok", ModeOverlay, ""},
		{"/tmp", "/tmp", "", "/tmp is writable as it is"},
		{"/tmp with a slash", "/tmp/", "", "/tmp/ is writable as it is"},
		{"a link to /tmp", dir + "/tmp", "", "never copied up"},
		{"the root", "/", "", "/ holds /tmp"},
		{"a link to the root", dir + "/root", "", "holds /tmp"},
		{"/proc", "/proc", "", "/proc belongs to the kernel"},
		{"below /sys", "/sys/kernel", "", "/sys/kernel belongs to the kernel"},
		{"missing", dir + "/missing", "", "missing does not exist"},
		{"a file", dir + "/file", "", "file is not a directory"},
		{"a loop of links", dir + "/loop", "", "too many links"},
		{"relative", "etc", "", `"etc" is not an absolute path`},
		{"empty", "", "", `"" is not an absolute path`},
		{"an unknown mode", dir + "/ok", "tmpfs", `unknown mode "tmpfs" (tmpfs+symlink or overlay)`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Validate([]string{tc.dir}, tc.mode)
			if tc.want == "" {
				must(t, err)
				return
			}
			if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, tc.want)
			}
		})
	}
}
