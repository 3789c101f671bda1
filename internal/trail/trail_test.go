package trail

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// followed starts to follow a file, and returns what waits until it has been seen
// with a content, and what has been logged.
func followed(t *testing.T, path string) (await func(content string), logged func() string) {
	t.Helper()
	var seen atomic.Value
	var mu sync.Mutex // guards log
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		Follow(ctx, path, slog.New(slog.NewTextHandler(&locked{&mu, &log}, nil)), func() {
			content, err := os.ReadFile(path)
			if err != nil {
				content = []byte("none")
			}
			seen.Store(string(content))
		})
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	await = func(content string) {
		t.Helper()
		testenv.Until(t, "the file to be "+content, func() bool { return seen.Load() == content })
	}
	logged = func() string {
		mu.Lock()
		defer mu.Unlock()
		return log.String()
	}
	return await, logged
}

// locked is a buffer behind a lock.
type locked struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// tree makes files below a directory.
type tree struct {
	t   *testing.T
	dir string
}

func (d tree) at(path string) string { return filepath.Join(d.dir, path) }

func (d tree) do(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d tree) write(path string) {
	d.t.Helper()
	d.do(os.MkdirAll(filepath.Dir(d.at(path)), 0o700))
	d.do(os.WriteFile(d.at(path), []byte(path), 0o600))
}

// link puts a link in the place of whatever is there.
func (d tree) link(target, path string) {
	d.t.Helper()
	d.do(os.Symlink(target, d.at(path+".new")))
	d.do(os.Rename(d.at(path+".new"), d.at(path)))
}

// Whatever name on the way becomes another, the file that is there then is seen.
func TestEachNameOnTheWayIsFollowed(t *testing.T) {
	for name, change := range map[string]func(d tree){
		"nothing":                    func(tree) {},
		"the first link":             func(d tree) { d.link("../run/other/file", "etc/file") },
		"the directory's link":       func(d tree) { d.link("other", "run/dns") },
		"a directory far above":      func(d tree) { d.do(os.Rename(d.at("run"), d.at("old"))); d.do(os.Rename(d.at("new"), d.at("run"))) },
		"a link to the way of links": func(d tree) { d.link("new", "run") },
		"the file":                   func(d tree) { d.do(os.Rename(d.at("run/other/file"), d.at("run/vpn/file"))) },
		"a parent of the link's":     func(d tree) { d.link(d.at("run/vpn/sub/../../other"), "run/dns") },
	} {
		t.Run(name, func(t *testing.T) {
			d := tree{t, t.TempDir()}
			d.write("run/vpn/file")
			d.write("run/other/file")
			d.write("new/dns/file")
			d.do(os.Mkdir(d.at("run/vpn/sub"), 0o700))
			d.do(os.Mkdir(d.at("etc"), 0o700))
			d.link("../run/dns/file", "etc/file")
			d.link("vpn", "run/dns")
			want := "run/other/file"
			switch name {
			case "nothing":
				want = "run/vpn/file"
			case "a directory far above":
				want = "new/dns/file"
			case "a link to the way of links":
				d.do(os.Rename(d.at("run"), d.at("before")))
				d.link("before", "run")
				want = "new/dns/file"
			}
			await, logged := followed(t, d.at("etc/file"))
			await("run/vpn/file")
			change(d)
			await(want)
			// And what is behind it from here on.
			target, err := filepath.EvalSymlinks(d.at("etc/file"))
			d.do(err)
			d.do(os.WriteFile(target, []byte("again"), 0o600))
			await("again")
			if log := logged(); log != "" {
				t.Errorf("logged: %s", log)
			}
		})
	}
}

func TestWhatIsMissingIsAwaited(t *testing.T) {
	d := tree{t, t.TempDir()}
	await, logged := followed(t, d.at("a/b/c/file"))
	await("none")
	d.write("a/b/c/file")
	await("a/b/c/file")
	d.do(os.RemoveAll(d.at("a")))
	await("none")
	d.do(os.WriteFile(d.at("a"), nil, 0o600)) // no directory
	d.do(os.Remove(d.at("a")))
	d.do(os.MkdirAll(d.at("x/b/c"), 0o700))
	d.do(os.WriteFile(d.at("x/b/c/file"), []byte("moved"), 0o600))
	d.do(os.Rename(d.at("x"), d.at("a")))
	await("moved")
	d.do(os.Remove(d.at("a/b/c/file")))
	d.link("file", "a/b/c/file")
	await("none") // a loop
	testenv.Until(t, "a word of it", func() bool { return strings.Contains(logged(), "too many levels of symbolic links") })
	d.do(os.Remove(d.at("a/b/c/file")))
	d.do(os.WriteFile(d.at("a/b/c/file"), []byte("back"), 0o600))
	await("back")
}
