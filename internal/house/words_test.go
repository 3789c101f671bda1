package house

import (
	"bytes"
	"go/ast"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Every package says, in one place, what belongs there.
func everyPackageHasOneComment(r *report, tree *tree) {
	comments := map[string][]string{} // by folder
	testOnly := map[string]bool{}
	for _, f := range tree.files {
		if _, seen := testOnly[f.dir]; !seen {
			testOnly[f.dir] = true
		}
		testOnly[f.dir] = testOnly[f.dir] && f.test
	}
	for _, f := range tree.files {
		if f.ast.Doc == nil || f.test && !testOnly[f.dir] {
			continue
		}
		comments[f.dir] = append(comments[f.dir], f.name)
		name := f.ast.Name.Name
		want := "Package " + name + " "
		if name == "main" {
			want = "Command " + path.Base(f.dir) + " "
		}
		if text := f.ast.Doc.Text(); !strings.HasPrefix(text, want) {
			r.add("%s: the package comment starts with %q, want %q", f.name, firstLine(text), want)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(testOnly)) {
		if n := len(comments[dir]); n != 1 {
			r.add("%s: %d files have a package comment, want 1: %v", dir, n, comments[dir])
		}
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// Packages are named for what they hold.
func packagesAreNamedForWhatTheyHold(r *report, tree *tree) {
	for _, f := range tree.files {
		if name := path.Base(f.dir); slices.Contains([]string{"util", "utils", "common", "types", "helper", "helpers", "misc"}, name) {
			r.add("%s: %q says nothing of what the package holds", f.name, name)
		}
	}
}

// Every exported name says what it is. A comment on a group of constants or
// variables speaks for its members, and methods that fulfil a contract of the
// standard library speak for themselves.
func everyExportedNameHasAComment(r *report, tree *tree) {
	for f := range tree.code("pkg", "internal") {
		for _, decl := range f.ast.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && !(d.Recv != nil && (unexportedReceiver(d) || wellKnown(d.Name.Name))) {
					r.add("%s: %s has no comment", tree.place(f, d), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					for _, name := range uncommented(d, spec) {
						r.add("%s: %s has no comment", tree.place(f, spec), name)
					}
				}
			}
		}
	}
}

// unexportedReceiver reports whether the method belongs to a type that no
// other package can name.
func unexportedReceiver(d *ast.FuncDecl) bool {
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return !x.IsExported()
		default:
			return false
		}
	}
}

func wellKnown(method string) bool {
	return slices.Contains([]string{"Error", "String", "Unwrap", "Is", "As", "MarshalJSON", "UnmarshalJSON",
		"MarshalText", "UnmarshalText", "Len", "Less", "Swap"}, method)
}

// uncommented are the exported names of a spec that nothing speaks for.
func uncommented(d *ast.GenDecl, spec ast.Spec) []string {
	grouped := d.Doc != nil && (d.Tok == token.CONST || d.Tok == token.VAR || len(d.Specs) == 1)
	switch s := spec.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() && s.Doc == nil && !grouped {
			return []string{s.Name.Name}
		}
	case *ast.ValueSpec:
		if s.Doc != nil || s.Comment != nil || grouped {
			return nil
		}
		var names []string
		for _, name := range s.Names {
			if name.IsExported() {
				names = append(names, name.Name)
			}
		}
		return names
	}
	return nil
}

// A file that outgrows this asks to be two rooms, and so does a function.
const (
	fileLines     = 600
	functionLines = 100
)

func filesAndFunctionsAreShort(r *report, tree *tree) {
	for _, f := range tree.files {
		if f.test {
			continue
		}
		lines := func(node ast.Node) int {
			return tree.fset.Position(node.End()).Line - tree.fset.Position(node.Pos()).Line + 1
		}
		if n := tree.fset.File(f.ast.FileStart).LineCount(); n > fileLines {
			r.add("%s has %d lines, at most %d: it asks to be two", f.name, n, fileLines)
		}
		for _, decl := range f.ast.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && lines(d) > functionLines {
				r.add("%s: %s has %d lines, at most %d: it asks to be two", tree.place(f, d), d.Name.Name, lines(d), functionLines)
			}
		}
	}
}

// Nothing is left for someone else.
func nothingIsLeftToDo(r *report, tree *tree) {
	left := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)
	for _, f := range tree.files {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if found := left.FindString(c.Text); found != "" {
					r.add("%s: %s in a comment: do it, or say what is not done and why", tree.place(f, c), found)
				}
			}
		}
	}
}

// A test is skipped by testenv.Skip alone, which wants a proof and fails under
// GATEKIT_TEST_STRICT=1.
func skipsHaveAProof(r *report, tree *tree) {
	for _, f := range tree.files {
		if f.under(testenv) {
			continue
		}
		for s := range f.selectors {
			skip := slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, s.name) && s.x != "testenv" && s.x != "filepath" && s.x != "fs"
			if f.test && skip || s.x == "testing" && s.name == "Short" {
				r.add("%s: %s.%s: skip by testenv.Skip, with a proof", tree.place(f, s.node), s.x, s.name)
			}
		}
	}
}

// A test waits for what it wants to see, not for time to pass.
func testsDoNotSleep(r *report, tree *tree) {
	for _, f := range tree.files {
		if !f.test && !f.under("test", testenv) {
			continue
		}
		for s := range f.selectors {
			if s.x == "time" && s.name == "Sleep" {
				r.add("%s: time.Sleep in a test: wait for the event", tree.place(f, s.node))
			}
		}
	}
}

// The tree reads the same on every machine: no file names the place where it
// lies, or somebody's home.
func noFileNamesAPathOfThisMachine(r *report, tree *tree) {
	private := []string{tree.root}
	if home, err := os.UserHomeDir(); err == nil && strings.Count(home, "/") > 1 {
		private = append(private, home)
	}
	// Folders that many machines have are named for good reasons.
	public := []string{"/", "/tmp", "/var/tmp", "/home", "/root", "/src", "/usr/src", "/go/src", "/mnt", "/srv", "/opt"}
	if parent := filepath.Dir(tree.root); !slices.Contains(public, parent) {
		private = append(private, parent)
	}
	for _, name := range tree.names {
		text, err := os.ReadFile(filepath.Join(tree.root, name))
		if err != nil {
			r.add("%v", err)
			continue
		}
		if bytes.IndexByte(text, 0) >= 0 {
			continue // no text: a program that was built here
		}
		for i, line := range bytes.Split(text, []byte("\n")) {
			at := slices.IndexFunc(private, func(p string) bool { return bytes.Contains(line, []byte(p+"/")) })
			if at >= 0 {
				r.add("%s:%d: %s is a path of this machine", name, i+1, private[at])
			}
		}
	}
}
