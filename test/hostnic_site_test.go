package test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/network/hostnic"
)

// What the tests of lent cards share. The card is eth1 of a Host, one end of a veth
// pair; at its other end is the LAN, a machine that is router, DHCP and DNS server of
// that network. eth0 leads elsewhere and has the Host's default route, so that the
// Host can do without the card.

// cardDir is where tests lend the card.
const cardDir = "/run/gatekit/eth1"

// lanSite is a Host with a card to lend.
type lanSite struct {
	*testenv.Host
	world, lan *testenv.Outside
}

func newLANSite(t *testing.T) lanSite {
	t.Helper()
	h := testenv.NewHost(t)
	s := lanSite{Host: h, world: h.Outside(t), lan: h.Outside(t)}
	site{h, s.world}.acquaint(t)
	site{h, s.lan}.acquaint(t)
	return s
}

// root runs a shell command on the Host as root, and expects it to succeed.
func (s lanSite) root(t *testing.T, script string) string {
	t.Helper()
	r := s.Run(t, s.RootCommand("sh", "-ec", script))
	if r.Code != 0 {
		t.Fatalf("%s: %v", script, r)
	}
	return r.Stdout
}

// gatectl runs gatectl netns as root.
func (s lanSite) netns(t *testing.T, args ...string) testenv.Result {
	t.Helper()
	return s.Run(t, s.RootCommand("gatectl", append([]string{"netns"}, args...)...))
}

// succeeds expects that a command did, and had nothing to complain of.
func succeeds(t *testing.T, r testenv.Result) testenv.Result {
	t.Helper()
	if r.Code != 0 || r.Stderr != "" {
		t.Fatalf("it fails, or complains: %v", r)
	}
	return r
}

// lend lends the card to the Host's user, until the end of the test or an earlier
// giveBack.
func (s lanSite) lend(t *testing.T, more ...string) {
	t.Helper()
	succeeds(t, s.netns(t, append([]string{"create", "--interface=eth1", "--user=ada", "--ns-dir=" + cardDir, "--dns=" + s.lan.Addr4.String()}, more...)...))
	t.Cleanup(func() {
		if s.isLent() {
			succeeds(t, s.netns(t, "destroy", "--ns-dir="+cardDir, "--force"))
		}
	})
}

func (s lanSite) giveBack(t *testing.T) {
	t.Helper()
	succeeds(t, s.netns(t, "destroy", "--ns-dir="+cardDir))
}

// isLent says whether the directory of the card is there.
func (s lanSite) isLent() bool {
	_, err := os.Lstat(s.Path(cardDir))
	return err == nil
}

// onCard is a gate of the user's on the card.
func onCard(args ...string) []string {
	return append([]string{"--net=hostnic", "--hostnic-dir=" + cardDir}, args...)
}

// serveDNS runs dnsmasq on the LAN, with www.lan.test in its DNS.
func (s lanSite) serveDNS(t *testing.T, more ...string) *testenv.Process {
	t.Helper()
	args := append([]string{"--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--no-hosts", "--no-resolv",
		"--pid-file", "--user=root", "--interface=eth0", "--bind-interfaces",
		"--host-record=www.lan.test," + s.lan.Addr4.String() + "," + s.lan.Addr6.String()}, more...)
	p := s.lan.Start(t, s.lan.Command("dnsmasq", args...))
	awaitLine(t, p, "(started)")
	return p
}

// settle waits until the kernel is done with an interface, or with all that there are.
// What it does by itself comes a little later than who sets a link up: it notices that
// the link is up, makes an address of IPv6, and probes that.
func (s lanSite) settle(t *testing.T, which string) {
	t.Helper()
	testenv.Until(t, "the kernel to be done with its links", func() bool {
		for link := range strings.Lines(s.root(t, "ip -oneline link show "+which)) {
			if strings.Contains(link, "LOWER_UP") && !strings.Contains(link, "LOOPBACK") && !strings.Contains(link, " state UP ") {
				return false
			}
		}
		return !strings.Contains(s.root(t, "ip -6 address show "+which), "tentative")
	})
}

// portrait is all that ip(8) and /proc/sys say of an interface, by what it is, once the
// kernel is done with it.
func (s lanSite) portrait(t *testing.T, ifname string) map[string]any {
	t.Helper()
	s.settle(t, "dev "+ifname)
	all := map[string]any{}
	for what, command := range map[string]string{
		"link":        "ip -json -details link show dev " + ifname,
		"addresses":   "ip -json address show dev " + ifname,
		"IPv4 routes": "ip -json -4 -details route show table all dev " + ifname,
		"IPv6 routes": "ip -json -6 -details route show table all dev " + ifname,
	} {
		var list []map[string]any
		if out := s.root(t, command); out != "" {
			if err := json.Unmarshal([]byte(out), &list); err != nil {
				t.Fatalf("%s: %v in %s", command, err, out)
			}
		}
		if strings.HasSuffix(what, "routes") {
			sort.Slice(list, func(i, j int) bool { return fmt.Sprint(list[i]) < fmt.Sprint(list[j]) })
		}
		for _, entry := range list {
			if entry["operstate"] == "DOWN" {
				// Not of the card: an interface has none until it is first up.
				delete(entry, "qdisc")
			}
		}
		all[what] = list
	}
	settings := s.root(t, "grep -H . /proc/sys/net/ipv[46]/conf/"+ifname+"/* /proc/sys/net/ipv[46]/neigh/"+ifname+"/* 2>/dev/null || :")
	all["settings"] = strings.Split(settings, "\n")
	return all
}

// unchanged expects that an interface is what its portrait was.
func (s lanSite) unchanged(t *testing.T, before map[string]any, ifname string) {
	t.Helper()
	if diff := cmp.Diff(before, s.portrait(t, ifname)); diff != "" {
		t.Errorf("%s is not what it was (-before +after):\n%s", ifname, diff)
	}
}

// interfaces are the names of the interfaces in ip's output.
func interfaces(t *testing.T, ipJSON string) []string {
	t.Helper()
	var list []struct {
		Name string `json:"ifname"`
	}
	if err := json.Unmarshal([]byte(ipJSON), &list); err != nil {
		t.Fatalf("%v in %q", err, ipJSON)
	}
	var names []string
	for _, l := range list {
		names = append(names, l.Name)
	}
	slices.Sort(names)
	return names
}

// pins are the namespaces that are bound to files on the Host where cards are lent.
// The machine may have others.
func (s lanSite) pins(t *testing.T) []string {
	t.Helper()
	var pins []string
	for line := range strings.Lines(s.root(t, "cat /proc/self/mountinfo")) {
		at := strings.Fields(line)[4]
		ours := strings.Contains(at, "/gatekit/") || strings.HasPrefix(at, "/srv/")
		if ours && strings.Contains(line, " - nsfs ") {
			pins = append(pins, at)
		}
	}
	return pins
}

// clean expects that nothing of a lent card is left.
func (s lanSite) clean(t *testing.T) {
	t.Helper()
	if s.isLent() {
		left, _ := filepath.Glob(s.Path(cardDir) + "/*")
		t.Errorf("%s is left, with %q", cardDir, left)
	}
	if pins := s.pins(t); len(pins) != 0 {
		t.Errorf("namespaces are left: %q", pins)
	}
}

// asOther is a command of a user of the Host who is not its user.
func (s lanSite) asOther(name string, args ...string) *exec.Cmd {
	cmd := s.Command(name, args...)
	cmd.SysProcAttr.Credential.Uid = s.User.UID + 500_000
	cmd.SysProcAttr.Credential.Gid = s.User.GID + 500_000
	cmd.SysProcAttr.Credential.Groups = nil
	cmd.Dir = "/"
	return cmd
}

// macvlanAddresses are those of the card inside, by mode.
var macvlanAddresses = map[string][]netip.Prefix{
	hostnic.ModeMacvlan: {netip.MustParsePrefix("198.51.100.29/28")},
}
