package slirp

import (
	"runtime"
	"testing"
)

func TestMemoryIsGivenBackAfterManyFlowsHaveEnded(t *testing.T) {
	r := reclaimer{spare: func() {}}
	defer r.stop()
	waits := func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.timer != nil
	}
	for range 100 * reclaimStep { // flows that come and go
		r.opened()
		r.ended()
	}
	if waits() {
		t.Fatal("it is about to give back what is used again at once")
	}
	for range 2 * reclaimStep {
		r.opened()
	}
	for range reclaimStep - 1 {
		r.ended()
	}
	if waits() {
		t.Fatal("too early")
	}
	if r.ended(); !waits() {
		t.Fatal("nothing is given back")
	}
	// From here on, the fall counts from what is open now.
	r.reclaim()
	if r.ended(); waits() {
		t.Error("it gives back twice")
	}
	for range reclaimStep {
		r.ended()
	}
	if !waits() {
		t.Error("it gives back only once")
	}
}

// What was in use, in a pool of the stack's for one, does not stay resident.
func TestReclaimGivesMemoryToTheHost(t *testing.T) {
	chunks := make([][]byte, 64)
	for i := range chunks {
		chunks[i] = make([]byte, 1<<20)
		chunks[i][0] = 1
	}
	resident := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapSys - m.HeapReleased
	}
	before := resident()
	runtime.KeepAlive(chunks)
	chunks = nil
	r := reclaimer{spare: func() {}}
	r.reclaim()
	if after := resident(); after+32<<20 > before {
		t.Errorf("%d MiB are resident, and were %d before", after>>20, before>>20)
	}
}
