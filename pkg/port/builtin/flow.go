package builtin

import (
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/port"
)

// flow is the datagrams between one client and the service: from one address
// and port, to one of the host's addresses. It belongs to the exchange's loop.
//
//	       first datagram
//	            |            pool empty
//	            v        /----------------> waiting (fd -1): keeps datagrams
//	connect to the target <------------------- a socket came
//	            |
//	            v     refused or dropped, never answered: the next target, or way to it
//	          brief -----------------------------------------> brief
//	            |     an answer, and the client goes on
//	            v
//	          lasting      silent for its time, least recently used when
//	            |          there are too many, or forward removed
//	            v
//	          closed
type flow struct {
	socket  *hostSocket
	arrival linux.Arrival // its key among the socket's flows

	targets []netip.AddrPort // where the service may be, the present one first
	fd      int              // connected to the service; -1 while waiting
	token   uint64
	pending [][]byte // kept while waiting, and of those in the client's name what was dropped
	closed  bool

	answered bool      // the service has sent something
	lasting  bool      // and then the client has
	turned   time.Time // when the targets were last begun with
	turns    int       // how many of them were tried since
	since    time.Time // when the first datagram came
	used     time.Time // when a datagram last passed

	kept     port.Datagrams // in the client's name, in place of fd; nil for none
	heard    atomic.Bool    // the service has sent something that way since hear
	stranger bool           // the client is not the host itself
	plain    bool           // the first target has refused that way, and is tried by fd
	stray    bool           // the service takes what a stranger sends by fd
	tries    int            // datagrams of which it was asked what became of them
	tried    time.Time      // when the last was

	// The flow is in two lists: of all flows, and of its forward's.
	places [2]place
}

// Indices into flow.places.
const (
	ofAll = iota
	ofForward
)

// place is a flow's place in a list.
type place struct{ before, after *flow }

// flowList is flows in the order of their last use. The flows hold the links,
// so that moving one allocates nothing. which is the index of its links.
type flowList struct {
	which       int
	first, last *flow // the least and the most recently used
}

func (l *flowList) append(f *flow) {
	f.places[l.which] = place{before: l.last}
	if l.last != nil {
		l.last.places[l.which].after = f
	} else {
		l.first = f
	}
	l.last = f
}

func (l *flowList) remove(f *flow) {
	p := f.places[l.which]
	if p.before != nil {
		p.before.places[l.which].after = p.after
	} else {
		l.first = p.after
	}
	if p.after != nil {
		p.after.places[l.which].before = p.before
	} else {
		l.last = p.before
	}
	f.places[l.which] = place{}
}

// flowAges holds the flows by how long they may be silent: brief ones, which
// have not gone beyond a question and its answers, make room first.
type flowAges struct {
	brief, lasting flowList
}

func newFlowAges(which int) flowAges {
	return flowAges{brief: flowList{which: which}, lasting: flowList{which: which}}
}

func (a *flowAges) list(f *flow) *flowList {
	if f.lasting {
		return &a.lasting
	}
	return &a.brief
}

// oldest returns the flow to give up first, nil when there is none.
func (a *flowAges) oldest() *flow {
	if a.brief.first != nil {
		return a.brief.first
	}
	return a.lasting.first
}

// The table of flows is with their sockets, and the flows are in two lists besides, so
// that the one that makes room, of all or of a forward, and the one whose time is over
// are found at once.

// flowFor returns the flow that a datagram belongs to, and makes it if need be.
// It returns nil when no flow can be had.
func (x *exchange) flowFor(s *hostSocket, arrival linux.Arrival) *flow {
	f := s.flows[arrival]
	if f == nil {
		x.makeRoom(s)
		f = &flow{socket: s, arrival: arrival, targets: s.forward.status.Spec.Targets(s.family), fd: -1, since: x.loop.now, used: x.loop.now}
		if s.flows == nil {
			s.flows = map[linux.Arrival]*flow{}
		}
		s.flows[arrival] = f
		x.ages.list(f).append(f)
		s.forward.ages.list(f).append(f)
		x.flows++
		s.forward.flows++
		x.driver.count.flows.Add(1)
		x.open(f)
		if f.closed {
			return nil
		}
		return f
	}
	f.hear()
	x.touch(f, f.lasting || f.answered)
	return f
}

// touch notes that f was used, and that it is lasting.
func (x *exchange) touch(f *flow, lasting bool) {
	for _, ages := range [...]*flowAges{&x.ages, &f.socket.forward.ages} {
		ages.list(f).remove(f)
	}
	f.lasting, f.used = lasting, x.loop.now
	for _, ages := range [...]*flowAges{&x.ages, &f.socket.forward.ages} {
		ages.list(f).append(f)
	}
}

// makeRoom closes the least recently used flows while there are too many for
// one more.
func (x *exchange) makeRoom(s *hostSocket) {
	for s.forward.flows >= x.driver.opts.MaxFlowsPerForward {
		x.driver.count.flowsEvicted.Add(1)
		x.closeFlow(s.forward.ages.oldest())
	}
	for x.flows >= x.driver.opts.MaxFlows {
		x.driver.count.flowsEvicted.Add(1)
		x.closeFlow(x.ages.oldest())
	}
}

// closeFlow ends f, unless that has been done.
func (x *exchange) closeFlow(f *flow) {
	if f.closed {
		return
	}
	f.closed = true
	x.closeFD(f)
	x.driver.count.dropped.Add(int64(len(f.pending)))
	f.pending = nil
	delete(f.socket.flows, f.arrival)
	if len(f.socket.flows) == 0 {
		f.socket.flows = nil
	}
	x.ages.list(f).remove(f)
	f.socket.forward.ages.list(f).remove(f)
	x.flows--
	f.socket.forward.flows--
	x.driver.count.flows.Add(-1)
}

func (x *exchange) closeFD(f *flow) {
	if f.kept != nil {
		f.kept.Close()
		f.kept = nil
	}
	if f.fd < 0 {
		return
	}
	x.loop.unwatch(f.fd, f.token)
	unix.Close(f.fd)
	f.fd = -1
	if f.stray {
		f.stray = false
		f.socket.forward.strays.end()
	}
}

// expire closes the flows that have been silent for their time, frees the batch
// when none is left, and returns when the next flow will have been silent.
func (x *exchange) expire(now time.Time) (next time.Time) {
	timeout := x.driver.opts.FlowTimeout
	brief := x.expireList(&x.ages.brief, now.Add(-timeout/4))
	lasting := x.expireList(&x.ages.lasting, now.Add(-timeout))
	if x.flows == 0 {
		x.batch = nil
	}
	if !brief.IsZero() {
		next = brief.Add(timeout / 4)
	}
	if !lasting.IsZero() && (next.IsZero() || lasting.Add(timeout).Before(next)) {
		next = lasting.Add(timeout)
	}
	return next
}

// expireList closes the flows that were last used at limit or before, and
// returns when the first of the others was.
func (x *exchange) expireList(list *flowList, limit time.Time) (used time.Time) {
	for f := list.first; f != nil; f = list.first {
		if f.used.After(limit) {
			return f.used
		}
		if f.hear() {
			x.touch(f, f.lasting)
			continue
		}
		x.closeFlow(f)
	}
	return time.Time{}
}
