package slirp

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// Counters are what the network has counted since Run began. The zero value is that
// of a network that has not run. All but Open only grow. What the namespace sends and
// nobody takes is in one of them, so that nothing is lost unseen.
type Counters struct {
	// FramesAccepted came from the namespace and were sound. FramesRefused were
	// broken, or for somebody who is not on the link (frame.go).
	FramesAccepted, FramesRefused uint64

	// PacketsRefused were sound as frames, and not what they carried: fragments that
	// overlap, unknown options, segments without sense, and checksums that are wrong
	// once the fragments are together.
	PacketsRefused uint64

	// FramesSent were for the namespace, and taken by its kernel.
	FramesSent uint64

	// FramesLost were for the namespace, and its kernel did not take them, since
	// the queue of its interface was full.
	FramesLost uint64

	// UDP and Echo are those of the flows of datagrams and of echo requests.
	UDP, Echo FlowCounters

	// DialsTurnedAway are SYNs that were dropped, because too many connections
	// were being set up, or no descriptor was left; the namespace sends them again.
	DialsTurnedAway uint64

	// QueriesDropped were for the DNS server and no queries, or too many at a time, or
	// there was no descriptor for them.
	// StreamsTurnedAway are TCP connections to it that were too many.
	QueriesDropped, StreamsTurnedAway uint64

	// GuestsAnswered and GuestsIgnored are the questions for an address or a router,
	// from guests of the namespace. GuestsTurnedAway found no address left.
	GuestsAnswered, GuestsIgnored, GuestsTurnedAway uint64
}

// FlowCounters are those of a table of flows.
type FlowCounters struct {
	Open    int    // flows now
	Evicted uint64 // flows that had to make room for others
	Refused uint64 // datagrams that may not go where they were sent
	Dropped uint64 // datagrams that the host did not take, or that nobody had asked for
	Told    uint64 // ICMP errors that the namespace got
}

// Counters returns the counters of now, or those of the end after Run has returned.
func (n *Network) Counters() Counters {
	if e := n.engine.Load(); e != nil {
		return e.counters()
	}
	if last := n.last.Load(); last != nil {
		return *last
	}
	return Counters{}
}

// counters reads all counters. They are not of one moment.
func (e *engine) counters() Counters {
	stats := e.stack.Stats()
	c := Counters{
		FramesAccepted:    e.link.accepted.Load(),
		FramesRefused:     e.link.refused.Load(),
		FramesSent:        e.dev.sent.Load(),
		FramesLost:        e.dev.dropped.Load(),
		UDP:               e.udp.counters(),
		Echo:              e.echo.counters(),
		DialsTurnedAway:   e.tcp.full.count.Load() + e.tcp.starved.count.Load(),
		QueriesDropped:    e.dns.full.count.Load() + e.dns.starved.count.Load() + e.dns.malformed.Load(),
		StreamsTurnedAway: e.dns.fullStreams.count.Load(),
		GuestsAnswered:    e.guests.answered.Load(),
		GuestsIgnored:     e.guests.ignored.Load(),
		GuestsTurnedAway:  e.guests.full.count.Load(),
		PacketsRefused:    e.malformed.Load(),
	}
	if lo := e.inbound.lo.Load(); lo != nil {
		c.FramesSent += lo.dev.sent.Load()
		c.FramesLost += lo.dev.dropped.Load()
	}
	for _, counter := range []interface{ Value() uint64 }{
		stats.IP.MalformedPacketsReceived, stats.IP.OptionUnknownReceived,
		stats.NICs.MalformedL4RcvdPackets, stats.UDP.MalformedPacketsReceived, stats.ARP.MalformedPacketsReceived,
		stats.ICMP.V4.PacketsReceived.Invalid, stats.ICMP.V6.PacketsReceived.Invalid,
	} {
		c.PacketsRefused += counter.Value()
	}
	return c
}

// counters reads the counters of a table.
func (t *flowTable) counters() FlowCounters {
	t.mu.Lock()
	open := len(t.flows)
	t.mu.Unlock()
	return FlowCounters{
		Open:    open,
		Evicted: t.full.count.Load() + t.starved.count.Load(),
		Refused: t.refused.Load(),
		Dropped: t.dropped.Load(),
		Told:    t.told.Load(),
	}
}

// LogValue implements slog.LogValuer. What is 0 is left out.
func (c Counters) LogValue() slog.Value {
	return group(
		slog.Uint64("framesAccepted", c.FramesAccepted), slog.Uint64("framesRefused", c.FramesRefused),
		slog.Uint64("packetsRefused", c.PacketsRefused), slog.Uint64("framesSent", c.FramesSent), slog.Uint64("framesLost", c.FramesLost),
		slog.Attr{Key: "udp", Value: c.UDP.LogValue()}, slog.Attr{Key: "echo", Value: c.Echo.LogValue()},
		slog.Uint64("dialsTurnedAway", c.DialsTurnedAway),
		slog.Uint64("queriesDropped", c.QueriesDropped), slog.Uint64("streamsTurnedAway", c.StreamsTurnedAway),
		slog.Uint64("guestsAnswered", c.GuestsAnswered), slog.Uint64("guestsIgnored", c.GuestsIgnored),
		slog.Uint64("guestsTurnedAway", c.GuestsTurnedAway))
}

// LogValue implements slog.LogValuer. What is 0 is left out.
func (c FlowCounters) LogValue() slog.Value {
	return group(slog.Uint64("open", uint64(c.Open)), slog.Uint64("evicted", c.Evicted),
		slog.Uint64("refused", c.Refused), slog.Uint64("dropped", c.Dropped), slog.Uint64("told", c.Told))
}

// group is a group of the attributes that are not 0.
func group(attrs ...slog.Attr) slog.Value {
	var out []slog.Attr
	for _, a := range attrs {
		if a.Value.Kind() == slog.KindGroup && len(a.Value.Group()) == 0 || a.Value.Equal(slog.Uint64Value(0)) {
			continue
		}
		out = append(out, a)
	}
	return slog.GroupValue(out...)
}

// overflow counts how often there was no room for one more of what the namespace has
// under way, and says so in the log. It has no timer. The zero value counts, and
// says nothing.
type overflow struct {
	log     *slog.Logger
	message string
	room    int // 0 where that is not ours to know
	count   atomic.Uint64
	told    atomic.Uint64 // the count that was logged last
	next    atomic.Int64  // when to say more, in nanoseconds of the epoch
}

// overflowEvery is how often one overflow is told of.
const overflowEvery = 10 * time.Minute

// say gives an overflow its words, before anything counts.
func (o *overflow) say(log *slog.Logger, message string, room int) {
	o.log, o.message, o.room = log, message, room
}

// add counts. The caller may hold a lock, and calls tell when it does not any more.
func (o *overflow) add() { o.count.Add(1) }

// tell logs what was counted, where there is anything new and the last time is long
// ago.
func (o *overflow) tell() {
	n := o.count.Load()
	if n == o.told.Load() || o.log == nil {
		return
	}
	now, next := time.Now().UnixNano(), o.next.Load()
	if now < next || !o.next.CompareAndSwap(next, now+int64(overflowEvery)) {
		return
	}
	o.told.Store(n)
	attrs := []any{"times", n}
	if o.room != 0 {
		attrs = append(attrs, "limit", o.room)
	}
	o.log.Warn(o.message, attrs...)
}
