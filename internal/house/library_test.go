package house

import (
	"go/ast"
	"go/token"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A library shares its process with a program that it does not know: it leaves alone
// what belongs to the process, says nothing but by errors and the logger that it was
// given, and keeps nothing between calls.

// ofTheProcess are names that change what belongs to the process, or speak in its
// name.
var ofTheProcess = map[string][]string{
	"fmt":     {"Print", "Printf", "Println"},
	"os":      {"Exit", "Setenv", "Unsetenv", "Clearenv", "Chdir", "Args", "Stdin", "Stdout", "Stderr"},
	"signal":  {"Notify", "NotifyContext", "Ignore", "Reset"},
	"slog":    {"Default", "SetDefault", "Debug", "Info", "Warn", "Error"},
	"syscall": {"Umask", "Chroot"},
	"unix":    {"Umask", "Chroot"},
}

// excused are the uses that have a reason.
var excused = map[string][]string{
	// The child has its process to itself: child.Main is its whole life.
	"pkg/child": {"os.Args", "os.Chdir", "signal.Notify"},
	// Options.Stdin and so on are the process's where they are not given.
	"pkg/parent/options.go": {"os.Args", "os.Stdin", "os.Stdout", "os.Stderr"},
	// Options.Signals names them, and Run gives them back.
	"pkg/parent/signals.go": {"signal.Notify"},
	// It undoes what the Go runtime has done, around a fork.
	"internal/linux": {"init"},
}

func librariesLeaveTheProcessAlone(r *report, tree *tree) {
	for f := range tree.libraries {
		excuse := func(name string) bool {
			return slices.Contains(excused[f.dir], name) || slices.Contains(excused[f.name], name)
		}
		for path, spec := range f.imports {
			if path == "log" {
				r.add("%s: log through a *slog.Logger that was given", tree.place(f, spec))
			}
		}
		for s := range f.selectors {
			if name := s.x + "." + s.name; slices.Contains(ofTheProcess[s.x], s.name) && !excuse(name) {
				r.add("%s: %s is for cmd only: return an error, log through a *slog.Logger that was given, take an option", tree.place(f, s.node), name)
			}
		}
		for _, d := range f.functions {
			if d.Recv == nil && d.Name.Name == "init" && !excuse("init") {
				r.add("%s: init runs in programs that only import the package: do it where it is asked for", tree.place(f, d))
			}
		}
	}
}

// functions are the file's functions and methods.
func (f *goFile) functions(yield func(int, *ast.FuncDecl) bool) {
	for i, decl := range f.ast.Decls {
		if d, ok := decl.(*ast.FuncDecl); ok && !yield(i, d) {
			return
		}
	}
}

// Two gates in one process know nothing of each other: what is declared outside of
// functions stays what it is.
func librariesKeepNoState(r *report, tree *tree) {
	variables := map[string]map[string]bool{} // of each folder
	for _, f := range tree.files {
		for _, decl := range f.ast.Decls {
			d, ok := decl.(*ast.GenDecl)
			if !ok || d.Tok != token.VAR || f.test {
				continue
			}
			if variables[f.dir] == nil {
				variables[f.dir] = map[string]bool{}
			}
			for _, spec := range d.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					variables[f.dir][name.Name] = name.Name != "_"
				}
			}
		}
	}
	for f := range tree.libraries {
		for _, d := range f.functions {
			local := declared(d)
			for _, target := range assigned(d) {
				if id := root(target); id != nil && variables[f.dir][id.Name] && !local[id.Name] {
					r.add("%s: %s is changed, and shared by all in the process: keep it in what a caller has made", tree.place(f, id), id.Name)
				}
			}
		}
	}
}

// declared are the names that a function declares: parameters and variables.
func declared(d *ast.FuncDecl) map[string]bool {
	names := map[string]bool{}
	ast.Inspect(d, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			for _, name := range n.Names {
				names[name.Name] = true
			}
		case *ast.ValueSpec:
			for _, name := range n.Names {
				names[name.Name] = true
			}
		case *ast.AssignStmt:
			for _, e := range n.Lhs {
				if id, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
					names[id.Name] = true
				}
			}
		case *ast.RangeStmt:
			for _, e := range []ast.Expr{n.Key, n.Value} {
				if id, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
					names[id.Name] = true
				}
			}
		}
		return true
	})
	return names
}

// assigned are what a function assigns to, counts up or down, or deletes from.
func assigned(d *ast.FuncDecl) []ast.Expr {
	var targets []ast.Expr
	ast.Inspect(d, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				targets = append(targets, n.Lhs...)
			}
		case *ast.IncDecStmt:
			targets = append(targets, n.X)
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "delete" || id.Name == "clear") && len(n.Args) > 0 {
				targets = append(targets, n.Args[0])
			}
		}
		return true
	})
	return targets
}

// root is the variable that an expression is in.
func root(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// The texts of libraries name fields of options, and the programs put their flags in
// their place (flagnames.Spell): a library's text names no flag of ours, each field in
// one exists and has its flag in internal/flagnames's table, and that flag exists.
func textsNameFieldsAndNoFlags(r *report, tree *tree) {
	const table = "internal/flagnames"
	var (
		flag    = regexp.MustCompile("(?:^|[\\s(`])--([a-z][a-z0-9-]*)")
		field   = regexp.MustCompile(`\b([a-z]+)\.([A-Za-z]*Options)\.([A-Z]\w*)(=false\b)?`)
		others  = regexp.MustCompile(`\b(gatectl|systemd-run)\b`) // whose flags follow
		flags   = flagsOfPrograms(tree)
		fields  = fieldsOfOptions(tree)
		spelled = map[string]bool{}
	)
	for f := range tree.code(table) {
		for text, lit := range f.texts {
			if field.FindString(text) == text && text != "" {
				spelled[text] = true
			}
			command, name, _ := strings.Cut(text, " --")
			name, _, _ = strings.Cut(name, "=")
			if (command == "gatekit" || strings.HasPrefix(command, "gatectl ")) && name != "" && !flags[name] {
				r.add("%s: no program has a flag --%s", tree.place(f, lit), name)
			}
		}
	}
	for f := range tree.code("pkg", table) {
		for text, lit := range f.texts {
			for _, m := range field.FindAllStringSubmatch(text, -1) {
				if !fields[m[1]+"."+m[2]+"."+m[3]] {
					r.add("%s: there is no %s.%s.%s", tree.place(f, lit), m[1], m[2], m[3])
				} else if !spelled[m[0]] && !spelled[strings.TrimSuffix(m[0], "=false")] {
					r.add("%s: %s has no flag in %s", tree.place(f, lit), m[0], table)
				}
			}
			if !f.under("pkg") {
				continue
			}
			for _, at := range flag.FindAllStringSubmatchIndex(text, -1) {
				if name := text[at[2]:at[3]]; flags[name] && !others.MatchString(text[:at[0]]) {
					r.add("%s: --%s is a flag of ours, and means nothing to other programs: name the field of options", tree.place(f, lit), name)
				}
			}
		}
	}
}

// texts are the file's string literals.
func (f *goFile) texts(yield func(string, *ast.BasicLit) bool) {
	more := true
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && more && lit.Kind == token.STRING {
			if text, err := strconv.Unquote(lit.Value); err == nil {
				more = yield(text, lit)
			}
		}
		return more
	})
}

// flagsOfPrograms are the names in the literals of cli's flags below cmd.
func flagsOfPrograms(tree *tree) map[string]bool {
	flags := map[string]bool{}
	for f := range tree.code("cmd") {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			typ, ok := lit.Type.(*ast.SelectorExpr)
			if !ok || !strings.HasSuffix(typ.Sel.Name, "Flag") {
				return true
			}
			for _, e := range lit.Elts {
				kv, ok := e.(*ast.KeyValueExpr)
				if !ok {
					continue
				}
				key, isID := kv.Key.(*ast.Ident)
				value, isLit := kv.Value.(*ast.BasicLit)
				if isID && isLit && key.Name == "Name" {
					name, _ := strconv.Unquote(value.Value)
					flags[name] = true
				}
			}
			return true
		})
	}
	return flags
}

// fieldsOfOptions are those of the exported structs below pkg whose names end in
// Options, as package.Struct.Field.
func fieldsOfOptions(tree *tree) map[string]bool {
	fields := map[string]bool{}
	for f := range tree.code("pkg") {
		for name, s := range f.structs {
			if !strings.HasSuffix(name, "Options") {
				continue
			}
			for _, field := range s.Fields.List {
				for _, id := range field.Names {
					fields[f.ast.Name.Name+"."+name+"."+id.Name] = true
				}
			}
		}
	}
	return fields
}

// Every field of an exported struct of options says what it is, and so what its zero
// value means: who reads has nothing else.
func everyOptionHasAComment(r *report, tree *tree) {
	for f := range tree.code("pkg") {
		for name, s := range f.structs {
			if !strings.HasSuffix(name, "Options") || !ast.IsExported(name) {
				continue
			}
			for _, field := range s.Fields.List {
				exported := slices.ContainsFunc(field.Names, (*ast.Ident).IsExported)
				if exported && field.Doc == nil && field.Comment == nil {
					r.add("%s: %s of %s has no comment", tree.place(f, field), field.Names[0].Name, name)
				}
			}
		}
	}
}

// structs are the struct types of the file by name, in order.
func (f *goFile) structs(yield func(string, *ast.StructType) bool) {
	found := map[string]*ast.StructType{}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			if s, ok := spec.Type.(*ast.StructType); ok {
				found[spec.Name.Name] = s
			}
		}
		return true
	})
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if !yield(name, found[name]) {
			return
		}
	}
}

// What a package offers can be named by who imports it: no type below internal is in
// the signature of an exported function, an exported field or an exported variable.
func theSurfaceNamesNothingInternal(r *report, tree *tree) {
	for f := range tree.code("pkg") {
		internal := map[string]bool{} // package names
		for path := range f.imports {
			if dir, ours := strings.CutPrefix(path, module+"/internal/"); ours {
				internal[dir[strings.LastIndexByte(dir, '/')+1:]] = true
			}
		}
		for _, surface := range f.surface {
			ast.Inspect(surface, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.Ident); ok && internal[x.Name] {
						r.add("%s: %s.%s is in what the package offers, and nobody outside can name it", tree.place(f, s), x.Name, s.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// surface are the types that the file's exported declarations show.
func (f *goFile) surface(yield func(string, ast.Node) bool) {
	for _, decl := range f.ast.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && (d.Recv == nil || !unexportedReceiver(d)) && !yield(d.Name.Name, d.Type) {
				return
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.ValueSpec:
					if s.Names[0].IsExported() && s.Type != nil && !yield(s.Names[0].Name, s.Type) {
						return
					}
				case *ast.TypeSpec:
					if s.Name.IsExported() && !yieldFields(s, yield) {
						return
					}
				}
			}
		}
	}
}

// yieldFields yields what a type shows: of a struct its exported fields.
func yieldFields(s *ast.TypeSpec, yield func(string, ast.Node) bool) bool {
	typ, ok := s.Type.(*ast.StructType)
	if !ok {
		return yield(s.Name.Name, s.Type)
	}
	for _, field := range typ.Fields.List {
		shown := len(field.Names) == 0 || slices.ContainsFunc(field.Names, (*ast.Ident).IsExported)
		if shown && !yield(s.Name.Name, field.Type) {
			return false
		}
	}
	return true
}
