package test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// around is a command of root's that runs a gate around one command on the card.
func (s lanSite) around(args ...string) *exec.Cmd {
	return s.RootCommand("gatekit", append([]string{"--net=hostnic", "--hostnic-interface=eth1"}, args...)...)
}

func TestRootLendsACardAroundOneCommand(t *testing.T) {
	s := newLANSite(t)
	s.WriteFile(t, "/etc/resolv.conf", "nameserver "+s.lan.Addr4.String()+"\n", 0o644)
	before := s.portrait(t, "eth1")
	r := s.Run(t, s.around("sh", "-c", "ls /sys/class/net; ping -c1 -W5 "+s.lan.Addr4.String()+" >&2; cat /etc/resolv.conf; exit 23"))
	if want := "eth1\nlo\nnameserver " + s.lan.Addr4.String() + "\n"; r.Stdout != want || r.Code != 23 {
		t.Errorf("%v\nwant code 23 and stdout %q", r, want)
	}
	if missing := lacks(r.Stderr, "root has no subordinate ids"); len(missing) > 0 {
		t.Errorf("root is not told that it is alone: %v", r)
	}
	s.unchanged(t, before, "eth1")
	s.clean(t)
}

func TestACardOfAKilledGateComesBackWithTheNext(t *testing.T) {
	s := newLANSite(t)
	before := s.portrait(t, "eth1")
	p := s.Start(t, s.around("sh", "-c", "echo running; exec sleep infinity"))
	awaitLine(t, p, "(running)")
	if r := s.Run(t, s.around("true")); r.Code != 1 || len(lacks(r.Stderr, "eth1", "using")) > 0 {
		t.Errorf("a second gate around a card that has one: %v", r)
	}
	p.Kill()
	p.Wait(t)
	s.NoProcesses(t)
	if r := s.Run(t, s.around("ls", "/sys/class/net")); r.Code != 0 || r.Stdout != "eth1\nlo\n" {
		t.Errorf("the next gate: %v", r)
	}
	s.unchanged(t, before, "eth1")
	s.clean(t)
}

func TestAUserWithTwoCapabilitiesLendsACardAroundOneCommand(t *testing.T) {
	s := newLANSite(t)
	before := s.portrait(t, "eth1")
	u := s.User
	runtimeDir := u.RuntimeDir
	as := func(caps string, args ...string) testenv.Result {
		return s.Run(t, s.RootCommand("setpriv", append([]string{
			fmt.Sprintf("--reuid=%d", u.UID), fmt.Sprintf("--regid=%d", u.GID), "--clear-groups",
			"--inh-caps=" + caps, "--ambient-caps=" + caps, "--bounding-set=+all",
			"env", "HOME=" + u.Home, "XDG_RUNTIME_DIR=" + runtimeDir,
			"gatekit", "--net=hostnic", "--hostnic-interface=eth1"}, args...)...))
	}
	if r := as("+net_admin", "true"); r.Code != 1 || len(lacks(r.Stderr, "CAP_NET_ADMIN and CAP_SYS_ADMIN", "--hostnic-dir")) > 0 {
		t.Errorf("without CAP_SYS_ADMIN: %v", r)
	}
	runtimeDir = ""
	if r := as("+net_admin,+sys_admin", "true"); r.Code != 2 || len(lacks(r.Stderr, "XDG_RUNTIME_DIR", "--hostnic-dir")) > 0 {
		t.Errorf("who is not logged in: %v", r)
	}
	if r := as("+net_admin,+sys_admin", "--hostnic-dir="+u.Home+"/card", "true"); r.Code != 0 {
		t.Errorf("who is not logged in, with a directory: %v", r)
	}
	runtimeDir = u.RuntimeDir
	r := as("+net_admin,+sys_admin", "sh", "-c", "ls /sys/class/net; cat /proc/self/uid_map | wc -l; ping -c1 -W5 "+s.lan.Addr4.String()+" >&2")
	if r.Stdout != "eth1\nlo\n2\n" || r.Code != 0 {
		t.Errorf("with both: %v", r)
	}
	s.unchanged(t, before, "eth1")
	s.clean(t)
}

func TestACardThatIsLentAlreadyIsNotLentAroundOneCommand(t *testing.T) {
	s := newLANSite(t)
	s.lend(t)
	r := s.Run(t, s.around("--hostnic-dir="+cardDir, "true"))
	if missing := lacks(r.Stderr, "lent to ada", "--hostnic-dir"); r.Code != 1 || len(missing) > 0 {
		t.Errorf("%v\nlacks %q", r, missing)
	}
	r = s.Run(t, s.around("true"))
	if missing := lacks(r.Stderr, "no interface"); r.Code != 1 || len(missing) > 0 || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("%v\nlacks %q", r, missing)
	}
}
