package gates

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Docker is an engine that takes a gate in RootlessKit's place: dockerd-rootless.sh
// starts it, with all that is to be set at its default.
type Docker struct {
	Version string

	root string
}

// dockerPrograms are what it consists of, besides what RootlessKit's package has.
var dockerPrograms = []string{"dockerd-rootless.sh", "dockerd", "containerd", "containerd-shim-runc-v2", "runc", "docker", "iptables"}

// FindDocker looks for the programs below a root directory, and in PATH for those that
// are not there. The error says what is missing.
func FindDocker(ctx context.Context, root string) (Docker, error) {
	d := Docker{root: root}
	paths := map[string]string{}
	for _, name := range dockerPrograms {
		path, err := d.look(name)
		if err != nil {
			return Docker{}, fmt.Errorf("docker: %w", err)
		}
		paths[name] = path
	}
	version := exec.CommandContext(ctx, paths["dockerd"], "--version")
	version.Env = append(os.Environ(), d.libraries()...)
	out, err := version.CombinedOutput()
	if err != nil {
		return Docker{}, fmt.Errorf("docker: %v: %w: %s", version, err, strings.TrimSpace(string(out)))
	}
	d.Version = parseVersion(string(out))
	return d, nil
}

// dirs are where its programs are; in Debian, the script is in the last.
func (d Docker) dirs() []string {
	var dirs []string
	for _, dir := range []string{"usr/bin", "usr/sbin", "usr/share/docker.io/contrib"} {
		dirs = append(dirs, filepath.Join(d.root, dir))
	}
	return dirs
}

func (d Docker) look(name string) (string, error) {
	for _, dir := range d.dirs() {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return exec.LookPath(name)
}

// libraries is the environment of programs that were unpacked, and not installed.
func (d Docker) libraries() []string {
	if d.root == "/" {
		return nil
	}
	return []string{"LD_LIBRARY_PATH=" + filepath.Join(d.root, "usr/lib")}
}

// KitName is under which name dockerd-rootless.sh looks for RootlessKit first.
const KitName = "docker-rootlesskit"

// Place is where a Docker runs: directories that are its own.
type Place struct {
	// Links has the Kit of the gate, as KitName.
	Links string

	// Home and Runtime are directories of the user who starts it.
	Home, Runtime string

	// Path is where all other programs are, as in PATH.
	Path string

	// IDs are as in Work.
	IDs IDs
}

// Socket is where dockerd listens.
func (p Place) Socket() string { return filepath.Join(p.Runtime, "docker.sock") }

// Command is the command line of dockerd-rootless.sh, or of Docker's client, on a gate
// that has a Kit.
func (d Docker) Command(g Gate, p Place, name string, args ...string) []string {
	path := slices.Concat([]string{p.Links}, d.dirs(), []string{p.Path})
	env := []string{"env",
		"PATH=" + strings.Join(path, ":"),
		"HOME=" + p.Home,
		"XDG_RUNTIME_DIR=" + p.Runtime,
		"DOCKER_HOST=unix://" + p.Socket(),
	}
	return slices.Concat(env, d.libraries(), g.kitEnv(p.IDs), []string{name}, args)
}
