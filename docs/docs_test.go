// Package docs holds the documents. Its tests keep docs/reference.md true: the
// flags and commands are those that the built programs print, and the calls,
// properties and codes of the API are those of pkg/api/openapi.yaml. What
// stands on one side only fails, on either side.
package docs

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// programs builds both programs and returns their directory.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", "./cmd/gatekit", "./cmd/gatectl")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return dir
}

// help is what a program prints for --help.
func help(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, append(args, "--help")...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s --help: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out)
}

var (
	// A line of --help that is about a flag, with all its names.
	helpFlag = regexp.MustCompile(`(?m)^\s+(--?[a-z0-9-]+(?: [A-Za-z:\[\]<>-]+)?(?:, --?[a-z0-9-]+(?: [A-Za-z:\[\]<>-]+)?)*)(?:\s|$)`)
	flagName = regexp.MustCompile(`(?:^|[\s,` + "`" + `])(--?[a-z0-9][a-z0-9-]*)`)
)

// flagsOf are the names of the flags that a --help text lists.
func flagsOf(text string) []string {
	var names []string
	for _, line := range helpFlag.FindAllStringSubmatch(text, -1) {
		names = append(names, namesIn(line[1])...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// namesIn are the flags that a text names.
func namesIn(text string) []string {
	var names []string
	for _, m := range flagName.FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

// reference is docs/reference.md by heading, subheadings included.
func reference(t *testing.T) func(heading string) string {
	t.Helper()
	text, err := os.ReadFile("reference.md")
	if err != nil {
		t.Fatal(err)
	}
	return func(heading string) string {
		level := strings.Index(heading, " ")
		_, section, ok := strings.Cut(string(text), "\n"+heading+"\n")
		if !ok {
			t.Fatalf("reference.md has no heading %q", heading)
		}
		if end := regexp.MustCompile(`(?m)^#{1,` + string(rune('0'+level)) + `} `).FindStringIndex(section); end != nil {
			section = section[:end[0]]
		}
		return section
	}
}

// rows are the tables of a section: cells of every row but the headings.
func rows(section string) [][]string {
	var all [][]string
	lines := strings.Split(section, "\n")
	for i, line := range lines {
		heading := i+1 < len(lines) && strings.HasPrefix(lines[i+1], "|---")
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || heading {
			continue
		}
		var cells []string
		for _, cell := range strings.Split(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		all = append(all, cells)
	}
	return all
}

// flagsIn are the flags of a section's tables, from the first column.
func flagsIn(section string) []string {
	var names []string
	for _, row := range rows(section) {
		if strings.HasPrefix(row[0], "`-") {
			names = append(names, namesIn(row[0])...)
		}
	}
	slices.Sort(names)
	return names
}

func TestFlagsAreThoseOfHelp(t *testing.T) {
	bin, section := programs(t), reference(t)
	for program, heading := range map[string]string{
		"gatekit": "## gatekit [OPTIONS] COMMAND [ARG...]",
		"gatectl": "## gatectl [OPTIONS] COMMAND",
	} {
		t.Run(program, func(t *testing.T) {
			want := flagsOf(help(t, filepath.Join(bin, program)))
			if len(want) < 3 {
				t.Fatalf("%s --help lists %q: are they read right?", program, want)
			}
			if diff := cmp.Diff(want, flagsIn(section(heading))); diff != "" {
				t.Errorf("flags (-help +reference.md):\n%s", diff)
			}
		})
	}
}

// helpCommand is a line of --help that is about a command.
var helpCommand = regexp.MustCompile(`(?m)^   ([a-z][a-z-]*)(?:, [a-z-]+)*  `)

func TestCommandsAreThoseOfHelp(t *testing.T) {
	gatectl, section := filepath.Join(programs(t), "gatectl"), reference(t)
	inHelp := map[string][]string{} // flags by command
	_, commands, ok := strings.Cut(help(t, gatectl), "\nCOMMANDS:\n")
	if !ok {
		t.Fatal("gatectl --help has no COMMANDS")
	}
	commands, _, _ = strings.Cut(commands, "\n\nGLOBAL")
	for _, m := range helpCommand.FindAllStringSubmatch(commands, -1) {
		if m[1] == "help" {
			continue
		}
		inHelp[m[1]] = slices.DeleteFunc(flagsOf(help(t, gatectl, m[1])), func(name string) bool {
			return name == "--help" || name == "-h"
		})
	}
	inReference := map[string][]string{}
	for _, row := range rows(section("## gatectl [OPTIONS] COMMAND")) {
		if len(row) == 3 {
			name, _, _ := strings.Cut(strings.Trim(row[0], "`"), " ")
			inReference[name] = append([]string{}, namesIn(row[1])...)
			slices.Sort(inReference[name])
		}
	}
	empty := cmp.FilterValues(func(a, b []string) bool { return len(a)+len(b) == 0 }, cmp.Ignore())
	if diff := cmp.Diff(inHelp, inReference, empty); diff != "" {
		t.Errorf("commands and their flags (-help +reference.md):\n%s", diff)
	}
}

// openAPI is what the tests read of the document.
type openAPI struct {
	Paths      map[string]map[string]yaml.Node `yaml:"paths"`
	Components struct {
		Schemas map[string]schema `yaml:"schemas"`
	} `yaml:"components"`
}

type schema struct {
	Properties map[string]schema `yaml:"properties"`
	Items      *schema           `yaml:"items"`
	Enum       []string          `yaml:"enum"`
}

// names are the properties of a schema and of those in it.
func (s schema) names(into map[string]bool) {
	for name, property := range s.Properties {
		into[name] = true
		property.names(into)
	}
	if s.Items != nil {
		s.Items.names(into)
	}
}

func readOpenAPI(t *testing.T) openAPI {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash("../pkg/api/openapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var document openAPI
	if err := yaml.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	return document
}

func TestCallsAreThoseOfTheOpenAPIDocument(t *testing.T) {
	document, section := readOpenAPI(t), reference(t)
	var want []string
	for path, operations := range document.Paths {
		for method := range operations {
			if slices.Contains([]string{"get", "put", "post", "delete", "patch"}, method) {
				want = append(want, strings.ToUpper(method)+" "+path)
			}
		}
	}
	slices.Sort(want)
	var got []string
	call := regexp.MustCompile("^`([A-Z]+ /v1/[^`]*)`$")
	for _, row := range rows(section("## REST API")) {
		if m := call.FindStringSubmatch(row[0]); m != nil {
			got = append(got, m[1])
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("calls (-openapi.yaml +reference.md):\n%s", diff)
	}
}

func TestPropertiesAndCodesAreInTheReference(t *testing.T) {
	document, section := readOpenAPI(t), reference(t)
	names := map[string]bool{}
	for _, s := range document.Components.Schemas {
		s.names(names)
	}
	if len(names) == 0 {
		t.Fatal("openapi.yaml has no properties: are they read right?")
	}
	text := section("## REST API")
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !regexp.MustCompile(`\b` + name + `\b`).MatchString(text) {
			t.Errorf("the property %s of openapi.yaml is not in reference.md", name)
		}
	}
	var codes []string
	for _, row := range rows(section("### Errors")) {
		codes = append(codes, strings.Trim(row[1], "`"))
	}
	slices.Sort(codes)
	var want []string
	for _, s := range document.Components.Schemas {
		if code, ok := s.Properties["code"]; ok {
			want = append(want, code.Enum...)
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, codes); diff != "" {
		t.Errorf("error codes (-openapi.yaml +reference.md):\n%s", diff)
	}
}
