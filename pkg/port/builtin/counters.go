package builtin

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Counters are what the driver has counted since it began. All but Conns and
// Flows only grow.
type Counters struct {
	Conns        int64 // TCP connections now
	Accepted     int64 // TCP connections accepted
	AcceptErrors int64 // errors of accept4(2): out of descriptors, out of memory, aborted
	ConnsRefused int64 // connections reset because of a cap
	DialErrors   int64 // connections reset because the service could not be reached

	Flows        int64 // UDP flows now
	FlowsEvicted int64 // flows that made room for newer ones
	Dropped      int64 // datagrams that could not be passed on
}

// Counters returns the counters as they are now.
func (d *Driver) Counters() Counters {
	c := &d.count
	return Counters{
		Conns:        c.conns.Load(),
		Accepted:     c.accepted.Load(),
		AcceptErrors: c.acceptErrors.Load(),
		ConnsRefused: c.connsRefused.Load(),
		DialErrors:   c.dialErrors.Load(),
		Flows:        c.flows.Load(),
		FlowsEvicted: c.flowsEvicted.Load(),
		Dropped:      c.dropped.Load(),
	}
}

type counters struct {
	conns, accepted, acceptErrors, connsRefused, dialErrors atomic.Int64
	flows, flowsEvicted, dropped                            atomic.Int64
}

// quiet is how long rareLog holds its tongue about a message it has logged.
const quiet = 10 * time.Second

// rareLog logs a message at most once in a while, with how many there were
// since: what one bad client can cause a million times must not fill a disk.
type rareLog struct {
	logger *slog.Logger

	mu   sync.Mutex // guards seen, whose keys are constant messages
	seen map[string]*seen
}

type seen struct {
	last       time.Time
	suppressed int
}

// warn logs the message, which must be a constant.
func (l *rareLog) warn(message string, args ...any) {
	now := time.Now()
	l.mu.Lock()
	s := l.seen[message]
	if s == nil {
		if l.seen == nil {
			l.seen = map[string]*seen{}
		}
		s = &seen{}
		l.seen[message] = s
	}
	silent := now.Sub(s.last) < quiet
	suppressed := s.suppressed
	if silent {
		s.suppressed++
	} else {
		s.last, s.suppressed = now, 0
	}
	l.mu.Unlock()
	if silent {
		return
	}
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	l.logger.Log(context.Background(), slog.LevelWarn, message, args...)
}
