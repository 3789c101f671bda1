package image

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// What is in the image needs nothing of the machine but its kernel.
func TestAProgramRunsInItsRoot(t *testing.T) {
	testenv.RequireRoot(t)
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	r := Root{Programs: map[string]string{"bin/shell": shell}, Links: map[string]string{"bin/sh": "shell"}}
	if err := r.Write(&archive); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	unpack := exec.Command("tar", "-x", "-C", dir)
	unpack.Stdin = &archive
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	inside := &exec.Cmd{
		Path:        "/bin/sh",
		Args:        []string{"sh", "-c", "echo /*"},
		SysProcAttr: &syscall.SysProcAttr{Chroot: dir},
	}
	out, err := inside.CombinedOutput()
	if err != nil {
		t.Fatalf("sh: %v: %s", err, out)
	}
	for _, want := range directories {
		if !strings.Contains(string(out), "/"+want) {
			t.Errorf("the root holds %s, want %s in it", out, want)
		}
	}
}

func TestAProgramThatIsNotThereIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	err := Root{Programs: map[string]string{"bin/none": path}}.Write(&bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error: %v, want %s in it", err, path)
	}
}
