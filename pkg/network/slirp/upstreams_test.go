package slirp

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestQueriesAreScheduled(t *testing.T) {
	a, b, c := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53"), netip.MustParseAddrPort("192.0.2.3:53")
	abc := []netip.AddrPort{a, b, c}
	for name, test := range map[string]struct {
		upstreams []netip.AddrPort
		options   []string
		want      schedule
	}{
		"one upstream":         {abc[:1], nil, schedule{abc[:1], 2, 2 * time.Second, 4500 * time.Millisecond}},
		"three share":          {abc, nil, schedule{abc, 2, 750 * time.Millisecond, 4500 * time.Millisecond}},
		"timeout and attempts": {abc[:2], []string{"timeout:10", "attempts:1"}, schedule{abc[:2], 1, 4500 * time.Millisecond, 9 * time.Second}},
		"timeout of a second":  {abc, []string{"timeout:1"}, schedule{abc, 2, 250 * time.Millisecond, 900 * time.Millisecond}},
		"more than the most":   {abc[:1], []string{"timeout:100", "attempts:100"}, schedule{abc[:1], 5, 5400 * time.Millisecond, 27 * time.Second}},
		"more than fits":       {abc[:1], []string{"timeout:18446744074"}, schedule{abc[:1], 2, 13500 * time.Millisecond, 27 * time.Second}},
		"nonsense":             {abc[:1], []string{"timeout:x", "attempts:0", "timeout"}, schedule{abc[:1], 2, 2 * time.Second, 4500 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstreamSource(Options{Upstreams: test.upstreams, Options: test.options}, "/nowhere")
			addrPort := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
			if diff := cmp.Diff(test.want, u.schedule(), cmp.AllowUnexported(schedule{}), addrPort); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("rotate begins with another each time", func(t *testing.T) {
		u := newUpstreamSource(Options{Upstreams: abc, Options: []string{"rotate"}}, "/nowhere")
		for _, want := range [][]netip.AddrPort{{a, b, c}, {b, c, a}, {c, a, b}, {a, b, c}} {
			if got := u.schedule().upstreams; !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		}
	})
}

// followed starts to follow a file and returns what waits for its first upstream.
func followed(t *testing.T, path string) (u *upstreamSource, await func(string)) {
	t.Helper()
	u = newUpstreamSource(Options{}, path)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { u.follow(ctx, slog.New(slog.DiscardHandler)) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return u, func(server string) {
		t.Helper()
		want := []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(server), dnsPort)}
		testenv.Until(t, "the upstream "+server, func() bool { return slices.Equal(u.conf().upstreams, want) })
	}
}

func TestTheHostsResolvConfIsFollowed(t *testing.T) {
	dir := t.TempDir()
	at := func(path string) string { return filepath.Join(dir, path) }
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, server string) {
		t.Helper()
		do(os.WriteFile(at(path), []byte("nameserver "+server+"\n"), 0o600))
	}
	replace := func(path, server string) {
		t.Helper()
		write(path+".new", server)
		do(os.Rename(at(path+".new"), at(path)))
	}
	link := func(target, path string) {
		t.Helper()
		do(os.Symlink(target, at(path+".new")))
		do(os.Rename(at(path+".new"), at(path)))
	}
	_, await := followed(t, at("etc/resolv.conf"))
	await("127.0.0.1") // not even the directory
	do(os.Mkdir(at("etc"), 0o700))
	write("etc/resolv.conf", "192.0.2.1")
	await("192.0.2.1")
	write("etc/resolv.conf", "192.0.2.2") // in place
	await("192.0.2.2")
	replace("etc/resolv.conf", "192.0.2.3") // as resolvconf does it
	await("192.0.2.3")
	// As systemd has it: two links, the first of them relative.
	do(os.MkdirAll(at("run/systemd/resolve"), 0o700))
	do(os.Mkdir(at("lib"), 0o700))
	link("../lib/link", "etc/resolv.conf") // which leads nowhere yet
	link(at("run/systemd/resolve/stub"), "lib/link")
	write("run/systemd/resolve/stub", "192.0.2.4")
	await("192.0.2.4")
	replace("run/systemd/resolve/stub", "192.0.2.5")
	await("192.0.2.5")
	write("run/systemd/resolve/other", "192.0.2.6")
	link(at("run/systemd/resolve/other"), "lib/link") // the link in between
	await("192.0.2.6")
	do(os.RemoveAll(at("run/systemd"))) // a service that stops, and starts again
	await("192.0.2.6")
	do(os.MkdirAll(at("run/systemd/resolve"), 0o700))
	write("run/systemd/resolve/other", "192.0.2.7")
	await("192.0.2.7")
	do(os.WriteFile(at("run/systemd/resolve/other"), nil, 0o600))
	replace("etc/resolv.conf", "192.0.2.8")
	await("192.0.2.8")
}

func TestThePlanIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	u, await := followed(t, path)
	await("127.0.0.1")
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.3\nsearch b.test\noptions ndots:2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	await("192.0.2.3")
	<-u.changed
	if c := u.conf(); !slices.Equal(c.search, []string{"b.test"}) || !slices.Equal(c.options, []string{"ndots:2"}) {
		t.Errorf("search %q, options %q", c.search, c.options)
	}
}
