package gates

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// unpacked makes a root directory with programs that all tell a version.
func unpacked(t *testing.T, programs ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range programs {
		dir := filepath.Join(root, "usr/bin")
		if name == "dockerd-rootless.sh" {
			dir = filepath.Join(root, "usr/share/docker.io/contrib")
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		text := "#!/bin/sh\necho Docker version $(basename ${LD_LIBRARY_PATH%/usr/lib}), build 1\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestDockerIsFoundWhereAllOfItIs(t *testing.T) {
	none, all := t.TempDir(), unpacked(t, dockerPrograms...)
	t.Setenv("PATH", "/usr/bin:/bin") // of sh and basename; those of Docker may be there too
	d, err := FindDocker(t.Context(), all, none)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Base(all); d.Version != want {
		t.Errorf("the version is %q, want %q, that of the first with its own libraries", d.Version, want)
	}
	for _, name := range dockerPrograms {
		t.Run("without "+name, func(t *testing.T) {
			if err := os.Remove(filepath.Join(all, "usr/bin", name)); err != nil {
				_ = os.Remove(filepath.Join(all, "usr/share/docker.io/contrib", name))
			}
			t.Setenv("PATH", none)
			if d, err := FindDocker(t.Context(), all, none); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("found %+v, %v; want an error with %s", d, err, name)
			}
			restored := unpacked(t, name)
			if err := os.CopyFS(all, os.DirFS(restored)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestDockerIsStartedOnAGate(t *testing.T) {
	p := Place{Links: "/links", Home: "/home", Runtime: "/run", Path: "/bin"}
	few := p
	few.IDs = IDs{1000, 2000, 500}
	kit := Gate{kitEnv: gatekitEnv}
	for _, c := range []struct {
		name string
		got  []string
		want string
	}{
		{"gatekit, and an installed Docker", Docker{root: "/"}.Command(kit, p, "dockerd-rootless.sh"),
			"env PATH=/links:/usr/bin:/usr/sbin:/usr/share/docker.io/contrib:/bin HOME=/home XDG_RUNTIME_DIR=/run DOCKER_HOST=unix:///run/docker.sock" +
				" DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS= dockerd-rootless.sh"},
		{"gatekit of a user with few ids, and an unpacked Docker", Docker{root: "/d"}.Command(kit, few, "docker", "ps"),
			"env PATH=/links:/d/usr/bin:/d/usr/sbin:/d/usr/share/docker.io/contrib:/bin HOME=/home XDG_RUNTIME_DIR=/run DOCKER_HOST=unix:///run/docker.sock" +
				" LD_LIBRARY_PATH=/d/usr/lib DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns" +
				" DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS=--uidmap=0:1000:1 --uidmap=1:2000:500 --gidmap=0:1000:1 --gidmap=1:2000:500 docker ps"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, strings.Join(c.got, " ")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
