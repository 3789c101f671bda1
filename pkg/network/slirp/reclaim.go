package slirp

import (
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// reclaimer gives memory back to the host after many flows have ended. Go itself
// collects only when more is allocated, so an idle gate would keep for minutes
// what a rush of connections took.
//
// The number of open flows has to fall by reclaimStep from where it was highest,
// so that flows that come and go cause nothing. There is no timer but after that.
type reclaimer struct {
	spare func() // gives up what is kept for later

	mu         sync.Mutex // guards all below
	open, peak int
	timer      *time.Timer // not nil while memory is about to be given back
	stopped    bool
}

const (
	reclaimStep = 256

	// reclaimDelay lets the rest of a rush end as well.
	reclaimDelay = 2 * time.Second
)

// opened counts a flow.
func (r *reclaimer) opened() {
	r.mu.Lock()
	r.open++
	r.peak = max(r.peak, r.open)
	r.mu.Unlock()
}

// ended counts the end of one.
func (r *reclaimer) ended() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
	if r.peak-r.open >= reclaimStep && r.timer == nil && !r.stopped {
		r.timer = time.AfterFunc(reclaimDelay, r.reclaim)
	}
}

// reclaim gives memory back.
func (r *reclaimer) reclaim() {
	r.mu.Lock()
	r.timer, r.peak = nil, r.open
	stopped := r.stopped
	r.mu.Unlock()
	if stopped {
		return
	}
	r.spare()
	runtime.GC() // what is in a sync.Pool outlives one collection
	debug.FreeOSMemory()
}

// stop ends the wait.
func (r *reclaimer) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	if r.timer != nil {
		r.timer.Stop()
	}
}
