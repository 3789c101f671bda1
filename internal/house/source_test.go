package house

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// module is the path in go.mod.
const module = "github.com/gatekit/gatekit"

// A tree is the module's files.
type tree struct {
	root  string // absolute
	fset  *token.FileSet
	files []*goFile
	names []string // of every file, relative to root
}

// A goFile is one parsed Go file.
type goFile struct {
	name string // relative to root, with slashes
	dir  string // of name; "." at the root
	test bool   // a _test.go file
	ast  *ast.File
}

// load reads the module whose root is root.
func load(root string) (*tree, error) {
	t := &tree{root: root, fset: token.NewFileSet()}
	return t, filepath.WalkDir(root, t.visit)
}

// moduleRoot is the folder above the working directory that has a go.mod.
func moduleRoot() (string, error) {
	root, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			return root, nil
		}
		if root == "/" {
			return "", errors.New("no go.mod above the working directory")
		}
		root = filepath.Dir(root)
	}
}

func (t *tree) visit(file string, entry fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	name, err := filepath.Rel(t.root, file)
	if err != nil {
		return err
	}
	name = filepath.ToSlash(name)
	if entry.IsDir() {
		// bin holds what make built; testdata is not of the house.
		if slices.Contains([]string{".git", "bin"}, name) || entry.Name() == "testdata" {
			return filepath.SkipDir
		}
		return nil
	}
	if !entry.Type().IsRegular() {
		return nil
	}
	t.names = append(t.names, name)
	if path.Ext(name) != ".go" {
		return nil
	}
	parsed, err := parser.ParseFile(t.fset, file, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	t.files = append(t.files, &goFile{
		name: name,
		dir:  path.Dir(name),
		test: strings.HasSuffix(name, "_test.go"),
		ast:  parsed,
	})
	return nil
}

// place says where a node is: file:line.
func (t *tree) place(f *goFile, node ast.Node) string {
	return fmt.Sprintf("%s:%d", f.name, t.fset.Position(node.Pos()).Line)
}

// code are the files in the folders or below them that are no tests.
func (t *tree) code(dirs ...string) iter.Seq[*goFile] {
	return func(yield func(*goFile) bool) {
		for _, f := range t.files {
			if !f.test && f.under(dirs...) && !yield(f) {
				return
			}
		}
	}
}

// libraries are what other programs may import, or what those import of ours.
func (t *tree) libraries(yield func(*goFile) bool) {
	for f := range t.code("pkg", "internal") {
		if !f.under(testenv) && !yield(f) {
			return
		}
	}
}

// under reports whether the file is in dir or below it.
func (f *goFile) under(dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		return f.dir == dir || strings.HasPrefix(f.dir, dir+"/")
	})
}

// imports are the file's import paths, with the spec of each.
func (f *goFile) imports(yield func(string, *ast.ImportSpec) bool) {
	for _, spec := range f.ast.Imports {
		if !yield(strings.Trim(spec.Path.Value, `"`), spec) {
			return
		}
	}
}

// A selector is an expression of the form x.name where x is a plain
// identifier: a name of a package, or a method or field of a variable.
type selector struct {
	x, name string
	node    ast.Node
}

// selectors are those of the file.
func (f *goFile) selectors(yield func(selector) bool) {
	more := true
	ast.Inspect(f.ast, func(node ast.Node) bool {
		if s, ok := node.(*ast.SelectorExpr); ok && more {
			if x, ok := s.X.(*ast.Ident); ok {
				more = yield(selector{x.Name, s.Sel.Name, s})
			}
		}
		return more
	})
}
