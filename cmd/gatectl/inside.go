package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// insideName is the zeroth argument by which gatectl knows that exec has
// executed it inside a gate.
const insideName = "gatectl-inside"

// Exit codes of a program that cannot be run, as shells give them.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
)

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
	code, why := codeNotExecutable, err.Error()
	var lookup *exec.Error
	if errors.As(err, &lookup) {
		why = lookup.Err.Error()
	}
	switch {
	case errors.Is(err, exec.ErrNotFound):
		code, why = codeNotFound, "not found in PATH"
	case errors.Is(err, os.ErrNotExist):
		code, why = codeNotFound, "no such file, or its interpreter is missing"
	case errors.Is(err, syscall.ENOEXEC):
		why = "not a program of this machine, and no #! line"
	case errors.Is(err, os.ErrPermission):
		why = "permission denied: is it a file with the x bit, on a mount without noexec?"
	}
	fmt.Fprintf(stderr, "gatectl: exec %s: %s\n", args[0], why)
	return code
}
