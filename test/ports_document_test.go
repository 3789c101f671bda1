package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// example is a command of a document, and what it shows of its output. "..."
// there stands for anything within a line.
type example struct {
	line    int
	other   bool // on the other machine
	command string
	want    string
}

// readExamples reads the console sessions of a document.
func readExamples(t *testing.T, path string) []example {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var examples []example
	console, n := false, 0
	for line := range strings.Lines(string(text)) {
		n++
		prompt, command, isCommand := strings.Cut(line, "$ ")
		isCommand = isCommand && (prompt == "" || prompt == "other")
		switch {
		case strings.HasPrefix(line, "```"):
			console = line == "```console\n"
		case !console:
		case isCommand:
			examples = append(examples, example{n, prompt != "", strings.TrimSpace(command), ""})
		case len(examples) == 0:
			t.Fatalf("%s:%d: output before a command", path, n)
		default:
			examples[len(examples)-1].want += line
		}
	}
	return examples
}

// session is a shell script that runs the examples one after the other, each
// announced by a mark. What was started in the background is waited for until
// it serves, which people do without a thought.
func session(examples []example) string {
	var b strings.Builder
	fmt.Fprintf(&b, "exec 2>&1\nother() { printf '%%s\\n' \"$1\" >%s; cat %s; }\n", otherLine, otherOutput)
	for i, e := range examples {
		rest, background := strings.CutSuffix(e.command, "&")
		if background { // its words are its own
			e.command = rest + ">/dev/null 2>&1 &"
		}
		if e.other {
			e.command = "other '" + strings.ReplaceAll(e.command, "'", `'\''`) + "'"
		}
		fmt.Fprintf(&b, "echo '#%d'\n%s\n", i, e.command)
		switch {
		case !background:
		case strings.HasPrefix(rest, "gatekit"):
			b.WriteString("until gatectl info >/dev/null 2>&1; do sleep 0.02; done\n")
		case strings.HasPrefix(rest, "dockerd"):
			b.WriteString("until docker -H unix://$XDG_RUNTIME_DIR/docker.sock version >/dev/null 2>&1; do sleep 0.02; done\n")
		case strings.HasPrefix(rest, "containerd"):
			b.WriteString("until nerdctl ps >/dev/null 2>&1; do sleep 0.02; done\n")
		case strings.Contains(rest, "exec"):
			port := regexp.MustCompile(`(?:LISTEN:|RECVFROM:| )(\d+)(?: $|,)`).FindStringSubmatch(rest)[1]
			fmt.Fprintf(&b, "until gatectl exec ss -tulnH 'sport = %s' | grep -q .; do sleep 0.02; done; sleep 0.6\n", port)
		default:
			b.WriteString("until ss -tlnpH | grep -q pid=$!,; do sleep 0.02; done\n")
		}
	}
	b.WriteString("echo '#end'\nkill $(jobs -p) 2>/dev/null; wait\n")
	return b.String()
}

func TestTheExamplesOfThePortsDocument(t *testing.T) {
	s := newSite(t)
	s.otherShell(t)
	runExamples(t, s.Host, "../docs/ports.md", 20, s.Command("bash", "-s"))
}

// otherLine and otherOutput are pipes of the Host: to a shell on the machine outside, and
// back.
const otherLine, otherOutput = "/srv/line", "/srv/output"

// otherShell has the machine outside run the command lines of a session that are for it.
func (s site) otherShell(t *testing.T) {
	t.Helper()
	for _, path := range []string{otherLine, otherOutput} {
		if err := errors.Join(unix.Mkfifo(s.Path(path), 0o600), os.Chmod(s.Path(path), 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	s.outside.Start(t, s.outside.Command("sh", "-c",
		fmt.Sprintf(`while read -r line <%s; do sh -c "$line" >%s 2>&1; done`, s.Path(otherLine), s.Path(otherOutput))))
}

// runExamples runs the examples of a document, which has that many or more, by a
// shell on a Host.
func runExamples(t *testing.T, h *testenv.Host, path string, atLeast int, shell *exec.Cmd) {
	t.Helper()
	examples := readExamples(t, path)
	if len(examples) < atLeast {
		t.Fatalf("%s has %d examples: are they read right?", path, len(examples))
	}
	shell.Stdin = strings.NewReader(session(examples))
	p := h.Start(t, shell)
	testenv.Until(t, "the end of the session", func() bool { return strings.Contains(p.Stdout(), "#end\n") || !p.Running() })
	p.Wait(t)
	rest := p.Stdout()
	for i, e := range examples {
		_, after, ok := strings.Cut(rest, fmt.Sprintf("#%d\n", i))
		next := fmt.Sprintf("#%d\n", i+1)
		if i == len(examples)-1 {
			next = "#end\n"
		}
		got, _, found := strings.Cut(after, next)
		if !ok || !found {
			t.Fatalf("%s:%d: %s: the session ended:\n%s", path, e.line, e.command, p.Stdout())
		}
		rest = after
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(e.want), `\.\.\.`, ".*") + "$"
		if !regexp.MustCompile(pattern).MatchString(got) {
			t.Errorf("%s:%d: %s\nprints %q\nwant   %q", path, e.line, e.command, got, e.want)
		}
	}
}
