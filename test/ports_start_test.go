package test

import (
	"errors"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/pkg/api"
)

func TestForwardsOfTheStartAreThereBeforeTheCommand(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp",
		"--publish", "127.0.0.1:8080:80/tcp", "-p", "127.0.0.1:8090-8092:90-92/udp", "-p", "[::1]:8080:80/tcp6",
		"sh", "-c", "curl -s --unix-socket $GATEKIT_STATE_DIR/api.sock http://gate/v1/ports; echo; exec sleep infinity")
	g.awaitOutput(t, "\n")
	want := `[` +
		`{"id":1,"spec":{"proto":"tcp","parentIP":"127.0.0.1","parentPort":8080,"childPort":80},"sourceIP":"off"},` +
		`{"id":2,"spec":{"proto":"udp","parentIP":"127.0.0.1","parentPort":8090,"childPort":90},"sourceIP":"off"},` +
		`{"id":3,"spec":{"proto":"udp","parentIP":"127.0.0.1","parentPort":8091,"childPort":91},"sourceIP":"off"},` +
		`{"id":4,"spec":{"proto":"udp","parentIP":"127.0.0.1","parentPort":8092,"childPort":92},"sourceIP":"off"},` +
		`{"id":5,"spec":{"proto":"tcp6","parentIP":"::1","parentPort":8080,"childPort":80},"sourceIP":"off"}]`
	if got := strings.TrimSpace(g.Stdout()); got != want {
		t.Errorf("the command sees %s\nwant %s", got, want)
	}
	g.serve(t, "tcp", "127.0.0.1:80", "[::1]:80")
	g.serve(t, "udp", "127.0.0.1:91")
	for _, addr := range []string{"127.0.0.1:8080", "[::1]:8080"} {
		if err := tryTCP(t, s.Host, addr, 100_000); err != nil {
			t.Error(err)
		}
	}
	if err := tryUDP(t, s.Host, "127.0.0.1:8091"); err != nil {
		t.Error(err)
	}
	g.stop(t)
	// They go with the gate.
	for _, addr := range []string{"127.0.0.1:8080", "[::1]:8080", "127.0.0.1:8091"} {
		if err := listening(t, s.Host, addr); err != nil {
			t.Errorf("after the gate: %v", err)
		}
	}
}

func TestAConflictAtTheStartEndsTheGate(t *testing.T) {
	s := newSite(t)
	serveTCP(t, s.Host, "127.0.0.1:8080", echoTCP)
	before := trace(t, s.Host)
	for name, c := range map[string]struct {
		flags []string
		line  []string
	}{
		"with another program":     {[]string{"-p", "127.0.0.1:8081:80/tcp", "-p", "8080:80/tcp"}, []string{"8080", "bind: address already in use"}},
		"of two forwards":          {[]string{"-p", "8081:80/tcp", "-p", "127.0.0.1:8081:81/tcp"}, []string{"127.0.0.1:8081", "bind: address already in use"}},
		"with the kernel's limits": {[]string{"-p", "80:80/tcp"}, []string{"permission denied", "net.ipv4.ip_unprivileged_port_start"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := runGate(t, s.Host, append(append([]string{"--net=slirp"}, c.flags...), "touch", "/tmp/started")...)
			if missing := lacks(r.Stderr, c.line...); r.Code != 1 || missing != nil || strings.Count(r.Stderr, "\n") != 1 {
				t.Errorf("%v\nwant exit code 1 and one line; it lacks %q", r, missing)
			}
			s.NoTrace(t, before) // the command has not started
			if err := listening(t, s.Host, "127.0.0.1:8081"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWithoutAPortDriverNothingIsForwarded(t *testing.T) {
	s := newSite(t)
	for name, flags := range map[string][]string{
		"--port-driver=none":       {"--net=slirp", "--port-driver=none"},
		"--net=none":               {"--net=none"},
		"--net=host":               {"--net=host"},
		"--net=slirp, detached":    {"--net=slirp", "--detach-netns", "--port-driver=none"},
		"--net=host, when told so": {"--net=host", "--port-driver=none"},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, s.Host, append(flags, "sleep", "infinity")...)
			c := g.client(t)
			info, err := c.Info(t.Context())
			if err != nil || info.PortDriver.Driver != "none" || len(info.PortDriver.Protos) != 0 {
				t.Errorf("the API says %+v, %v", info.PortDriver, err)
			}
			if list, err := c.ListPorts(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("the list is %v, %v", list, err)
			}
			_, err = g.tryAdd(t, "127.0.0.1:8080:80/tcp")
			if !errors.Is(err, api.ErrBadRequest) || len(lacks(err.Error(), "start it with the builtin one")) > 0 {
				t.Errorf("%v, want a bad request and the remedy", err)
			}
			if err := c.RemovePort(t.Context(), 1); err == nil {
				t.Error("a forward that is not there was removed")
			}
			g.stop(t)
		})
	}
}

// Forwards need a namespace and no network: a service behind --net=none is
// published, and reaches nobody itself.
func TestForwardsWorkInEveryNamespace(t *testing.T) {
	s := newSite(t)
	for name, flags := range map[string][]string{
		"--net=none":     {"--net=none", "--port-driver=builtin"},
		"--detach-netns": {"--net=slirp", "--detach-netns"},
		"all namespaces": {"--net=slirp", "--pidns", "--cgroupns", "--utsns", "--ipcns", "--copy-up=/run", "--copy-up=/etc"},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, s.Host, append(flags, "-p", "127.0.0.1:8080:80/tcp", "-p", "[::1]:8080:80/udp", "sleep", "infinity")...)
			g.serve(t, "tcp", "127.0.0.1:80")
			g.serve(t, "udp", "[::1]:80")
			if err := tryTCP(t, s.Host, "127.0.0.1:8080", 100_000); err != nil {
				t.Error(err)
			}
			if err := tryUDP(t, s.Host, "[::1]:8080"); err != nil {
				t.Error(err)
			}
			g.stop(t)
		})
	}
}
