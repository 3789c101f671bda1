package server

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gatekit/gatekit/internal/testenv"
)

// RootlessKit's own client, unchanged, speaks to our API.
func TestRootlessctlWorks(t *testing.T) {
	rootlessctl, err := exec.LookPath("rootlessctl")
	if err != nil {
		testenv.Skip(t, err.Error())
	}
	s := start(t, Options{Gate: &fakeGate{}})
	for _, step := range []struct {
		args, want string
		code       int
	}{
		{"add-ports 127.0.0.1:8080:80/tcp 0.0.0.0:5353:53/udp", "1\n2\n", 0},
		{"add-ports 127.0.0.1:8080:81/tcp", "bind: address already in use", 1},
		{"list-ports --json", `{"id":1,"spec":{"proto":"tcp","parentIP":"127.0.0.1","parentPort":8080,"childPort":80}}` + "\n" +
			`{"id":2,"spec":{"proto":"udp","parentIP":"0.0.0.0","parentPort":5353,"childPort":53}}` + "\n", 0},
		{"remove-ports 1 2", "1\n2\n", 0},
		{"remove-ports 9", "forward 9", 1},
		{"list-ports --json", "", 0},
		{"info", "- REST API version: 1.1.1\n- Implementation version: 1.2.3\n- State Directory: /state\n- Child PID: 11\n" +
			"- Network Driver: slirp\n  - DNS: []\n  - IP: 10.0.2.100\n- Port Driver: builtin\n  - Supported protocols: [tcp udp]\n", 0},
	} {
		out, err := exec.CommandContext(t.Context(), rootlessctl, append([]string{"--socket", s.socket}, strings.Fields(step.args)...)...).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		code := 0
		if exit != nil {
			code = exit.ExitCode()
		}
		got := string(out)
		if step.code != 0 && strings.Contains(got, step.want) {
			got = step.want
		}
		if diff := cmp.Diff(step.want, got); diff != "" || code != step.code {
			t.Errorf("%s: code %d, want %d (-want +got):\n%s", step.args, code, step.code, diff)
		}
	}
}
