package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/gatekit/gatekit/internal/linux"
)

// insideName is the zeroth argument by which gatectl knows that exec has
// executed it inside a gate.
const insideName = "gatectl-inside"

// The program is to die with gatectl. The parent-death signal is the main thread's
// (prctl(2), PR_SET_PDEATHSIG), and an execve of another thread loses it.
func init() {
	if os.Args[0] == insideName {
		runtime.LockOSThread()
	}
}

// inside finds the program and becomes it. It returns the exit code if it
// cannot.
func inside(args []string, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprintln(stderr, "gatectl: this step is for exec alone")
		return codeUsage
	}
	path, err := exec.LookPath(args[0])
	if err == nil {
		err = syscall.Exec(path, args, os.Environ())
	}
	reason, code := linux.ExplainExec(args[0], err)
	fmt.Fprintln(stderr, "gatectl:", reason)
	return code
}
