package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// install builds the program into a Host, where it is the one file of ours that
// its user is told of.
func install(t *testing.T, h *testenv.Host) (path string) {
	t.Helper()
	const installed = "/srv/embed"
	build := exec.Command("go", "build", "-o", h.Path(installed), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return installed
}

// get asks for / at an address from the machine outside.
func get(t *testing.T, o *testenv.Outside, addr string) (body string, from netip.AddrPort) {
	t.Helper()
	var conn net.Conn
	o.Do(t, func() (err error) {
		conn, err = net.DialTimeout("tcp", addr, testenv.Patience)
		return err
	})
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	resp, err := (&http.Client{Transport: transport, Timeout: testenv.Patience}).Get("http://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), conn.LocalAddr().(*net.TCPAddr).AddrPort()
}

func TestAProgramCarriesItsOwnGate(t *testing.T) {
	h := testenv.NewHost(t)
	outside := h.Outside(t)
	program := install(t, h)
	for _, name := range []string{"gatekit", "gatectl"} {
		if _, err := os.Stat(testenv.Binaries(t) + "/" + name); err != nil {
			t.Fatal(err)
		}
		h.Hide(t, "/usr/local/bin/"+name)
	}
	dataDir := h.User.Home + "/data"
	// Its flags come before it knows that it is the child, which has them, too.
	p := h.Start(t, h.Command(program, "-data-dir", dataDir, "-cidr", "10.42.0.0/16"))
	line := regexp.MustCompile(`^published on port (\d+)\n$`)
	var published []string
	testenv.Until(t, "the service to be published", func() bool {
		if !p.Running() {
			t.Fatalf("the program ended: %v", p.Wait(t))
		}
		published = line.FindStringSubmatch(p.Stdout())
		return published != nil
	})
	for _, host := range []netip.Addr{outside.HostAddr4, outside.HostAddr6} {
		body, from := get(t, outside, net.JoinHostPort(host.String(), published[1]))
		for _, want := range []string{"client " + from.String() + "\n", "uid 0, ", "10.42.0.100/16"} {
			// IPv6 clients are served on 127.0.0.1, which cannot name them.
			if host.Is6() && strings.HasPrefix(want, "client") {
				want = "client 127.0.0.1:"
			}
			if !strings.Contains(body, want) {
				t.Errorf("at %v the service says %q, want %q in it", host, body, want)
			}
		}
	}
	if _, err := os.Stat(h.Path(dataDir + "/rootless/api.sock")); err != nil {
		t.Error(err)
	}
	p.Signal(syscall.SIGTERM)
	if r := p.Wait(t); r.Code != 0 || r.Stderr != "" {
		t.Errorf("after SIGTERM: %v\nwant exit code 0, and nothing on stderr", r)
	}
	h.NoProcesses(t)
}

func TestAProgramWithoutAGateSaysWhy(t *testing.T) {
	h := testenv.NewHost(t)
	program := install(t, h)
	h.SetSubIDs(t, "", "")
	r := h.Run(t, h.Command(program, "-data-dir", h.User.Home+"/data"))
	if r.Code != 1 || r.Stdout != "" || !strings.HasPrefix(r.Stderr, "embed: ") || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("without subordinate ids: %v\nwant exit code 1 and one line that begins with embed:", r)
	}
}
