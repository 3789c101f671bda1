package test

import (
	"fmt"
	"net"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// forwardTo is the parent's port of a forward that leads to a port inside, as the
// gate lists it; 0 when there is none.
func (g *gate) forwardTo(t *testing.T, proto string, port int) int {
	t.Helper()
	for _, spec := range specsOf(t, g) {
		if spec.Proto == proto && spec.ChildPort == port {
			return spec.ParentPort
		}
	}
	return 0
}

func TestWhatListensInsideIsPublishedAutomatically(t *testing.T) {
	s := newSite(t)
	for name, flags := range map[string][]string{
		"slirp":    {"--net=slirp"},
		"none":     {"--net=none", "--port-driver=builtin"},
		"detached": {"--net=slirp", "--detach-netns"},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, s.Host, append(flags, "-p", "auto", "sleep", "infinity")...)
			for i, network := range []string{"tcp", "udp"} {
				for j, ip := range []string{"127.0.0.1", "::1", "0.0.0.0"} {
					port := 8000 + 10*i + j
					service := g.serve(t, network, net.JoinHostPort(ip, fmt.Sprint(port)))
					testenv.Until(t, "a forward", func() bool { return g.forwardTo(t, network, port) == port })
					addr := fmt.Sprintf("127.0.0.1:%d", port)
					// A datagram to a loopback that nobody serves may be the price
					// of finding the other.
					testenv.Until(t, network+" to "+ip, func() bool { return reach(t, network, s.Host, addr) == nil })
					service.Signal(signalTerm)
					service.Wait(t)
					testenv.Until(t, "its end", func() bool { return g.forwardTo(t, network, port) == 0 })
					// The forward leaves the list before its listener is closed.
					testenv.Until(t, "the port to be free", func() bool { return listening(t, s.Host, addr) == nil })
				}
			}
			g.stop(t)
		})
	}
}

func TestAutomaticForwardsAreTurnedOnAndOff(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	g.serve(t, "tcp", "127.0.0.1:8080")
	if r := g.ctl(t, "add-ports", "auto"); r.Stdout != "auto\n" || r.Code != 0 {
		t.Fatal(r)
	}
	if g.forwardTo(t, "tcp", 8080) == 0 {
		t.Error("what listened before is not published")
	}
	// A forward by hand comes first, on the very same address.
	if r := g.ctl(t, "add-ports", "127.0.0.1:8080:80/tcp"); r.Code != 0 {
		t.Error(r)
	}
	if r := g.ctl(t, "remove-ports", "auto"); r.Stdout != "auto\n" || r.Code != 0 {
		t.Error(r)
	}
	specs := specsOf(t, g)
	if len(specs) != 1 || specs[0].ChildPort != 80 {
		t.Errorf("after it was turned off there are %v", specs)
	}
	g.serve(t, "tcp", "127.0.0.1:80")
	if err := tryTCP(t, s.Host, "127.0.0.1:8080", 1000); err != nil {
		t.Error(err)
	}
}

func TestAutomaticForwardsNeedAPortDriver(t *testing.T) {
	s := newSite(t)
	r := runGate(t, s.Host, "-p", "auto", "true")
	if missing := lacks(r.Stderr, "--publish needs a port driver"); r.Code != 2 || missing != nil {
		t.Errorf("%v\nwant exit code 2; it lacks %q", r, missing)
	}
	g := startGate(t, s.Host, "--net=none", "sleep", "infinity")
	if r := g.ctl(t, "add-ports", "auto"); r.Code != 1 || len(lacks(r.Stderr, "no port driver")) > 0 {
		t.Error(r)
	}
}

func TestAutomaticForwardsLeaveTheReasonToTheChild(t *testing.T) {
	s := newSite(t)
	// The child ends while it is asked for a socket; which of the two is seen
	// first is chance.
	for range 20 {
		badInput{[]string{"--net=slirp", "-p", "auto", "no-such-command"}, []string{"no-such-command", "not found"}}.refuse(t, s.Host, 127)
	}
}
