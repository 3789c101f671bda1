package gates

import (
	"os"
	"path/filepath"
	"slices"
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
	root := unpacked(t, dockerPrograms...)
	d, err := FindDocker(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Base(root); d.Version != want {
		t.Errorf("the version is %q, want %q, that of one with its own libraries", d.Version, want)
	}
	t.Setenv("PATH", t.TempDir())
	for _, name := range dockerPrograms {
		others := slices.DeleteFunc(slices.Clone(dockerPrograms), func(other string) bool { return other == name })
		if d, err := FindDocker(t.Context(), unpacked(t, others...)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %+v, %v; want an error that names it", name, d, err)
		}
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
