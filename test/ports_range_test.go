package test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// anonymous is how many KiB of a process's own memory are resident.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSuffix(field(t, string(text), "RssAnon"), " kB"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A thousand ports at once cost little, to add and to keep. The least of some gates
// counts: what else a gate happens to do in the meantime is not the range's.
func TestAThousandPortsGrowTheGateByLessThanTwoMegabytes(t *testing.T) {
	s := newSite(t)
	var g *gate
	var grown []int
	for len(grown) < 4 && (grown == nil || slices.Min(grown) > 2048) {
		if g != nil {
			g.stop(t)
		}
		g = startGate(t, s.Host, "--net=slirp", "-p", "127.0.0.1:7999:80/tcp", "sleep", "infinity")
		g.ctlOutput(t, "list-ports") // what a first call takes is not the range's either
		before := anonymous(t, g.PID())
		ids := strings.Fields(g.ctlOutput(t, "add-ports", "8000-8999:8000-8999/tcp"))
		if len(ids) != 1000 {
			t.Fatalf("%d ids", len(ids))
		}
		grown = append(grown, anonymous(t, g.PID())-before)
	}
	if slices.Min(grown) > 2048 {
		t.Errorf("gates have grown by %d KiB", grown)
	}
	g.serve(t, "tcp", "127.0.0.1:8777")
	if err := tryTCP(t, s.outside, at(s.outside.HostAddr4, 8777), 100_000); err != nil {
		t.Error(err)
	}
	if _, err := g.tryAdd(t, "9000-9001:9000-9001/tcp", "8998-9008:8998-9008/tcp"); err == nil {
		t.Error("a range that overlaps is added")
	}
	if n := len(specsOf(t, g)); n != 1001 {
		t.Errorf("after a range that overlaps there are %d forwards", n)
	}
	var all []string
	for id := 2; id <= 1001; id++ {
		all = append(all, strconv.Itoa(id))
	}
	if removed := g.ctlOutput(t, append([]string{"remove-ports"}, all...)...); removed != strings.Join(all, "\n")+"\n" {
		t.Errorf("remove-ports prints %q", removed)
	}
	if left := specsOf(t, g); len(left) != 1 {
		t.Errorf("after remove-ports there are %d forwards", len(left))
	}
}
