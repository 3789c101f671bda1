package test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// fetchAll is what a user does in a shell behind the user-mode network. The
// addresses are those of the host; the last line serves a page until the gate
// ends.
const fetchAll = `
set -euo pipefail
test "$(id -u)" = 0
echo mine > /etc/mine
curl -sS --fail http://HOST4:PORT/hello
curl -sS --fail http://HOST6:PORT/hello
exec 3<>/dev/udp/ADDR4/UDP4; echo datagram >&3; head -n 1 <&3
exec 3<>/dev/udp/ADDR6/UDP6; echo datagram >&3; head -n 1 <&3
getent ahostsv4 web.example.test | grep -o -m 1 '^[0-9.]*'
curl -sS --fail http://host.example.test:PORT/hello
mkdir /tmp/served; echo inside > /tmp/served/page; cd /tmp/served
exec python3 -u -m http.server --bind 127.0.0.1 80`

// The job that the gate is there for, from end to end: fetch from the host's
// side, and publish a server to it.
func TestAShellBehindTheNetworkFetchesAndPublishes(t *testing.T) {
	s := newSite(t)
	host4, host6 := s.outside.HostAddr4, s.outside.HostAddr6
	resolver := names(t, s.Host, s.RootCommand, []string{"127.0.0.53"}, append(zone, fmt.Sprintf("--host-record=host.example.test,%v,%v", host4, host6))...)
	s.resolvConf(t, "nameserver 127.0.0.53")
	if err := os.Mkdir(s.Path("/srv/files"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.WriteFile(t, "/srv/files/hello", "hello\n", 0o644)
	files := s.Start(t, s.Command("python3", "-u", "-m", "http.server", "--bind", "::", "--directory", "/srv/files", "0"))
	port := awaitLine(t, files, `Serving HTTP on :: port (\d+)`)
	udp4, udp6 := addrOf(serveUDP(t, s.Host, at(host4, 0), echoUDP)), addrOf(serveUDP(t, s.Host, at(host6, 0), echoUDP))

	script := strings.NewReplacer("HOST4", host4.String(), "HOST6", "["+host6.String()+"]", "PORT", port,
		"ADDR4", host4.String(), "UDP4", fmt.Sprint(udp4.Port()), "ADDR6", host6.String(), "UDP6", fmt.Sprint(udp6.Port())).Replace(fetchAll)
	before := trace(t, s.Host)
	g := startGate(t, s.Host, "--net=slirp", "--copy-up=/etc", "bash", "-c", script)
	g.awaitOutput(t, "Serving HTTP")
	want := "hello\nhello\ndatagram\ndatagram\n198.51.100.80\nhello\n"
	if got := g.Stdout(); !strings.HasPrefix(got, want) {
		t.Errorf("the shell fetches %q, want %q", got, want)
	}
	if _, err := os.Stat(s.Path("/etc/mine")); !os.IsNotExist(err) {
		t.Errorf("the host's /etc was written to: %v", err)
	}

	// From another terminal.
	id := strings.TrimSpace(g.ctlOutput(t, "add-ports", "127.0.0.1:8080:80/tcp"))
	if rows := table(g.ctlOutput(t, "list-ports")); len(rows) != 2 || rows[1][0] != id || rows[1][3] != "8080" {
		t.Errorf("list-ports prints %q", rows)
	}
	if got := g.succeed(t, s.Command("curl", "-sS", "--fail", "http://127.0.0.1:8080/page")); got != "inside\n" {
		t.Errorf("the page is %q", got)
	}
	if got := g.ctlOutput(t, "remove-ports", id); got != id+"\n" {
		t.Errorf("remove-ports prints %q", got)
	}
	if r := s.Run(t, s.Command("curl", "-sS", "http://127.0.0.1:8080/page")); r.Code != 7 {
		t.Errorf("after remove-ports: %v", r)
	}
	g.Signal(signalTerm)
	g.Wait(t)
	for _, server := range []*testenv.Process{files, resolver} {
		server.Kill()
		server.Wait(t)
	}
	if err := os.RemoveAll(s.Path("/tmp/served")); err != nil {
		t.Fatal(err)
	}
	s.NoTrace(t, before)
}
