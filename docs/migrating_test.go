package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
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
