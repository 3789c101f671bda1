package slirp

import "time"

// flowList is a list of flows, the least recently used first. Its zero value is
// empty. It allocates nothing, because the links are in the flows.
type flowList struct {
	// idle is how long a flow of this list lives after its last datagram.
	idle        time.Duration
	front, back *flow
}

// flowLinks are the neighbours of a flow in its list.
type flowLinks struct{ prev, next *flow }

func (l *flowList) pushBack(f *flow) {
	f.prev, f.next = l.back, nil
	if l.back != nil {
		l.back.next = f
	} else {
		l.front = f
	}
	l.back = f
}

func (l *flowList) remove(f *flow) {
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		l.front = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	} else {
		l.back = f.prev
	}
	f.prev, f.next = nil, nil
}

func (l *flowList) moveToBack(f *flow) {
	if l.back != f {
		l.remove(f)
		l.pushBack(f)
	}
}
