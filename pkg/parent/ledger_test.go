package parent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatekit/gatekit/pkg/port"
)

// fakePorts is a port driver that binds nothing. Port 0 gives 40000 and on.
type fakePorts struct {
	port.Driver
	taken []int // ports of another program

	mu   sync.Mutex // guards list and last
	list []port.Status
	last int
}

func (p *fakePorts) Add(_ context.Context, specs []port.Spec) ([]port.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var added []port.Status
	for _, spec := range specs {
		for _, s := range p.list {
			if port.Conflicts(spec, s.Spec) {
				return nil, fmt.Errorf("%w: %s", port.ErrConflict, spec)
			}
		}
		if slices.Contains(p.taken, spec.ParentPort) {
			return nil, fmt.Errorf("%w: %s", port.ErrConflict, spec)
		}
		if spec.ParentPort == 0 {
			spec.ParentPort = 40000 + p.last
		}
		p.last++
		added = append(added, port.Status{ID: p.last, Spec: spec})
	}
	p.list = append(p.list, added...)
	return added, nil
}

func (p *fakePorts) Remove(_ context.Context, ids []int, _ time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = slices.DeleteFunc(p.list, func(s port.Status) bool { return slices.Contains(ids, s.ID) })
	return nil
}

func (p *fakePorts) List() []port.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.list)
}

// texts are the forwards in place.
func (p *fakePorts) texts() []string {
	list := []string{}
	for _, s := range p.List() {
		list = append(list, s.Spec.String())
	}
	return list
}

func parseAll(t *testing.T, texts ...string) []port.Spec {
	t.Helper()
	var all []port.Spec
	for _, text := range texts {
		specs, err := port.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, specs...)
	}
	return all
}

// gateAt is the ledger of a gate that has started.
func gateAt(t *testing.T, path string, driver *fakePorts, restore bool, publish ...string) (l *ledger, log *bytes.Buffer) {
	t.Helper()
	log = &bytes.Buffer{}
	l = newLedger(driver, path, slog.New(slog.NewTextHandler(log, nil)))
	if _, err := l.start(t.Context(), parseAll(t, publish...), restore); err != nil {
		t.Fatal(err)
	}
	return l, log
}

func TestForwardsComeBack(t *testing.T) {
	for _, tt := range []struct {
		name    string
		before  []string // published by the first gate
		added   []string // over its API
		removed []int
		publish []string // by the next gate
		taken   []int    // by another program
		want    []string
		warns   string // what the next gate warns of
	}{
		{name: "as they were asked for", added: []string{"8080:80/tcp", "[::1]:53:[fd00::1]:53/udp6"},
			want: []string{"8080:80/tcp", "[::1]:53:[fd00::1]:53/udp6"}},
		{name: "those that were published too", before: []string{"8080:80/tcp"}, want: []string{"8080:80/tcp"}},
		{name: "but not those that were removed", added: []string{"8080:80/tcp", "8081:80/tcp"}, removed: []int{1},
			want: []string{"8081:80/tcp"}},
		{name: "once, when they are published again", before: []string{"8080:80/tcp"}, added: []string{"8081:80/tcp"},
			publish: []string{"8080:80/tcp"}, want: []string{"8080:80/tcp", "8081:80/tcp"}},
		{name: "with the free port that they had", before: []string{"0:80/tcp", "0:80/tcp"}, added: []string{"0:80/tcp"},
			publish: []string{"0:80/tcp", "0:80/tcp"}, want: []string{"40000:80/tcp", "40001:80/tcp", "40002:80/tcp"}},
		{name: "a port that was asked for is no free port", added: []string{"8080:80/tcp"},
			publish: []string{"0:80/tcp"}, want: []string{"40000:80/tcp", "8080:80/tcp"}},
		{name: "a free port is not insisted on", before: []string{"0:80/tcp"}, taken: []int{40000}, publish: []string{"1:1/udp", "0:80/tcp"},
			want: []string{"1:1/udp", "40002:80/tcp"}},
		{name: "all but one that another program has", added: []string{"8080:80/tcp", "8081:80/tcp", "8082:80/tcp"}, taken: []int{8081},
			want: []string{"8080:80/tcp", "8082:80/tcp"}, warns: "8081:80/tcp"},
		{name: "all but one that is published otherwise", added: []string{"8080:80/tcp"}, publish: []string{"8080:81/tcp"},
			want: []string{"8080:81/tcp"}, warns: "8080:80/tcp"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ports.json")
			first, _ := gateAt(t, path, &fakePorts{}, true, tt.before...)
			if _, err := first.add(t.Context(), parseAll(t, tt.added...)); err != nil {
				t.Fatal(err)
			}
			if err := first.remove(t.Context(), tt.removed, 0); err != nil {
				t.Fatal(err)
			}
			driver := &fakePorts{taken: tt.taken}
			_, log := gateAt(t, path, driver, true, tt.publish...)
			if diff := cmp.Diff(tt.want, driver.texts()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if !strings.Contains(log.String(), tt.warns) || (tt.warns == "") != (log.Len() == 0) {
				t.Errorf("the log is %q, want %q in it", log, tt.warns)
			}
			// And once more, of what the second has written.
			third := &fakePorts{}
			gateAt(t, path, third, true, tt.publish...)
			if diff := cmp.Diff(tt.want, third.texts()); diff != "" {
				t.Errorf("the second time (-want +got)\n%s", diff)
			}
		})
	}
}

// That automatic forwards are wanted comes back too, with and without others.
func TestAutomaticForwardsComeBack(t *testing.T) {
	for _, others := range [][]string{nil, {"8080:80/tcp", "8081:81/udp"}} {
		path := filepath.Join(t.TempDir(), "ports.json")
		l, _ := gateAt(t, path, &fakePorts{}, false, others...)
		for _, on := range []bool{true, true, false, true} {
			l.setAuto(on)
			driver := &fakePorts{}
			next := newLedger(driver, path, slog.New(slog.DiscardHandler))
			if again, err := next.start(t.Context(), nil, true); err != nil || again != on {
				t.Errorf("with %q, after %v: %v, %v", others, on, again, err)
			}
			if diff := cmp.Diff(append([]string{}, others...), driver.texts()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			// What the next one has saved says the same.
			third := newLedger(&fakePorts{}, path, slog.New(slog.DiscardHandler))
			if again, err := third.start(t.Context(), nil, true); err != nil || again != on {
				t.Errorf("the second time, after %v: %v, %v", on, again, err)
			}
		}
	}
}

func TestForwardsComeBackOnlyWhenAsked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	gateAt(t, path, &fakePorts{}, false, "8080:80/tcp")
	driver := &fakePorts{}
	gateAt(t, path, driver, false)
	if list := driver.texts(); len(list) != 0 {
		t.Errorf("there are %v", list)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("no forwards, but a file: %v", err)
	}
}

func TestAFileThatIsNoneIsAWarning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	for _, text := range []string{"", "{", "{}", `[{"parentPort":"80"}]`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		driver := &fakePorts{}
		_, log := gateAt(t, path, driver, true, "8080:80/tcp")
		if !strings.Contains(log.String(), path) {
			t.Errorf("%q: the log is %q", text, log)
		}
		if diff := cmp.Diff([]string{"8080:80/tcp"}, driver.texts()); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", text, diff)
		}
	}
}

func TestAFileThatCannotBeWrittenUndoesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gone", "ports.json")
	driver := &fakePorts{}
	l, log := gateAt(t, path, driver, false)
	if _, err := l.add(t.Context(), parseAll(t, "8080:80/tcp")); err != nil {
		t.Error(err)
	}
	if list := driver.texts(); len(list) != 1 || !strings.Contains(log.String(), "cannot be kept") {
		t.Errorf("there are %v, and the log is %q", list, log)
	}
}

// The file is whole at every moment, and holds what is in place in the end.
func TestTheFileIsReplacedInOneStep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	driver := &fakePorts{}
	l, _ := gateAt(t, path, driver, false, "1:1/tcp")
	var changes, readers sync.WaitGroup
	done := make(chan struct{})
	readers.Go(func() {
		for {
			if list, err := readPorts(path); err != nil || len(list) == 0 {
				t.Errorf("it holds %v, %v", list, err)
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for i := range 8 {
		changes.Go(func() {
			for j := range 10 {
				added, err := l.add(t.Context(), parseAll(t, fmt.Sprintf("%d:80/tcp", 1000+100*i+j)))
				if err == nil && j%2 == 0 {
					err = l.remove(t.Context(), []int{added[0].ID}, 0)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	changes.Wait()
	close(done)
	readers.Wait()
	list, err := readPorts(path)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, e := range list {
		got = append(got, port.Spec(e.PortSpec).String())
	}
	if diff := cmp.Diff(driver.texts(), got); diff != "" {
		t.Errorf("(-in place +in the file)\n%s", diff)
	}
	if names, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	if err := removePorts(path); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// slowPorts is a driver whose list is as it was asked for, and comes when hold gives.
type slowPorts struct {
	fakePorts
	hold  chan struct{} // nil holds nothing
	asked atomic.Int32
}

func (p *slowPorts) List() []port.Status {
	list := p.fakePorts.List()
	p.asked.Add(1)
	if p.hold != nil {
		<-p.hold
	}
	return list
}

// Changes that come while the file is being written share the next writing, and none
// is answered before the file has it.
func TestChangesShareAWriting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	inFile := func() int {
		t.Helper()
		list, err := readPorts(path)
		if err != nil {
			t.Error(err)
		}
		return len(list)
	}
	synctest.Test(t, func(t *testing.T) {
		driver := &slowPorts{}
		l := newLedger(driver, path, slog.New(slog.DiscardHandler))
		if _, err := l.start(t.Context(), parseAll(t, "8000-8099:8000-8099/tcp"), false); err != nil {
			t.Fatal(err)
		}
		driver.hold = make(chan struct{})
		driver.asked.Store(0)
		var answered atomic.Int32
		change := func(f func() error) {
			go func() {
				if err := f(); err != nil {
					t.Error(err)
				}
				answered.Add(1)
			}()
		}
		remove := func(id int) { change(func() error { return l.remove(t.Context(), []int{id}, 0) }) }
		remove(1)
		synctest.Wait()
		for id := 2; id <= 60; id++ {
			remove(id)
		}
		change(func() error {
			_, err := l.add(t.Context(), parseAll(t, "9000-9009:9000-9009/tcp"))
			return err
		})
		for _, want := range []struct{ asked, answered, before int32 }{{1, 0, 100}, {2, 1, 99}} {
			synctest.Wait()
			if driver.asked.Load() != want.asked || answered.Load() != want.answered || inFile() != int(want.before) {
				t.Errorf("%d writings are begun, %d changes answered and %d forwards in the file, want %v",
					driver.asked.Load(), answered.Load(), inFile(), want)
			}
			driver.hold <- struct{}{}
		}
		synctest.Wait()
		if driver.asked.Load() != 2 || answered.Load() != 61 {
			t.Errorf("after %d writings %d changes are answered, want all 61 after 2", driver.asked.Load(), answered.Load())
		}
	})
	if n := inFile(); n != 100-60+10 {
		t.Errorf("in the end %d forwards are in the file", n)
	}
}
