package test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// A step of a console session: what is typed after which prompt, and what comes out.
type step struct {
	line          int
	prompt, typed string
	want          string
}

// readSteps reads the console sessions of a document in which # is root's prompt.
func readSteps(t *testing.T, path string) []step {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var steps []step
	console := false
	for i, line := range strings.Split(string(text), "\n") {
		prompt, typed, ok := strings.Cut(line, " ")
		switch {
		case strings.HasPrefix(line, "```"):
			console = line == "```console"
		case !console:
		case ok && (prompt == "#" || prompt == "$"):
			steps = append(steps, step{i + 1, prompt, typed, ""})
		default:
			steps[len(steps)-1].want += line + "\n"
		}
	}
	return steps
}

// newDocumentSite is the host of docs/hostnic.md, with its LAN.
func newDocumentSite(t *testing.T) lanSite {
	t.Helper()
	s := newBridgeSite(t)
	s.root(t, `
		sed -i 's/^ada:/vagrant:/' /etc/passwd /etc/group /etc/shadow /etc/subuid /etc/subgid
		: > /etc/lxc/lxc-usernet
		ip link set eth1 nomaster
		ip link set eth1 down
		ip link set eth1 address 08:00:27:14:9b:32 up
		ip address add 192.168.211.7/24 dev eth1`)
	onLAN := func(name string, args ...string) {
		if r := s.lan.Run(t, s.lan.Command(name, args...)); r.Code != 0 {
			t.Fatal(r)
		}
	}
	onLAN("ip", "address", "add", "192.168.211.2/24", "dev", "eth0")
	p := s.lan.Start(t, s.lan.Command("dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--no-hosts", "--no-resolv",
		"--pid-file", "--user=root", "--interface=eth0", "--bind-interfaces", "--dhcp-range=192.168.211.100,192.168.211.150,120",
		"--no-ping", "--dhcp-leasefile=/dev/null", "--dhcp-authoritative"))
	awaitLine(t, p, "(started)")
	return s
}

func TestTheWalkOfTheHostnicDocument(t *testing.T) {
	const path = "../docs/hostnic.md"
	s := newDocumentSite(t)
	before := s.portrait(t, "eth1")
	steps := readSteps(t, path)
	if len(steps) < 10 {
		t.Fatalf("%s has %d commands: are they read right?", path, len(steps))
	}
	for len(steps) > 0 {
		st := steps[0]
		steps = steps[1:]
		// Which program it is, is the reader's choice.
		typed := strings.Replace(st.typed, "COMMAND", "true", 1)
		cmd := s.RootCommand("sh", "-c", typed)
		if st.prompt == "$" {
			cmd = s.Command("sh", "-c", typed)
		}
		want := st.want
		if strings.HasSuffix(st.typed, " sh") { // what follows is typed there
			var typed strings.Builder
			for typed.Len() == 0 || !strings.HasSuffix(typed.String(), "exit\n") {
				typed.WriteString(steps[0].typed + "\n")
				want += steps[0].want
				steps = steps[1:]
			}
			cmd.Stdin = strings.NewReader(typed.String())
		}
		if strings.Contains(st.typed, "lxc-user-nic") { // the section takes a bridge for granted
			s.root(t, "ip link set eth1 master br0")
		}
		r := s.Run(t, cmd)
		t.Logf("%s:%d: %s\n%s", path, st.line, st.typed, r.Stdout)
		if r.Code != 0 || strings.HasPrefix(st.typed, "gatectl") && r.Stderr != "" {
			t.Errorf("%s:%d: %s: %v", path, st.line, st.typed, r)
		}
		if got := columns(r.Stdout); !strings.Contains(st.typed, "COMMAND") && got != columns(want) {
			t.Errorf("%s:%d: %s\nprints %q\nwant   %q", path, st.line, st.typed, got, columns(want))
		}
		if strings.Contains(st.typed, "netns destroy") {
			s.clean(t)
		}
	}
	s.root(t, "ip link set eth1 nomaster")
	s.unchanged(t, before, "eth1")
}

// columns is output without what differs between a card and one end of a veth pair,
// and without the width of columns.
func columns(out string) string {
	out = regexp.MustCompile(`(?m)^(\w+)@\w+`).ReplaceAllString(out, "$1")
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}
