package builtin

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/gatekit/gatekit/pkg/port"
)

// rangeOf is FIRST-LAST:FIRST-LAST/PROTO of a thousand ports that are free for
// the moment. They are no ephemeral ones, which other tests are given.
func rangeOf(tb testing.TB, d *Driver, proto string) []port.Spec {
	tb.Helper()
	for first := 10000; first < 30000; first += 1000 {
		batch := specs(tb, fmt.Sprintf("%d-%d:%[1]d-%[2]d/%s", first, first+999, proto))
		statuses, err := d.Add(tb.Context(), batch)
		if err != nil {
			continue
		}
		if err := d.Remove(tb.Context(), ids(statuses), 0); err != nil {
			tb.Fatal(err)
		}
		return batch
	}
	tb.Fatal("no thousand ports are free in a row")
	return nil
}

func ids(statuses []port.Status) []int {
	all := make([]int, len(statuses))
	for i, s := range statuses {
		all[i] = s.ID
	}
	return all
}

// liveBytes is what the heap holds.
func liveBytes() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkRange adds and removes 8000-8999:8000-8999/PROTO or the like, on every
// address of both families: two thousand sockets. It reports the memory that
// the forwards hold while they are idle, as B/range, and the time to add them.
func BenchmarkRange(b *testing.B) {
	for _, proto := range []string{"tcp", "udp"} {
		b.Run(proto, func(b *testing.B) {
			d := start(b, Options{})
			batch := rangeOf(b, d, proto)
			before := liveBytes()
			var held int64
			var adding time.Duration
			b.ReportAllocs()
			for b.Loop() {
				began := time.Now()
				statuses, err := d.Add(b.Context(), batch)
				adding += time.Since(began)
				if err != nil {
					b.Fatal(err)
				}
				if held == 0 {
					b.StopTimer()
					held = liveBytes() - before
					b.StartTimer()
				}
				if err := d.Remove(b.Context(), ids(statuses), 0); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(held), "B/range")
			b.ReportMetric(float64(adding.Microseconds())/1000/float64(b.N), "ms/add")
		})
	}
}

func TestARangeHoldsLittleAndIsAllOrNothing(t *testing.T) {
	d := start(t, Options{})
	add(t, d, "127.0.0.1:0:80/tcp", "127.0.0.1:0:80/udp") // these have the pool filled
	for _, proto := range []string{"tcp", "udp"} {
		batch := rangeOf(t, d, proto)
		goroutines, before := runtime.NumGoroutine(), liveBytes()
		statuses, err := d.Add(t.Context(), batch)
		if err != nil {
			t.Fatal(err)
		}
		if held := liveBytes() - before; held > 2<<20 {
			t.Errorf("%s: a thousand idle forwards hold %d bytes", proto, held)
		}
		if got := runtime.NumGoroutine(); got > goroutines {
			t.Errorf("%s: %d goroutines came with a thousand idle forwards", proto, got-goroutines)
		}
		if err := d.Remove(t.Context(), ids(statuses), 0); err != nil {
			t.Fatal(err)
		}
		// One that is taken, in the middle, and none comes.
		middle := batch[500]
		if _, err := d.Add(t.Context(), []port.Spec{middle}); err != nil {
			t.Fatal(err)
		}
		_, err = d.Add(t.Context(), batch)
		if !errors.Is(err, port.ErrConflict) || len(d.List()) != 3 {
			t.Errorf("%s: %v, and there are %d forwards", proto, err, len(d.List()))
		}
		last := d.List()[2]
		if err := d.Remove(t.Context(), []int{last.ID}, 0); err != nil {
			t.Fatal(err)
		}
		if statuses, err = d.Add(t.Context(), batch); err != nil {
			t.Fatalf("%s: what was bound before the conflict is not free again: %v", proto, err)
		}
		if err := d.Remove(t.Context(), ids(statuses), 0); err != nil {
			t.Fatal(err)
		}
	}
}
