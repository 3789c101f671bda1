package builtin

import (
	"net/netip"
	"sync/atomic"
	"time"

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
//	            v     refused, never answered: the next target
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
	pending [][]byte // kept while waiting
	closed  bool

	answered bool      // the service has sent something
	lasting  bool      // and then the client has
	turned   time.Time // when the targets were last begun with
	turns    int       // how many of them were tried since
	since    time.Time // when the first datagram came
	used     time.Time // when a datagram last passed

	kept  port.Datagrams // in the client's name, in place of fd; nil for none
	heard atomic.Bool    // the service has sent something that way since hear

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
