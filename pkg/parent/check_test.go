package parent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// procTree makes a directory that looks like /proc, with these files.
func procTree(t *testing.T, files map[string]string) string {
	t.Helper()
	proc := t.TempDir()
	for name, text := range files {
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return proc
}

func TestSettingsThatForbidUserNamespacesAreNamedWithTheirMend(t *testing.T) {
	const supported = "self/ns/user"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"a kernel without them": {nil, "CONFIG_USER_NS"},
		"nothing forbids them":  {map[string]string{supported: "", "sys/user/max_user_namespaces": "28633\n"}, ""},
		"a limit of none":       {map[string]string{supported: "", "sys/user/max_user_namespaces": "0\n"}, "sysctl -w user.max_user_namespaces="},
		"Debian's switch":       {map[string]string{supported: "", "sys/kernel/unprivileged_userns_clone": "0\n"}, "sysctl -w kernel.unprivileged_userns_clone=1"},
	} {
		err := checkUserNamespaces(procTree(t, c.files), alice)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAFailureIsExplainedByWhatForbidsIt(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		files map[string]string
		want  string
	}{
		"a limit":          {unix.ENOSPC, nil, "user.max_user_namespaces"},
		"AppArmor":         {unix.EPERM, map[string]string{"sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "apparmor_restrict_unprivileged_userns=0"},
		"a seccomp filter": {unix.EPERM, map[string]string{"self/status": "Name:\tx\nSeccomp:\t2\n"}, "seccomp=unconfined"},
		"a tracer":         {&exec.ExitError{}, map[string]string{"self/status": "TracerPid:\t7\n"}, "trace as root"},
		"nobody knows":     {unix.EPERM, map[string]string{"self/status": "Seccomp:\t0\n"}, "security module"},
	} {
		err := explainNamespaces(fmt.Errorf("make namespaces: %w", c.err), procTree(t, c.files))
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := explainNamespaces(unix.ENOMEM, "/proc"); err != unix.ENOMEM {
		t.Errorf("an error of another kind became %v", err)
	}
}

func TestProgramsThatCannotMapIDsAreRefused(t *testing.T) {
	dir := t.TempDir()
	var m idMaps
	if err := m.findPrograms(alice, programs{dirs: []string{dir}}); err == nil || !strings.Contains(err.Error(), "newuidmap is not installed") {
		t.Errorf("missing: %v", err)
	}
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.findPrograms(alice, programs{dirs: []string{dir}}); err == nil || !strings.Contains(err.Error(), "chmod u+s") {
		t.Errorf("without set-user-ID: %v", err)
	}
}

func TestRootDoesWithoutThePrograms(t *testing.T) {
	var m idMaps
	if err := m.findPrograms(caller{name: "root"}, programs{}); err != nil || m.newuidmap != "" {
		t.Errorf("%q, %v", m.newuidmap, err)
	}
}
