// Package gates knows how the gates that are compared are started: gatekit itself
// and its peers on the machine, each with the options that give it the same work.
// The peers are
//
//   - slirp4netns, started by RootlessKit, whose builtin port driver forwards;
//   - pasta (of the package passt), which starts the command itself.
//
// Docker is no gate, but runs on those that are, or can stand for, RootlessKit.
//
// Each gate gives its command a network namespace where the host's addresses are
// reached through the gate, with the same MTU, and forwards the same ports. All
// else is left at the gate's defaults. A gate whose program is not on the machine
// is left out.
package gates

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kinds of gates: the names that a result calls them by.
const (
	Gatekit     = "gatekit"
	Slirp4netns = "slirp4netns"
	Pasta       = "pasta"
)

// Paths are the programs of the gates. An empty one is looked up in PATH.
type Paths struct {
	Gatekit, RootlessKit, Slirp4netns, Pasta string
}

// Forward is a port on the host that leads to one in the child.
type Forward struct {
	Proto  string // "tcp" or "udp"
	Parent netip.AddrPort
	Child  uint16
}

// Work is what a gate is started for.
type Work struct {
	MTU      int
	Forwards []Forward

	// StateDir is a directory that does not exist yet, for gates that want one.
	StateDir string

	// IDs are those to map, where the user has fewer than gatekit takes by
	// itself. The zero value leaves that to the gate.
	IDs IDs

	// Command is run inside.
	Command []string
}

// IDs are a user (and group) and its subordinate range.
type IDs struct{ User, First, Size int }

// Gate is one that can be started.
type Gate struct {
	// Name is one of the kinds.
	Name string

	// Version says which program it is, and which others it needs.
	Version string

	// Kit is the program that dockerd-rootless.sh can start as its RootlessKit; empty
	// for a gate that cannot be one.
	Kit string

	start func(Work) []string

	// kitEnv tells dockerd-rootless.sh of the Kit.
	kitEnv func(IDs) []string
}

// Command is how to start the gate for that work.
func (g Gate) Command(w Work) []string { return g.start(w) }

// Find returns the gates of these kinds whose programs are there, in that order,
// and for each of the others an error that says what is missing.
func Find(ctx context.Context, p Paths, kinds ...string) ([]Gate, []error) {
	var found []Gate
	var missing []error
	for _, kind := range kinds {
		g, err := find(ctx, p, kind)
		if err != nil {
			missing = append(missing, fmt.Errorf("%s: %w", kind, err))
			continue
		}
		found = append(found, g)
	}
	return found, missing
}

func find(ctx context.Context, p Paths, kind string) (Gate, error) {
	switch kind {
	case Gatekit:
		program, version, err := look(ctx, p.Gatekit, "gatekit")
		return Gate{
			Name: kind, Version: version, Kit: program,
			start:  func(w Work) []string { return gatekit(program, w) },
			kitEnv: gatekitEnv,
		}, err
	case Slirp4netns:
		kit, kitVersion, err := look(ctx, p.RootlessKit, "rootlesskit")
		program, version, err2 := look(ctx, p.Slirp4netns, "slirp4netns")
		version += " with RootlessKit " + kitVersion
		return Gate{
			Name: kind, Version: version, Kit: kit,
			start:  func(w Work) []string { return slirp4netns(kit, program, w) },
			kitEnv: func(IDs) []string { return slirp4netnsEnv(program) },
		}, errors.Join(err, err2)
	case Pasta:
		program, version, err := look(ctx, p.Pasta, "pasta")
		return Gate{Name: kind, Version: version, start: func(w Work) []string { return pasta(program, w) }}, err
	}
	return Gate{}, fmt.Errorf("no such gate; known are %s, %s and %s", Gatekit, Slirp4netns, Pasta)
}

// look finds a program by its path, else by its name.
func look(ctx context.Context, path, name string) (program, version string, err error) {
	if path == "" {
		path = name
	}
	return Look(ctx, path)
}

// Look finds a program and asks it for its version.
func Look(ctx context.Context, name string) (program, version string, err error) {
	if program, err = exec.LookPath(name); err != nil {
		return "", "", err
	}
	if program, err = filepath.Abs(program); err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	return program, parseVersion(string(out)), nil
}

// parseVersion finds the version in what a program prints for --version: the word
// after "version", else the first that has a digit. Some builds of pasta do not
// know their own.
func parseVersion(out string) string {
	line, _, _ := strings.Cut(out, "\n")
	words := strings.Fields(line)
	for i, word := range words[:max(len(words)-1, 0)] {
		if word == "version" && strings.ContainsAny(words[i+1], "0123456789") {
			return strings.TrimRight(words[i+1], ",")
		}
	}
	if i := slices.IndexFunc(words, func(word string) bool { return strings.ContainsAny(word[:1], "0123456789") }); i >= 0 {
		return words[i]
	}
	return "of unknown version"
}

func gatekit(program string, w Work) []string {
	args := []string{program, "--net=slirp", "--mtu=" + strconv.Itoa(w.MTU), "--state-dir=" + w.StateDir}
	args = append(args, w.IDs.flags()...)
	for _, f := range w.Forwards {
		args = append(args, "--publish="+f.spec())
	}
	return append(args, w.Command...)
}

// flags are those that map the ids.
func (ids IDs) flags() []string {
	if ids == (IDs{}) {
		return nil
	}
	var flags []string
	for _, flag := range []string{"--uidmap=", "--gidmap="} {
		flags = append(flags, fmt.Sprintf("%s0:%d:1", flag, ids.User), fmt.Sprintf("%s1:%d:%d", flag, ids.First, ids.Size))
	}
	return flags
}

// gatekitEnv is what docs/docker.md has a user set.
func gatekitEnv(ids IDs) []string {
	return []string{"DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns",
		"DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS=" + strings.Join(ids.flags(), " ")}
}

func slirp4netns(kit, program string, w Work) []string {
	args := []string{kit, "--net=slirp4netns", "--slirp4netns-binary=" + program,
		"--mtu=" + strconv.Itoa(w.MTU), "--state-dir=" + w.StateDir}
	if len(w.Forwards) > 0 {
		args = append(args, "--port-driver=builtin")
	}
	for _, f := range w.Forwards {
		args = append(args, "--publish="+f.spec())
	}
	return append(args, w.Command...)
}

// slirp4netnsEnv is what dockerd-rootless.sh sets by itself where it finds slirp4netns in
// PATH.
func slirp4netnsEnv(program string) []string {
	return []string{"DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns", "DOCKERD_ROOTLESS_ROOTLESSKIT_MTU=65520",
		"DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS=--slirp4netns-binary=" + program}
}

// spec is a forward as gatekit and RootlessKit write it.
func (f Forward) spec() string {
	return fmt.Sprintf("%v:%d/%s", f.Parent, f.Child, f.Proto)
}

// pasta takes the host's address for the child where it is not given another, and
// the host could then not be reached by that address.
func pasta(program string, w Work) []string {
	args := []string{program, "--config-net", "--foreground", "--quiet", "--mtu", strconv.Itoa(w.MTU),
		"--address", "10.0.2.100", "--netmask", "24", "--gateway", "10.0.2.2"}
	if len(w.Forwards) == 0 {
		args = append(args, "--tcp-ports", "none", "--udp-ports", "none")
	}
	for _, f := range w.Forwards {
		where := fmt.Sprintf("%d:%d", f.Parent.Port(), f.Child)
		if !f.Parent.Addr().IsUnspecified() {
			where = f.Parent.Addr().String() + "/" + where
		}
		args = append(args, "--"+f.Proto+"-ports", where)
	}
	args = append(args, "--tcp-ns", "none", "--udp-ns", "none", "--")
	return append(args, w.Command...)
}
