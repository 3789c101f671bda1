package house

import (
	"slices"
	"strings"
)

// Imports point down: a room imports rooms of a lower rank only. So the child
// never imports the parent (which knows what it tells the child), nor does one
// driver import another, and the contracts know none of their drivers. A pattern that ends in "/*" makes every
// folder below a room of its own. The first pattern that matches counts. A test
// may import its neighbours too: the server is tested with the client.
var rooms = []struct {
	pattern string
	rank    int
}{
	{"cmd/*", 6},
	{"examples/*", 6},
	{"bench", 6},
	{"scripts/*", 6},
	{"test", 6},
	{"docs", 6},

	{"pkg/parent", 5},
	{"pkg/child", 4},

	{"pkg/network/*", 3},
	{"pkg/port/*", 3},
	{"pkg/copyup", 3},
	{"pkg/api/*", 3},

	{"internal/linux", 0},
	{"internal/*", 2},

	{"pkg/network", 1},
	{"pkg/port", 1},
	{"pkg/flows", 1},
	{"pkg/api", 0},
}

// testenv is for tests of any room, and for nothing else.
const testenv = "internal/testenv"

// roomOf is the room that a folder belongs to, and its rank.
func roomOf(dir string) (room string, rank int, ok bool) {
	for _, r := range rooms {
		parent, each := strings.CutSuffix(r.pattern, "/*")
		switch {
		case !each && (dir == r.pattern || strings.HasPrefix(dir, r.pattern+"/")):
			return r.pattern, r.rank, true
		case each && strings.HasPrefix(dir, parent+"/"):
			name, _, _ := strings.Cut(strings.TrimPrefix(dir, parent+"/"), "/")
			return parent + "/" + name, r.rank, true
		}
	}
	return "", 0, false
}

func importsPointDown(r *report, tree *tree) {
	for _, f := range tree.files {
		room, rank, ok := roomOf(f.dir)
		if !ok {
			r.add("%s: %s is no room of the house; give it a place in docs/architecture.md and in the table of this test", f.name, f.dir)
			continue
		}
		for path, spec := range f.imports {
			dir, ours := strings.CutPrefix(path, module+"/")
			if !ours {
				continue
			}
			if dir == testenv {
				if !f.test && room != "test" && room != testenv {
					r.add("%s: only tests import %s", tree.place(f, spec), testenv)
				}
				continue
			}
			if f.under("examples") && !f.test && !strings.HasPrefix(dir, "pkg/") {
				r.add("%s: an example imports what anybody can, packages below pkg: not %s", tree.place(f, spec), dir)
			}
			to, toRank, ok := roomOf(dir)
			if neighbour := f.test && toRank == rank; !ok || to != room && toRank >= rank && !neighbour {
				r.add("%s: %s may not import %s: imports point down", tree.place(f, spec), room, dir)
			}
		}
	}
}

// Where each library of others is used; what is not named is free. A test may
// use any.
var libraries = []struct {
	prefix string
	in     []string
}{
	{"github.com/urfave/cli", []string{"cmd"}},
	{"github.com/gorilla/mux", []string{"pkg/api/server"}},
	{"gvisor.dev/gvisor", []string{"pkg/network/slirp"}},
	{"github.com/insomniacslk/dhcp", []string{"pkg/network"}},
	{"github.com/songgao/water", []string{"internal/linux", "pkg/network"}},
	{"github.com/vishvananda/netlink", []string{"pkg/child", "pkg/network", "internal"}},
	{"github.com/vishvananda/netns", []string{"internal"}},
	{"testing", []string{testenv}},
}

func librariesStayInTheirRooms(r *report, tree *tree) {
	for _, f := range tree.files {
		if f.test || f.under("test", "bench", "examples") {
			continue
		}
		for path, spec := range f.imports {
			for _, l := range libraries {
				if (path == l.prefix || strings.HasPrefix(path, l.prefix+"/")) && !f.under(l.in...) {
					r.add("%s: %s is for %s", tree.place(f, spec), path, strings.Join(l.in, ", "))
				}
			}
		}
	}
}

// The fence: what can corrupt memory or go past the Go runtime is in
// internal/linux, behind functions that retry EINTR and name the call.
func sharpToolsAreInInternalLinuxOnly(r *report, tree *tree) {
	const fence = "internal/linux"
	for _, f := range tree.files {
		if f.under(fence) {
			continue
		}
		for path, spec := range f.imports {
			if path == "unsafe" {
				r.add("%s: unsafe is for %s only", tree.place(f, spec), fence)
			}
		}
		for s := range f.selectors {
			terminal := f.under(testenv) && strings.HasPrefix(s.name, "Ioctl") // a typed one, for tests alone
			if (s.x == "unix" || s.x == "syscall") && sharp(s.name) && !terminal {
				r.add("%s: %s.%s is for %s only", tree.place(f, s.node), s.x, s.name, fence)
			}
		}
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if strings.HasPrefix(c.Text, "//go:linkname ") {
					r.add("%s: go:linkname is for %s only", tree.place(f, c), fence)
				}
			}
		}
	}
}

// sharp reports whether a name of x/sys/unix or syscall is a raw system call,
// an ioctl, or the mark of a hand-written EINTR loop.
func sharp(name string) bool {
	return slices.Contains([]string{"Syscall", "Syscall6", "Syscall9", "SyscallNoError", "RawSyscall", "RawSyscall6",
		"RawSyscallNoError", "AllThreadsSyscall", "AllThreadsSyscall6", "EINTR"}, name) ||
		strings.HasPrefix(name, "Ioctl")
}
