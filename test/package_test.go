package test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// The Debian package and the AppArmor profile, as packaging/ has them.

// buildPackage builds the package of this tree, and lays it at /srv/gatekit.deb.
func buildPackage(t *testing.T, h *testenv.Host) {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		testenv.Skip(t, err.Error())
	}
	bin := t.TempDir()
	if out, err := exec.Command("make", "-C", "..", "deb", "BIN="+bin, "VERSION=1.2.3-4-gabcdef0").CombinedOutput(); err != nil {
		t.Fatalf("make deb: %v\n%s", err, out)
	}
	made, err := filepath.Glob(bin + "/gatekit_1.2.3+4.gabcdef0_*.deb")
	if err != nil || len(made) != 1 {
		t.Fatalf("make deb made %q, %v", made, err)
	}
	text, err := os.ReadFile(made[0])
	if err != nil {
		t.Fatal(err)
	}
	h.WriteFile(t, "/srv/gatekit.deb", string(text), 0o644)
}

// overlay lays what is written below a directory of the machine's into one of the
// Host's, which is returned as the machine sees it.
func overlay(t *testing.T, h *testenv.Host, dir string) (upper string) {
	t.Helper()
	layers := "/srv/layers" + dir
	for _, layer := range []string{"upper", "work"} {
		if err := os.MkdirAll(h.Path(layers+"/"+layer), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.Do(t, func() error {
		return unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+layers+"/upper,workdir="+layers+"/work")
	})
	return h.Path(layers + "/upper")
}

// files lists what is below a directory, other than directories.
func files(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			paths = append(paths, strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestTheDebianPackageInstallsRunsAndGoes(t *testing.T) {
	h := testenv.NewHost(t)
	buildPackage(t, h)
	usr, db := overlay(t, h, "/usr"), overlay(t, h, "/var/lib/dpkg")
	overlay(t, h, "/var/log")
	const profile = "/etc/apparmor.d/gatekit"
	dpkg := func(args ...string) {
		t.Helper()
		// That uidmap and the like are there is the machine's business.
		if r := h.Run(t, h.RootCommand("dpkg", append([]string{"--force-depends"}, args...)...)); r.Code != 0 {
			t.Fatalf("dpkg %q: %v", args, r)
		}
	}
	etc := files(t, h.Path("/etc"))

	dpkg("--install", "/srv/gatekit.deb")
	for _, program := range []string{"/usr/bin/gatekit", "/usr/lib/gatekit/bin/rootlesskit", "/usr/lib/gatekit/bin/docker-rootlesskit"} {
		r := h.Run(t, h.Command(program, "--net=slirp", "sh", "-c", "id -u; cat /sys/class/net/tap0/mtu"))
		if r.Code != 0 || r.Stdout != "0\n1500\n" {
			t.Errorf("%s: %v", program, r)
		}
	}
	if r := h.Run(t, h.Command("/usr/bin/gatekit", "--version")); !strings.Contains(r.Stdout, "1.2.3-4-gabcdef0") {
		t.Errorf("gatekit --version: %v", r)
	}
	if r := h.Run(t, h.Command("/usr/lib/gatekit/bin/rootlessctl", "--version")); !strings.HasPrefix(r.Stdout, "rootlessctl ") {
		t.Errorf("rootlessctl --version: %v", r)
	}
	for _, want := range []string{"/lib/systemd/user/gatekit-docker.service", "/lib/systemd/user/gatekit-docker.socket", "/lib/systemd/user/gatekit-k3s.service", "/share/doc/gatekit/docs/docker.md"} {
		if !slices.Contains(files(t, usr), want) {
			t.Errorf("/usr%s is not installed", want)
		}
	}
	if r := h.Run(t, h.RootCommand("/usr/lib/gatekit/prepare-host", h.User.Name, "/usr/bin/gatekit")); r.Code != 0 {
		t.Errorf("prepare-host: %v", r)
	}
	// An AppArmor that is too old for the profile has none in its way.
	if got := files(t, h.Path("/etc")); !slices.Equal(got, etc) {
		t.Errorf("/etc has\n%q\nand had\n%q", got, etc)
	}

	// With a newer one it is there, follows the package, and is the administrator's
	// once it was changed.
	if err := os.MkdirAll(h.Path("/etc/apparmor.d/abi"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.WriteFile(t, "/etc/apparmor.d/abi/4.0", "", 0o644)
	expect := func(when, want string) {
		t.Helper()
		text, err := os.ReadFile(h.Path(profile))
		if want == "" && !os.IsNotExist(err) || want != "" && !strings.Contains(string(text), want) {
			t.Errorf("%s, %s holds %q (%v), want %q", when, profile, text, err, want)
		}
	}
	dpkg("--install", "/srv/gatekit.deb")
	expect("installed", "userns,")
	dpkg("--install", "/srv/gatekit.deb")
	expect("installed over itself", "userns,")
	dpkg("--remove", "gatekit")
	expect("removed", "")
	dpkg("--install", "/srv/gatekit.deb")
	h.WriteFile(t, profile, "# changed\n", 0o644)
	dpkg("--install", "/srv/gatekit.deb")
	expect("installed over a changed one", "# changed")
	dpkg("--remove", "gatekit")
	expect("removed", "# changed")
	dpkg("--purge", "gatekit")
	expect("purged", "")

	if got := files(t, usr); len(got) > 0 {
		t.Errorf("left behind in /usr: %q", got)
	}
	for _, file := range files(t, db) {
		if strings.Contains(file, "gatekit") {
			t.Errorf("left behind in /var/lib/dpkg: %s", file)
		}
	}
}

// The parser is that of a newer AppArmor than Debian 12's, with the libraries of
// its release (scripts/test unpacks both).
func TestAppArmorTakesTheProfile(t *testing.T) {
	root, err := filepath.Abs("../bin/apparmor")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root); err != nil {
		testenv.Skip(t, err.Error())
	}
	profile, err := os.ReadFile("../packaging/apparmor/gatekit")
	if err != nil {
		t.Fatal(err)
	}
	base := root + "/etc/apparmor.d"
	parse := func(text string, args ...string) (string, error) {
		path := filepath.Join(t.TempDir(), "gatekit")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		loader, _ := filepath.Glob(root + "/usr/lib64/ld-linux-*.so.*")
		libraries, _ := filepath.Glob(root + "/usr/lib/*-linux-gnu*")
		if len(loader) != 1 || len(libraries) != 1 {
			t.Fatalf("the libraries of %s are %q and %q", root, loader, libraries)
		}
		args = append([]string{"--library-path", libraries[0], root + "/usr/sbin/apparmor_parser", "--skip-kernel-load", "--skip-cache",
			"--base=" + base, "--features-file=" + base + "/abi/4.0"}, append(args, path)...)
		out, err := exec.Command(loader[0], args...).CombinedOutput()
		return string(out), err
	}
	if out, err := parse(string(profile)); err != nil {
		t.Errorf("apparmor_parser: %v\n%s", err, out)
	}
	if out, err := parse(strings.Replace(string(profile), "userns,", "usernsx,", 1)); err == nil {
		t.Errorf("apparmor_parser takes a rule that is none: %s", out)
	}
	if out, err := parse(string(profile), "--preprocess"); err != nil || !strings.Contains(out, "@{gatekit_bindir}=/usr/bin /usr/local/bin") ||
		!strings.Contains(out, "profile gatekit @{gatekit_bindir}/gatekit ") {
		t.Errorf("the path is not a variable: %v\n%s", err, out)
	}
}
