package slirp

import "net/netip"

// run gathers datagrams of one flow, as the namespace sends them one after
// another, and gives them to the host as one message, which the kernel cuts up
// where it leaves the host or arrives (UDP_SEGMENT in udp(7)). A datagram is
// gathered only while more frames are waiting: the link flushes when it has read
// all.
//
// It belongs to the goroutine that reads frames.
type run struct {
	first   datagram // whose payload is all of them
	to      netip.AddrPort
	session *session // in use; nil where there is no run
	full    bool     // the last one was smaller, so no more can follow
	buffer  []byte
}

// What the kernel takes as one: datagrams (UDP_MAX_SEGMENTS before Linux 6.9), and
// bytes, less than any datagram may have.
const (
	maxRun      = 64
	maxRunBytes = 65000
)

// begin starts a run with a datagram of a session, which is in use from here on,
// and is false where it has to go on its own.
func (r *run) begin(d *datagram, s *session, to netip.AddrPort) bool {
	if d.segment != 0 || len(d.payload) == 0 || len(d.payload) > maxRunBytes/2 || s.single {
		return false
	}
	if r.buffer == nil {
		r.buffer = make([]byte, 0, maxRunBytes)
	}
	r.first, r.session, r.to, r.full = *d, s, to, false
	r.first.segment = uint16(len(d.payload))
	r.buffer = append(r.buffer[:0], d.payload...)
	return true
}

// add is false where a datagram is not one of the run.
func (r *run) add(d *datagram) bool {
	f := &r.first
	size := int(f.segment)
	if r.session == nil || r.full || d.src != f.src || d.dst != f.dst || d.mac != f.mac ||
		d.segment != 0 || d.ttl != f.ttl || d.whole != f.whole ||
		len(d.payload) == 0 || len(d.payload) > size ||
		len(r.buffer) >= maxRun*size || len(r.buffer)+len(d.payload) > maxRunBytes {
		return false
	}
	r.buffer = append(r.buffer, d.payload...)
	r.full = len(d.payload) < size
	return true
}

// flush sends what there is.
func (r *run) flush() {
	s := r.session
	if s == nil {
		return
	}
	r.session = nil
	r.first.payload = r.buffer
	if len(r.buffer) <= int(r.first.segment) {
		r.first.segment = 0
	}
	s.send(&r.first, r.to)
	s.release()
}
