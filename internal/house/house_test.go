// Package house holds the rules of the house as tests, so that a change which
// breaks one fails before a reader has to find it: who imports whom, where
// unsafe code may be, what every package and exported name says of itself. It
// exports nothing; the tests are all of it.
//
// The tests read the module's files as they are on disk, tracked or not, and
// parse its Go files without compiling them. Each finding names its place and
// the rule, so that the message is the remedy. CONTRIBUTING.md tells the rules
// in prose. A rule that finds nothing is worth nothing unless it would: each is
// also held against testdata/broken.txtar, a small module that breaks them all.
package house

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// A report collects what a rule finds.
type report struct {
	findings []string
}

func (r *report) add(format string, args ...any) {
	r.findings = append(r.findings, fmt.Sprintf(format, args...))
}

// rules are all of them, each with what it finds in testdata/broken.txtar: the start
// of every finding, in order.
var rules = []struct {
	name   string
	check  func(*report, *tree)
	broken []string
}{
	{"imports point down", importsPointDown, []string{
		"elsewhere/elsewhere.go: elsewhere is no room",
		"examples/embed/main.go:4: an example imports what anybody can",
		"pkg/child/child.go:6: only tests import internal/testenv",
		"pkg/child/child.go:7: pkg/child may not import pkg/parent",
		"pkg/child/child_test.go:9: pkg/child may not import pkg/parent",
		"pkg/network/network.go:5: pkg/network may not import pkg/network/slirp",
		"pkg/network/slirp/tcp/tcp.go:6: pkg/network/slirp may not import pkg/network/hostnic",
	}},
	{"libraries stay in their rooms", librariesStayInTheirRooms, []string{
		"pkg/network/network.go:6: gvisor.dev/gvisor/pkg/tcpip is for pkg/network/slirp",
	}},
	{"sharp tools are in internal/linux only", sharpToolsAreInInternalLinuxOnly, []string{
		"internal/handshake/handshake.go:4: unsafe ",
		"internal/handshake/handshake.go:10: unix.IoctlSetInt ",
		"internal/handshake/handshake.go:10: unix.EINTR ",
		"internal/handshake/handshake.go:11: syscall.RawSyscall ",
		"internal/handshake/handshake.go:6: go:linkname ",
	}},
	{"libraries leave the process alone", librariesLeaveTheProcessAlone, []string{
		"pkg/flows/flows.go:11: os.Setenv ",
		"pkg/flows/flows.go:12: signal.Notify ",
		"pkg/flows/flows.go:10: init ",
		"pkg/port/port.go:4: log ",
		"pkg/port/port.go:7: fmt.Println ",
		"pkg/port/port.go:9: slog.Info ",
		"pkg/port/port.go:12: os.Exit ",
	}},
	{"libraries keep no state", librariesKeepNoState, []string{
		"pkg/flows/flows.go:16: last ",
		"pkg/flows/flows.go:17: seen ",
		"pkg/flows/flows.go:18: seen ",
	}},
	{"texts name fields and no flags", textsNameFieldsAndNoFlags, []string{
		"internal/flagnames/flagnames.go:6: no program has a flag --copy-over",
		"internal/flagnames/flagnames.go:6: there is no flows.Options.Gone",
		"pkg/flows/flows.go:33: --copy-up is a flag of ours",
		"pkg/flows/flows.go:35: there is no flows.Options.Mood",
		"pkg/flows/flows.go:36: flows.Options.Mode has no flag",
	}},
	{"every option has a comment", everyOptionHasAComment, []string{
		"pkg/flows/flows.go:29: Mode of Options ",
	}},
	{"the surface names nothing internal", theSurfaceNamesNothingInternal, []string{
		"pkg/flows/flows.go:40: linux.Stream ",
		"pkg/flows/flows.go:43: linux.Stream ",
	}},
	{"every package has one comment", everyPackageHasOneComment, []string{
		"cmd/gatectl/main.go: the package comment starts with",
		"pkg/api: 2 files have a package comment",
		"pkg/copyup: 0 files have a package comment",
	}},
	{"packages are named for what they hold", packagesAreNamedForWhatTheyHold, []string{
		"internal/utils/utils.go: \"utils\" says nothing",
	}},
	{"every exported name has a comment", everyExportedNameHasAComment, []string{
		"pkg/parent/parent.go:4: Gate ",
		"pkg/parent/parent.go:9: Method ",
		"pkg/parent/parent.go:12: Run ",
		"pkg/parent/parent.go:14: Loose ",
		"pkg/parent/parent.go:24: Bare ",
	}},
	{"files and functions are short", filesAndFunctionsAreShort, []string{
		"pkg/port/long.go has 704 lines",
		"pkg/port/long.go:4: long has 701 lines",
	}},
	{"nothing is left to do", nothingIsLeftToDo, []string{
		"internal/statedir/statedir.go:4: " + "TO" + "DO in a comment",
	}},
	{"skips have a proof", skipsHaveAProof, []string{
		"pkg/child/child_test.go:14: t.Skip",
		"pkg/child/child_test.go:15: testing.Short",
	}},
	{"tests do not sleep", testsDoNotSleep, []string{
		"internal/testenv/testenv.go:6: time.Sleep",
		"pkg/child/child_test.go:16: time.Sleep",
	}},
	{"no file names a path of this machine", noFileNamesAPathOfThisMachine, []string{
		"notes.md:2: ",
	}},
}

func TestTheHouseKeepsItsRules(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := load(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.files) == 0 {
		t.Fatal("no Go files: the rules were held against nothing")
	}
	for _, rule := range rules {
		t.Run(rule.name, func(t *testing.T) {
			var r report
			rule.check(&r, tree)
			for _, finding := range r.findings {
				t.Error(finding)
			}
		})
	}
}

func TestEveryRuleFindsWhatBreaksIt(t *testing.T) {
	root := filepath.Join(t.TempDir(), "module")
	broken, err := txtar.ParseFile("testdata/broken.txtar")
	if err != nil {
		t.Fatal(err)
	}
	// Two that a machine writes better.
	broken.Files = append(broken.Files,
		txtar.File{Name: "notes.md", Data: []byte("The clone\nis in " + root + "/here.\n")},
		txtar.File{Name: "pkg/port/long.go", Data: []byte("package port\n\n// long is long.\nfunc long() {\n" + strings.Repeat("\n", 699) + "}\n")})
	for _, file := range broken.Files {
		name := filepath.Join(root, file.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, file.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := load(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules {
		t.Run(rule.name, func(t *testing.T) {
			var r report
			rule.check(&r, tree)
			for i, want := range rule.broken {
				if i >= len(r.findings) || !strings.HasPrefix(r.findings[i], want) {
					t.Errorf("finding %d does not start with %q", i, want)
				}
			}
			if len(r.findings) != len(rule.broken) || t.Failed() {
				t.Errorf("found %d, want %d:\n%s", len(r.findings), len(rule.broken), strings.Join(r.findings, "\n"))
			}
		})
	}
}
