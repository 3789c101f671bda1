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
	if p.kept[0] != 0 {
		t.Errorf("%d buffers are kept, and in use", p.kept[0])
	}
	p.Put(b)
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

func TestMemoryGoesBackToThePool(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(r *rig)
		want int // small buffers
	}{
		"of what was taken":             {func(r *rig) { r.in(ACK, 0, 0, "abc"); r.take() }, 1},
		"of what has waited":            {func(r *rig) { r.in(ACK, 3, 0, "d"); r.in(ACK, 0, 0, "abc"); r.take() }, 2},
		"of what has waited in vain":    {func(r *rig) { r.in(ACK, 1, 0, "b"); r.in(ACK, 0, 0, "abc"); r.take() }, 2},
		"of what waits, at the end":     {func(r *rig) { r.in(ACK, 3, 0, "d"); r.in(ACK, 6, 0, "g"); r.Drop() }, 2},
		"of what has come, at the end":  {func(r *rig) { r.in(ACK, 0, 0, "abc"); r.Drop(); r.Release() }, 1},
		"of what was acknowledged":      {func(r *rig) { r.send("abc"); r.in(ACK, 0, 3, "") }, 2},
		"of what is sent, at the end":   {func(r *rig) { r.send("abc"); r.Abort() }, 2},
		"of what a reset has made vain": {func(r *rig) { r.send("abc"); r.in(RST, 0, 0, "") }, 2},
		"not of what is on its way":     {func(r *rig) { r.send("abc") }, 1},
		"not of what waits":             {func(r *rig) { r.in(ACK, 0, 0, "abc"); r.in(ACK, 5, 0, "f") }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t)
			c.do(r)
			seen := map[*Buffer]bool{}
			for b := r.pool.free[0]; b != nil; b = b.next {
				if seen[b] {
					t.Fatal("a buffer is there twice")
				}
				seen[b] = true
			}
			if len(seen) != c.want || r.pool.kept[0] != c.want {
				t.Errorf("%d buffers are there, want %d", len(seen), c.want)
			}
		})
	}
}

func TestWhatFillsItsBufferIsNotCopied(t *testing.T) {
	for size, copied := range map[int]bool{60000: false, 8193: false, 8192: true, 10: true} {
		r := newRig(t)
		r.accept(synOptions)
		r.window(ACK, 0, 0, 0xffff, "")
		b := r.pool.Get(60000)
		b.Cut(size)
		r.Send(b, false)
		if got := r.Conn.sent.front != b; got != copied {
			t.Errorf("%d bytes are copied: %v", size, got)
		}
	}
}

func TestWhatIsGivenUpIsNotTaken(t *testing.T) {
	r := accepted(t)
	r.Input(&Segment{Seq: peers, Ack: ours, Flags: ACK, Payload: []byte("abc")}, r.at)
	r.Drop()
	r.Release()
	if len(r.Peek()) != 0 || r.Settle(nil) {
		t.Errorf("%q may be taken", r.Peek())
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
