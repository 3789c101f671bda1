package tcp

import (
	"strings"
	"testing"
)

func TestPoolKeepsWhatIsWorthIt(t *testing.T) {
	var p Pool
	for size, class := range map[int]int{0: 0, 1: 0, 1024: 0, 1025: 1, 8192: 1, 8193: 2, 65536: 2} {
		b := p.Get(size)
		if b.class != class || len(b.Bytes()) != size || len(b.room) != sizes[class] {
			t.Errorf("for %d bytes a buffer of %d, with %d", size, len(b.room), len(b.Bytes()))
		}
		p.Put(b)
	}
	b := p.Get(10)
	p.Put(b)
	if p.Get(20) != b {
		t.Error("a buffer that was put back is not used")
	}
	var all []*Buffer
	for range spare/sizes[2] + 5 {
		all = append(all, p.Get(sizes[2]))
	}
	for _, b := range all {
		p.Put(b)
	}
	if p.kept[2] != spare/sizes[2] {
		t.Errorf("%d buffers are kept, want %d", p.kept[2], spare/sizes[2])
	}
	p.Clear()
	if p.kept != [len(sizes)]int{} || p.free != [len(sizes)]*Buffer{} {
		t.Error("buffers are left")
	}
}

// BenchmarkStream moves a stream in both directions, as frames of 60 KB.
func BenchmarkStream(b *testing.B) {
	r := accepted(b)
	r.o.Wire = silent{}
	payload := []byte(strings.Repeat("x", 60000))
	frame := r.pool.Get(64 << 10)
	step := func() {
		s := Segment{Seq: r.next, Ack: r.nxt, Flags: ACK, Window: 0xffff, Payload: append(frame.Bytes()[:0], payload...)}
		r.Input(&s, r.at)
		if r.Settle(frame) {
			frame = r.pool.Get(64 << 10)
		}
		for p := r.Peek(); len(p) > 0; p = r.Peek() {
			r.Discard(len(p))
		}
		r.Acknowledge()
		r.Send(r.pool.Get(r.Room()), false)
		r.Send(r.pool.Get(1), false)
	}
	for range 10 {
		step()
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		b.Errorf("%v allocations for a segment in each direction", n)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		step()
	}
}

// silent is a wire that nobody listens to.
type silent struct{}

func (silent) Transmit(*Header, []byte) {}
