package meter

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStatOfAProcess(t *testing.T) {
	const numbers = " 1 1 0 -1 4194560 0 0 0 0 120 34 5 6 20 0 1 0 100 1000 10"
	for _, c := range []struct {
		name, line string
		want       Process
	}{
		{"a plain one", "42 (gatekit) S 7" + numbers, Process{PID: 42, PPID: 7, Name: "gatekit", CPU: 1540 * time.Millisecond}},
		{"a name with brackets and blanks", "42 (a) R (b) S 7" + numbers, Process{PID: 42, PPID: 7, Name: "a) R (b", CPU: 1540 * time.Millisecond}},
		{"a zombie", "42 (x) Z 7" + numbers, Process{PID: 42, PPID: 7, Name: "x", Zombie: true, CPU: 1540 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseStat(c.line)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	for name, line := range map[string]string{
		"empty":          "",
		"without a name": "42 gatekit S 7" + numbers,
		"cut off":        "42 (gatekit) S 7 1 1",
		"no number":      "42 (gatekit) S x" + numbers,
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := parseStat(line); err == nil {
				t.Errorf("no error, but %+v", got)
			}
		})
	}
}

func TestDescendantsOfAProcess(t *testing.T) {
	all := []Process{{PID: 1}, {PID: 2, PPID: 1}, {PID: 3, PPID: 2}, {PID: 4, PPID: 3}, {PID: 5, PPID: 1}}
	for _, c := range []struct {
		name  string
		roots []int
		want  []int
	}{
		{"one with descendants", []int{2}, []int{2, 3, 4}},
		{"two", []int{4, 5}, []int{4, 5}},
		{"none", nil, nil},
		{"one that is not there", []int{9}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Below(all, c.roots...); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestThisProcessIsMeasured(t *testing.T) {
	self := os.Getpid()
	u, err := Measure("/proc", []int{self, 1 << 30}) // there is no such second one
	if err != nil {
		t.Fatal(err)
	}
	if u.Resident < 1<<20 || u.Descriptors < 3 || u.Switches == 0 {
		t.Errorf("usage: %+v", u)
	}
	all, err := Processes("/proc")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(all, func(p Process) bool { return p.PID == self && p.PPID == os.Getppid() && !p.Zombie }) {
		t.Errorf("this process, %d, is not among %+v", self, all)
	}
}

func TestMachine(t *testing.T) {
	proc := t.TempDir()
	if err := os.MkdirAll(filepath.Join(proc, "sys/kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"sys/kernel/osrelease": "6.18.44-of-somebody\n",
		"cpuinfo":              "processor\t: 0\nmodel name\t: A  Model\n\nprocessor\t: 1\nmodel name\t: A  Model\n",
		"meminfo":              "MemTotal:       8388608 kB\nMemFree: 1 kB\n",
		"stat":                 "cpu  100 10 50 999 99 7 3 88 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n",
	} {
		if err := os.WriteFile(filepath.Join(proc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := ReadMachine(proc)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m.String(), "2 × A Model, 8 GiB of memory, Linux 6.18.44"; got != want {
		t.Errorf("machine: %q, want %q", got, want)
	}
	busy, err := BusyTime(proc)
	if err != nil {
		t.Fatal(err)
	}
	if want := 1700 * time.Millisecond; busy != want {
		t.Errorf("busy: %v, want %v", busy, want)
	}
}
