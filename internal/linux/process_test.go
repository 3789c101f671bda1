package linux

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAProgramThatDidNotStartHasTheCodeOfShells(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		code int
		says string
	}{
		"no such file":       {unix.ENOENT, codeNotFound, "interpreter"},
		"not in PATH":        {&exec.Error{Name: "x", Err: exec.ErrNotFound}, codeNotFound, "PATH"},
		"another machine's":  {unix.ENOEXEC, codeNotExecutable, "not a program of this machine"},
		"permission":         {unix.EACCES, codeNotExecutable, "x bit"},
		"arguments too long": {unix.E2BIG, codeNotExecutable, "too long"},
	} {
		reason, code := ExplainExec("prog", c.err)
		if code != c.code || !strings.Contains(reason, c.says) || !strings.Contains(reason, "prog") {
			t.Errorf("%s: %q, %d", name, reason, code)
		}
	}
}
