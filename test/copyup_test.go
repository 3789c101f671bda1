package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// copyUpModes are the values of --copy-up-mode with the file system that each
// puts over a directory.
var copyUpModes = map[string]string{"tmpfs+symlink": "tmpfs", "overlay": "overlayfs"}

// eachCopyUpMode runs a subtest for each mode. copyUp makes the flags for
// directories.
func eachCopyUpMode(t *testing.T, f func(t *testing.T, fstype string, copyUp func(dirs ...string) []string)) {
	for mode, fstype := range copyUpModes {
		t.Run(mode, func(t *testing.T) {
			f(t, fstype, func(dirs ...string) []string {
				flags := []string{"--copy-up-mode=" + mode}
				for _, d := range dirs {
					flags = append(flags, "--copy-up="+d)
				}
				return flags
			})
		})
	}
}

func TestCopyUpMakesADirectoryWritableInsideOnly(t *testing.T) {
	h := testenv.NewHost(t)
	h.WriteFile(t, "/etc/replaced", "host\n", 0o644)
	h.WriteFile(t, "/etc/removed", "host\n", 0o644)
	if err := os.Mkdir(h.Path("/etc/dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.WriteFile(t, "/etc/dir/kept", "host\n", 0o644)
	eachCopyUpMode(t, func(t *testing.T, fstype string, copyUp func(...string) []string) {
		before := trace(t, h)
		out := output(t, h, append(copyUp("/etc"), "sh", "-ec", `
			stat -f -c %T /etc
			cat /etc/replaced /etc/dir/kept
			echo new > /etc/made
			rm /etc/replaced; echo inside > /etc/replaced
			rm /etc/removed
			mkdir /etc/newdir; echo deep > /etc/newdir/file
			cat /etc/made /etc/replaced /etc/newdir/file
			test ! -e /etc/removed`)...)
		if want := fstype + "\nhost\nhost\nnew\ninside\ndeep\n"; out != want {
			t.Errorf("inside: %q, want %q", out, want)
		}
		for path, want := range map[string]string{"/etc/replaced": "host\n", "/etc/removed": "host\n", "/etc/dir/kept": "host\n"} {
			if got := h.ReadFile(t, path); got != want {
				t.Errorf("the host's %s is now %q", path, got)
			}
		}
		for _, path := range []string{"/etc/made", "/etc/newdir"} {
			if _, err := os.Lstat(h.Path(path)); err == nil {
				t.Errorf("%s was made on the host", path)
			}
		}
		h.NoTrace(t, before)
	})
}

func TestCopyUpHidesTheOriginalBehindSymlinks(t *testing.T) {
	h := testenv.NewHost(t)
	// dockerd-rootless.sh removes what it finds as symlinks.
	out := output(t, h, "--copy-up=/etc", "sh", "-ec", `
		for f in passwd ssl; do
			test -L /etc/$f
			original=$(realpath /etc/$f)
			case $original in /etc/.ro*/$f) ;; *) echo "the original is $original" ;; esac
			rm /etc/$f; test ! -e /etc/$f; test -e $original
		done`)
	if out != "" {
		t.Error(out)
	}
	for _, path := range []string{"/etc/passwd", "/etc/ssl"} {
		if _, err := os.Stat(h.Path(path)); err != nil {
			t.Error(err)
		}
	}
}

func TestCopyUpKeepsRelativeSymlinks(t *testing.T) {
	h := testenv.NewHost(t)
	for _, dir := range []string{"/etc/a/b", "/etc/store", "/srv/outside"} {
		if err := os.MkdirAll(h.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.WriteFile(t, "/etc/store/file", "within\n", 0o644)
	h.WriteFile(t, "/srv/outside/file", "outside\n", 0o644)
	links := map[string]struct{ target, want string }{
		"to a neighbour":                     {"store/file", "within"},
		"up and down":                        {"../etc/store/file", "within"},
		"out of the directory":               {"../srv/outside/file", "outside"},
		"to a directory outside":             {"../srv/outside", ""},
		"a/from below, within":               {"../store/file", "within"},
		"a/from below, to a dir within":      {"../store", ""},
		"a/from below, out of the directory": {"../../srv/outside/file", "outside"},
		"a/b/from two below, out":            {"../../../srv/outside/file", "outside"},
		"a/b/absolute":                       {"/etc/store/file", "within"},
		"nowhere":                            {"does/not/exist", ""},
	}
	for name, link := range links {
		if err := os.Symlink(link.target, h.Path("/etc/"+name)); err != nil {
			t.Fatal(err)
		}
	}
	eachCopyUpMode(t, func(t *testing.T, _ string, copyUp func(...string) []string) {
		for name, link := range links {
			if link.want == "" {
				continue
			}
			r := runGate(t, h, append(copyUp("/etc"), "cat", "/etc/"+name)...)
			if r.Stdout != link.want+"\n" {
				t.Errorf("link %q -> %s: %v, want %s", name, link.target, r, link.want)
			}
		}
		got := output(t, h, append(copyUp("/etc"), "sh", "-ec",
			`ls "/etc/to a directory outside/" "/etc/a/from below, to a dir within/"; test -L /etc/nowhere; cat "/etc/to a directory outside/file"`)...)
		if want := "/etc/a/from below, to a dir within/:\nfile\n\n/etc/to a directory outside/:\nfile\noutside\n"; got != want {
			t.Errorf("links to directories show %q, want %q", got, want)
		}
	})
}

func TestCopyUpFollowsASymlinkedTarget(t *testing.T) {
	h := testenv.NewHost(t)
	if target, err := filepath.EvalSymlinks("/var/run"); err != nil || target != "/run" {
		testenv.Skip(t, "/var/run is no symlink to /run here: "+target)
	}
	h.WriteFile(t, "/run/service", "host\n", 0o644)
	for name, dirs := range map[string][]string{
		"alone":             {"/var/run"},
		"after its target":  {"/run", "/var/run"},
		"before its target": {"/var/run", "/run"},
		"as k3s does":       {"/etc", "/var/run", "/run", "/var/lib"},
	} {
		t.Run(name, func(t *testing.T) {
			eachCopyUpMode(t, func(t *testing.T, _ string, copyUp func(...string) []string) {
				got := output(t, h, append(copyUp(dirs...), "sh", "-ec", `
					readlink -f /var/run; cat /var/run/service
					echo one > /var/run/one; echo two > /run/two; cat /run/one /var/run/two`)...)
				if want := "/run\nhost\none\ntwo\n"; got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				if left, _ := filepath.Glob(h.Path("/run/one")); left != nil {
					t.Error("the host's /run was written to")
				}
			})
		})
	}
}

func TestCopyUpFlagsAreRepeatable(t *testing.T) {
	h := testenv.NewHost(t)
	h.WriteFile(t, "/run/service", "host\n", 0o644)
	for name, dirs := range map[string][]string{
		"as dockerd-rootless.sh does":  {"/etc", "/run"},
		"as containerd's script does":  {"/etc", "/run", "/var/lib"},
		"the same twice":               {"/etc", "/run", "/var/lib", "/etc", "/run/"},
		"one within another":           {"/etc", "/etc/ssl", "/run", "/var/lib"},
		"one around another":           {"/etc/ssl", "/etc", "/run", "/var/lib"},
		"with a blank path component":  {"/etc//", "/run", "/var/./lib"},
		"as usernetes does":            {"/etc", "/run", "/var/lib", "/opt"},
		"one whose files are mounts":   {"/etc", "/usr/local"},
		"one with mounts of their own": {"/run", "/usr", "/etc"},
	} {
		t.Run(name, func(t *testing.T) {
			eachCopyUpMode(t, func(t *testing.T, _ string, copyUp func(...string) []string) {
				before := trace(t, h)
				script := `cat /run/service; grep -c ^ada: /etc/passwd; test -d /etc/ssl/certs; test -x /usr/local/bin/gatekit`
				for _, dir := range dirs {
					script += "; echo mine > " + dir + "/of-the-gate; cat " + dir + "/of-the-gate; rm " + dir + "/of-the-gate"
				}
				got := output(t, h, append(copyUp(dirs...), "sh", "-ec", script)...)
				if want := "host\n1\n" + strings.Repeat("mine\n", len(dirs)); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				h.NoTrace(t, before)
			})
		})
	}
}

func TestCertificatesVerifyAfterCopyUp(t *testing.T) {
	h := testenv.NewHost(t)
	// As distributions lay them out: hash links in /etc/ssl/certs that point at
	// a neighbour, which is a relative link to a store.
	r := h.Run(t, h.RootCommand("sh", "-ec", `
		cd /srv
		openssl req -x509 -newkey ed25519 -nodes -keyout ca.key -out ca.pem -days 2 -subj "/CN=Test Root" 2>/dev/null
		openssl req -newkey ed25519 -nodes -keyout leaf.key -out leaf.csr -subj "/CN=www.example.test" 2>/dev/null
		openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out leaf.pem -days 1 2>/dev/null
		mkdir -p /etc/pki/store /etc/ssl/certs
		cp ca.pem /etc/pki/store/root.pem
		ln -s ../../pki/store/root.pem /etc/ssl/certs/Test_Root.pem
		ln -s Test_Root.pem /etc/ssl/certs/$(openssl x509 -hash -noout -in ca.pem).0
		chmod 644 leaf.pem`))
	if r.Code != 0 {
		t.Fatal(r)
	}
	verify := []string{"openssl", "verify", "-CApath", "/etc/ssl/certs", "/srv/leaf.pem"}
	if r := h.Run(t, h.Command(verify[0], verify[1:]...)); r.Code != 0 {
		t.Fatalf("before the copy-up: %v", r)
	}
	eachCopyUpMode(t, func(t *testing.T, _ string, copyUp func(...string) []string) {
		for _, dirs := range [][]string{{"/etc"}, {"/etc/ssl"}, {"/etc/ssl/certs"}, {"/etc", "/run", "/var/lib"}} {
			if got := output(t, h, append(copyUp(dirs...), verify...)...); got != "/srv/leaf.pem: OK\n" {
				t.Errorf("copy-up of %v: %q", dirs, got)
			}
		}
	})
}
