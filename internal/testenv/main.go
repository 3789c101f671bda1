package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// probeName is the name under which a test binary runs a probe.
const probeName = "probe"

var (
	probes   = map[string]func(args []string) int{}
	atFinish []func()
)

// Probe registers a function of the test binary that runs as a program of its
// own: "probe NAME ARG..." inside a Host, or in a gate inside a Host, calls f
// with the ARGs and exits with what f returns. Call it from a package variable
// or init, before Main.
func Probe(name string, f func(args []string) int) struct{} {
	if _, ok := probes[name]; ok {
		panic("testenv.Probe: " + name + " is registered twice")
	}
	probes[name] = f
	return struct{}{}
}

// Main is the body of a TestMain. It runs the tests and exits with their code;
// it fails when a goroutine or a descriptor that the tests made is still there
// at the end. In a process that was started as a probe it runs that probe.
func Main(m *testing.M) {
	if filepath.Base(os.Args[0]) == probeName {
		os.Exit(runProbe(os.Args[1:]))
	}
	before := descriptors()
	code := m.Run()
	for _, f := range slices.Backward(atFinish) {
		f()
	}
	if code == 0 {
		if err := leaks(before); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func runProbe(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "usage: probe NAME ARG...")
		return 2
	}
	f, ok := probes[args[0]]
	if !ok {
		fmt.Fprintf(os.Stderr, "probe: no probe is called %s\n", args[0])
		return 2
	}
	return f(args[1:])
}
