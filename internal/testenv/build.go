package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// binaries is the directory with gatekit, gatectl and this test binary as
// "probe". It is built once per test run, from the sources as they are now.
var binaries = sync.OnceValues(func() (string, error) {
	s, err := takeSlot("bin")
	if err != nil {
		return "", err
	}
	atFinish = append(atFinish, s.free)
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return "", err
	}
	return s.dir, build(s.dir)
})

// Binaries returns the directory of the built binaries as the machine sees it.
// In a Host it is /usr/local/bin. GATEKIT_TEST_RACE=1 builds them with the race
// detector.
func Binaries(t testing.TB) string {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatalf("build the binaries: %v", err)
	}
	return dir
}

func build(dir string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	if err := dependOnSources(root); err != nil {
		return err
	}
	args := []string{"build", "-o", dir + "/"}
	if os.Getenv("GATEKIT_TEST_RACE") == "1" {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/...")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, probeName), self, 0o755)
}

// dependOnSources looks at each file that the binaries are made of. go test
// notes what a test looks at, and so does not take a cached result when the
// binaries would be others now.
func dependOnSources(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		switch filepath.Ext(path) {
		case ".go", ".mod", ".sum":
			_, err = os.Stat(path)
		}
		return err
	})
}

// moduleRoot is the nearest directory above the working directory with a
// go.mod: go test runs a test binary in its package's directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}
