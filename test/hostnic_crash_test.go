package test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/network/hostnic"
	"github.com/gatekit/gatekit/pkg/parent"
)

// fuse is a log that kills its own process by SIGKILL with the entry of this number,
// counted from 1. Create and Destroy make one before each step, and one at the end.
type fuse struct {
	slog.Handler
	left *int
}

func (f fuse) Enabled(context.Context, slog.Level) bool { return true }

func (f fuse) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		fmt.Println(a.Value)
		return true
	})
	if *f.left--; *f.left == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return nil
}

// lend-until lends the card, give-until gives it back, as gatectl does, but for a
// fuse of that length.
var _ = testenv.Probe("lend-until", func(args []string) int {
	return report(untilFuse(args, func(log *slog.Logger) error {
		owner, err := parent.FindOwner(context.Background(), "ada")
		if err != nil {
			return err
		}
		return hostnic.Create(context.Background(), hostnic.CreateOptions{
			Dir: cardDir, Interface: "eth1", Logger: log, Mode: args[1],
			Addresses: macvlanAddresses[args[1]],
			Owner:     hostnic.Owner{Name: owner.Name, UID: owner.UID, GID: owner.GID, MapIDs: owner.MapIDs},
		})
	}))
})

var _ = testenv.Probe("give-until", func(args []string) int {
	return report(untilFuse(args, func(log *slog.Logger) error {
		return hostnic.Destroy(context.Background(), hostnic.DestroyOptions{Dir: cardDir, Logger: log})
	}))
})

func untilFuse(args []string, do func(*slog.Logger) error) error {
	length, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return do(slog.New(fuse{slog.DiscardHandler, &length}))
}

// untilKilled runs a probe with longer and longer fuses until it comes to its end.
// after is called each time, and told how often before.
func (s lanSite) untilKilled(t *testing.T, before func(), probe []string, after func(step string)) {
	t.Helper()
	const enough = 50
	for n := 1; n < enough; n++ {
		before()
		r := s.Run(t, s.RootCommand("probe", append([]string{probe[0], strconv.Itoa(n)}, probe[1:]...)...))
		step := fmt.Sprintf("%s, killed with entry %d of its log:\n%s", probe[0], n, r.Stdout)
		if r.Signal != syscall.SIGKILL && r.Code != 0 {
			t.Fatalf("%s: %v", step, r)
		}
		after(step)
		if r.Code == 0 {
			if n < 10 {
				t.Errorf("it had %d steps only", n-1)
			}
			return
		}
		if t.Failed() {
			return
		}
	}
	t.Fatalf("it had more than %d steps", enough)
}

func TestACrashAtAnyStepLosesNoCard(t *testing.T) {
	for _, mode := range []string{hostnic.ModeMove, hostnic.ModeMacvlan} {
		t.Run(mode, func(t *testing.T) {
			s := newLANSite(t)
			s.root(t, `
				echo 0 > /proc/sys/net/ipv6/conf/eth1/accept_dad
				ip link set eth1 mtu 1442 alias spare
				ip route add 203.0.113.0/26 via 198.51.100.18 dev eth1 table 77`)
			before := s.portrait(t, "eth1")
			back := func(step string) {
				s.NoProcesses(t)
				if s.isLent() {
					if r := s.netns(t, "destroy", "--ns-dir="+cardDir); r.Code != 0 || r.Stderr != "" {
						t.Fatalf("destroy after %s\n%v", step, r)
					}
				}
				if diff := cmp.Diff(before, s.portrait(t, "eth1")); diff != "" {
					t.Errorf("after %s\nthe card is not what it was (-before +after):\n%s", step, diff)
				}
				s.clean(t)
			}
			t.Run("of create", func(t *testing.T) {
				s.untilKilled(t, func() {}, []string{"lend-until", mode}, func(step string) {
					// A gate on what is half done starts, or says why not.
					if r := runGate(t, s.Host, onCard("true")...); r.Code != 0 && len(lacks(r.Stderr, "destroy")) > 0 && len(lacks(r.Stderr, "permission denied")) > 0 {
						t.Errorf("a gate after %s\n%v", step, r)
					}
					back(step)
				})
			})
			t.Run("of destroy", func(t *testing.T) {
				lend := func() {
					if r := s.Run(t, s.RootCommand("probe", "lend-until", "0", mode)); r.Code != 0 {
						t.Fatalf("lend the card: %v", r)
					}
				}
				s.untilKilled(t, lend, []string{"give-until"}, back)
			})
		})
	}
}

// Within a step there are calls of the kernel's: those that change something.
const changes = "sendto,mount,umount2,rename,renameat,unlinkat,mkdirat,openat,write,setxattr,clone,fsync"

func TestACrashWithinAStepLosesNoCard(t *testing.T) {
	s := newLANSite(t)
	s.root(t, `
		echo 0 > /proc/sys/net/ipv6/conf/eth1/accept_dad
		ip link set eth1 mtu 1442 alias spare
		ip route add 203.0.113.0/26 via 198.51.100.18 dev eth1 table 77`)
	before := s.portrait(t, "eth1")
	create := []string{"create", "--interface=eth1", "--user=ada", "--ns-dir=" + cardDir, "--dns=" + s.lan.Addr4.String()}
	destroy := []string{"destroy", "--ns-dir=" + cardDir}
	for _, command := range [][]string{create, destroy} {
		const first, stride, enough = 7, 13, 1000
		n, killed := first, 0
		for ; n < enough; n += stride {
			if command[0] == "destroy" {
				succeeds(t, s.netns(t, create...))
			}
			r := s.Run(t, s.RootCommand("strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=" + changes,
				"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", changes, n), "gatectl", "netns"}, command...)...))
			s.NoProcesses(t)
			if s.isLent() {
				if r := s.netns(t, destroy...); r.Code != 0 || r.Stderr != "" {
					t.Fatalf("destroy after %s, killed with change %d: %v", command[0], n, r)
				}
			}
			if diff := cmp.Diff(before, s.portrait(t, "eth1")); diff != "" {
				t.Fatalf("after %s, killed with change %d, the card is not what it was (-before +after):\n%s", command[0], n, diff)
			}
			s.clean(t)
			if r.Signal != syscall.SIGKILL {
				if r.Code != 0 {
					t.Errorf("%s: %v", command[0], r)
				}
				break
			}
			killed++
		}
		if killed < 3 || n >= enough {
			t.Errorf("%s was killed %d times", command[0], killed)
		}
	}
}

func TestTheStateIsOnTheDiskBeforeTheCardMoves(t *testing.T) {
	s := newLANSite(t)
	succeeds(t, s.Run(t, s.RootCommand("strace", "-f", "-qq", "-o", "/run/trace", "-e", "trace=openat,fsync,rename,renameat,renameat2,sendto",
		"gatectl", "netns", "create", "--interface=eth1", "--user=ada", "--ns-dir="+cardDir, "--dns="+s.lan.Addr4.String())))
	calls, _, moved := strings.Cut(s.ReadFile(t, "/run/trace"), "IFLA_NET_NS_FD")
	// The file, its name, and the name of its directory.
	onDisk := regexp.MustCompile(`(?s)state\.json\.new.*fsync\(.*rename.*state\.json.*fsync\(.*fsync\(`)
	if !moved || !onDisk.MatchString(calls) {
		t.Errorf("before the card moves (%v) create does\n%s", moved, calls)
	}
	s.giveBack(t)
}
