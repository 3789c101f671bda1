package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// exported are the exported names of a package, those of its fields and methods
// included.
func exported(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "pkg", filepath.FromSlash(dir), "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files of pkg/%s: %v", dir, err)
	}
	names := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				names[n.Name.Name] = true
				return false
			case *ast.TypeSpec:
				names[n.Name.Name] = true
			case *ast.ValueSpec:
				for _, id := range n.Names {
					names[id.Name] = true
				}
			case *ast.Field:
				for _, id := range n.Names {
					names[id.Name] = true
				}
			}
			return true
		})
	}
	return names
}

// rootlessKit are the flags of RootlessKit, of all versions from 1.1 to 3.
const rootlessKit = `debug print-semver state-dir net pasta-binary pesto-binary slirp4netns-binary slirp4netns-sandbox slirp4netns-seccomp
	vpnkit-binary lxc-user-nic-binary lxc-user-nic-bridge mtu cidr ifname disable-host-loopback ipv6 detach-netns copy-up copy-up-mode
	port-driver publish p source-ip-transparent source-ip-transparent-backend pidns cgroupns utsns ipcns propagation reaper
	evacuate-cgroup2 subid-source help version`

func TestEveryFlagOfRootlessKitIsTakenAndDescribed(t *testing.T) {
	taken := flagsOf(help(t, filepath.Join(programs(t), "gatekit")))
	described, err := os.ReadFile("reference.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(rootlessKit) {
		flag := "--" + name
		if len(name) == 1 {
			flag = "-" + name
		}
		if !slices.Contains(taken, flag) {
			t.Errorf("gatekit does not take %s", flag)
		}
		if !strings.Contains(string(described), "`"+flag+"`") {
			t.Errorf("reference.md does not have %s", flag)
		}
	}
}

// The right side of the tables is ours, and names what there is.
func TestTheNewNamesOfTheMigrationExist(t *testing.T) {
	text, err := os.ReadFile("migrating-from-rootlesskit.md")
	if err != nil {
		t.Fatal(err)
	}
	packages := map[string]map[string]bool{}
	for name, dir := range map[string]string{
		"parent": "parent", "child": "child", "network": "network", "slirp": "network/slirp", "hostnic": "network/hostnic",
		"port": "port", "builtin": "port/builtin", "api": "api", "client": "api/client",
	} {
		packages[name] = exported(t, dir)
	}
	qualified := regexp.MustCompile(`\b([a-z]+)\.([A-Z]\w*)`)
	found := 0
	for _, row := range rows(string(text)) {
		for _, m := range qualified.FindAllStringSubmatch(row[len(row)-1], -1) {
			names, ours := packages[m[1]]
			if !ours {
				continue
			}
			found++
			if !names[m[2]] {
				t.Errorf("%s is no name of ours, in: %s", m[0], row[len(row)-1])
			}
		}
		for _, m := range regexp.MustCompile("`Options\\.(\\w+)").FindAllStringSubmatch(row[len(row)-1], -1) {
			found++
			if !packages["parent"][m[1]] {
				t.Errorf("parent.Options has no %s", m[1])
			}
		}
	}
	if found < 30 {
		t.Errorf("%d names found: are the tables read right?", found)
	}
}

// A program of the shape that embedders have, in whose places the lines of the
// document go.
const (
	embedder = `package main

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/child"
	"github.com/gatekit/gatekit/pkg/network/slirp"
	"github.com/gatekit/gatekit/pkg/parent"
)

const childEnv = "EMBEDDER_SOCK"

func main() {
	rootlessDir, enableIPv6 := os.Args[1], true
	LINE
		LINE
	}
	if os.Getenv(childEnv) != "" {
		return
	}
	LINE
	if err != nil {
		panic(err)
	}
	LINE
	LINE
		panic(err)
	}
}

LINE
	LINE
		StateDir:    stateDir,
		CreatePIDNS: true,
		LINE
		LINE
		LINE
	}
	opt.EvacuateCgroup2 = "group"
	cidr, mtu, disableHostLoopback := "10.41.0.0/16", 0, true
	LINE
	if err != nil {
		return nil, err
	}
	LINE
	if err != nil {
		return nil, err
	}
	opt.CopyUpDirs = []string{"/etc", "/run"}
	return opt, nil
}
`
	publisher = `package main

import (
	"context"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

var rootless = struct{ Sock string }{"api.sock"}

func main() {
	ctx := context.Background()
	LINE
	LINE
		panic(err)
	}
	h := &handler{rootlessClient: rootlessClient, ctx: ctx}
	h.publish()
}

type handler struct {
	LINE
	ctx context.Context
}

func (h *handler) publish() {
	LINE
	if err != nil {
		panic(err)
	}
	id := 0
	for _, port := range ports {
		id += port.ID + port.Spec.ParentPort + len(port.Spec.Proto)
	}
	LINE
		Proto:      "tcp",
		ParentPort: 8080,
		ChildPort:  80,
	})
	if err != nil {
		panic(err)
	}
	println(status.Spec.ParentIP)
	LINE
		panic(err)
	}
}
`
)

// Each table says all of the lines that change, no more than a dozen, and with them
// the program is one.
func TestTheLinesOfTheMigrationMakeAProgram(t *testing.T) {
	text, err := os.ReadFile("migrating-from-rootlesskit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## A program like k3s")
	section, _, _ = strings.Cut(section, "\n## ")
	first, second, _ := strings.Cut(section, "`pkg/rootlessports`")
	for name, c := range map[string]struct{ section, program string }{
		"pkg/rootless": {first, embedder}, "pkg/rootlessports": {second, publisher},
	} {
		t.Run(name, func(t *testing.T) {
			lines := rows(c.section)
			if places := strings.Count(c.program, "LINE"); len(lines) != places || len(lines) > 12 {
				t.Fatalf("the table has %d lines, want the %d of the program, a dozen at most", len(lines), places)
			}
			program := c.program
			for _, row := range lines {
				program = strings.Replace(program, "LINE", strings.Trim(row[len(row)-1], "` "), 1)
			}
			file := filepath.Join(t.TempDir(), "main.go")
			if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("go", "build", "-o", os.DevNull, file).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s\n%s", err, out, program)
			}
		})
	}
}
