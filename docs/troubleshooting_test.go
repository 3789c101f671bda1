package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What troubleshooting.md quotes is what the programs say.
func TestTroubleshootingQuotesTheSources(t *testing.T) {
	page, err := os.ReadFile("troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	source := sources(t)
	quoted := 0
	for _, row := range rows(string(page)) {
		quoted++
		if text := strings.Trim(row[0], "`"); !strings.Contains(source, text) {
			t.Errorf("nothing in the sources says %q", text)
		}
	}
	if quoted == 0 {
		t.Fatal("troubleshooting.md quotes nothing: is it read right?")
	}
}

// sources are all Go files that make the programs, joined.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, room := range []string{"../cmd", "../pkg", "../internal"} {
		err := filepath.WalkDir(room, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			all.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}
