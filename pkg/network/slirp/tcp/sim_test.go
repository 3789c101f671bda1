package tcp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// wire joins two ends. What is sent is lost, doubled and late as a source of numbers has
// it, in pieces as a virtio-net header has a kernel cut it.
type wire struct {
	random *rand.Rand
	loss   int // of 100, while it is at work
	now    time.Duration
	ends   [2]*end
	under  []letter // on the way

	plain bool                          // without SACK
	cuts  bool                          // in pieces, always
	loses func(to int, s *Segment) bool // what else is lost; nil is nothing
}

// letter is a segment on its way.
type letter struct {
	to    int
	at    time.Duration
	bytes []byte
}

// end is one end of a wire, and who uses it.
type end struct {
	Conn
	wire *wire
	who  int
	pool Pool

	write, want   []byte // what is left to be written, and to be read
	got           int    // bytes
	ended, opened bool
	gone          Events
	lazy          int // of 100: how often nothing is taken
}

// Transmit implements Wire.
func (e *end) Transmit(h *Header, payload []byte) {
	for first := true; first || len(payload) > 0; first = false {
		n := min(len(payload), int(h.MSS))
		if !e.wire.cuts && e.wire.random.IntN(2) == 0 {
			n = len(payload) // not all wires cut
		}
		piece := *h
		if n < len(payload) {
			piece.Flags &^= FIN | PSH
		}
		b := make([]byte, MaxHeaderSize+n)
		size := piece.Put(b, 1, 2)
		copy(b[size:], payload[:n])
		e.wire.post(1-e.who, b[:size+n])
		h.Seq += uint32(n)
		payload = payload[n:]
	}
}

func (w *wire) post(to int, b []byte) {
	if w.random.IntN(100) < w.loss {
		return
	}
	if w.loses != nil {
		var s Segment
		if s.Parse(b); w.loses(to, &s) {
			return
		}
	}
	copies := 1
	if w.random.IntN(100) < w.loss {
		copies = 2
	}
	for range copies {
		late := time.Millisecond
		if w.random.IntN(100) < w.loss {
			late += time.Duration(w.random.IntN(30)) * time.Millisecond
		}
		w.under = append(w.under, letter{to, w.now + late, b})
	}
}

// step goes on to what happens next: a segment comes, a time has come, or else an end
// does something of itself.
func (w *wire) step(t *testing.T) {
	next := time.Duration(0)
	for i, l := range w.under {
		if i == 0 || l.at < next {
			next = l.at
		}
	}
	for _, e := range w.ends {
		if due := e.Due(); due != 0 && (next == 0 || due < next) {
			next = due
		}
	}
	if next == 0 {
		next = w.now + time.Millisecond
	}
	w.now = max(w.now, next)
	for i := 0; i < len(w.under); i++ {
		if l := w.under[i]; l.at <= w.now {
			w.under = slices.Delete(w.under, i, i+1)
			w.ends[l.to].input(t, l.bytes)
			break
		}
	}
	for _, e := range w.ends {
		e.events(t, e.Tick(w.now))
		e.use(t)
	}
}

// input takes a segment in a frame that belongs to others after it.
func (e *end) input(t *testing.T, b []byte) {
	frame := e.pool.Get(64 << 10)
	var s Segment
	s.Parse(append(frame.Bytes()[:0], b...))
	switch {
	case e.IsClosed() && e.gone == 0 && s.Opens():
		e.Accept(e.o, &s, e.wire.now)
		e.sack = e.sack && !e.wire.plain
		e.una = -uint32(e.wire.random.IntN(100000))
		e.nxt = e.una + 1
		e.Answer(e.wire.now)
	case e.IsClosed():
		if h, ok := Refusal(&s); ok && e.gone != 0 {
			e.Transmit(&h, nil)
		}
	default:
		e.events(t, e.Input(&s, e.wire.now))
		if e.wire.random.IntN(100) >= e.lazy {
			e.read(t)
		}
	}
	if !e.Settle(frame) {
		bytes := frame.Bytes()
		clear(bytes[:cap(bytes)])
		e.pool.Put(frame)
	}
}

func (e *end) events(t *testing.T, events Events) {
	if events&Opened != 0 {
		if e.opened {
			t.Fatal("Opened is told twice")
		}
		e.opened = true
	}
	if events&Gone != 0 {
		if e.gone != 0 {
			t.Fatalf("%08b is told after %08b", events, e.gone)
		}
		e.gone = events & Gone
	}
}

// read takes what has come, or a part of it.
func (e *end) read(t *testing.T) {
	for p := e.Peek(); len(p) > 0; p = e.Peek() {
		n := 1 + e.wire.random.IntN(len(p))
		if len(e.want) < n || !bytes.Equal(p[:n], e.want[:n]) {
			t.Fatalf("end %d: what comes at %d is not what was sent", e.who, e.got)
		}
		e.want, e.got = e.want[n:], e.got+n
		e.events(t, e.Discard(n))
		if e.wire.random.IntN(100) < e.lazy {
			return
		}
	}
}

// use reads, writes and says what is owed.
func (e *end) use(t *testing.T) {
	random := e.wire.random
	if random.IntN(100) >= e.lazy {
		e.read(t)
	}
	e.ended = e.ended || e.Ended()
	if e.IsClosed() {
		return
	}
	e.Tell(e.wire.now)
	for e.IsOpen() && len(e.write) > 0 {
		room := e.Room()
		if room == 0 {
			break
		}
		b := e.pool.Get(room)
		n := 1 + random.IntN(room)
		b.Cut(copy(b.Bytes()[:n], e.write))
		e.write = e.write[len(b.Bytes()):]
		e.Send(b, len(e.write) == 0 && random.IntN(2) == 0)
	}
	if e.IsOpen() && len(e.write) == 0 {
		e.CloseWrite()
	}
	if soon, now := e.Owed(); now || soon && random.IntN(2) == 0 {
		e.Acknowledge()
	}
	e.check(t)
}

// check is what always holds.
func (e *end) check(t testing.TB) {
	t.Helper()
	c := &e.Conn
	switch memory := footprint(c); {
	case int32(c.nxt-c.una) < 0:
		t.Fatalf("what is acknowledged was not sent: una %d, nxt %d", c.una, c.nxt)
	case c.state == established && int32(c.edge-c.next) < -1:
		t.Fatalf("more has come than was offered, by %d", -int32(c.edge-c.next))
	case c.state == established && !c.finCome && c.come.size+len(c.fresh)+int(c.edge-c.next) > max(c.o.Window, c.come.size+len(c.fresh)):
		t.Fatalf("a window of %d beside %d bytes is more than %d", c.edge-c.next, c.come.size+len(c.fresh), c.o.Window)
	case c.come.size+len(c.fresh) > c.o.Window:
		t.Fatalf("%d bytes wait, of at most %d", c.come.size+len(c.fresh), c.o.Window)
	case memory > 5*c.o.Window+256<<10:
		t.Fatalf("%d bytes of memory wait, with a window of %d", memory, c.o.Window)
	case c.state == established && c.una != c.nxt && c.resend == 0:
		t.Fatal("what is on its way is never sent again")
	case c.state == established && c.waiting && c.una == c.nxt && c.persist == 0:
		t.Fatal("room is waited for and never asked for")
	case len(c.had) > maxSpans || !slices.IsSortedFunc(c.had, func(a, b span) int {
		return int(int32(a.from-b.to)) - 1 // there is a gap between them
	}):
		t.Fatalf("what the peer has is %v", c.had)
	case len(c.had) > 0 && (int32(c.had[0].to-c.una) <= 0 || int32(c.lastHad()-c.nxt) > 0):
		t.Fatalf("what the peer has is %v, of what is on its way from %d to %d", c.had, c.una, c.nxt)
	case c.state == closed && (c.Due() != 0 || c.sent.front != nil || c.later != nil || c.had != nil):
		t.Fatal("a closed connection keeps something")
	}
}

// footprint is the memory of what has come.
func footprint(c *Conn) (n int) {
	for b := c.come.front; b != nil; b = b.next {
		n += len(b.room)
	}
	for _, p := range c.later {
		n += len(p.buffer.room)
	}
	return n
}

// stream is what is written: n bytes, different everywhere.
func stream(n int, random *rand.Rand) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

func TestWhatIsWrittenArrivesOverABadWire(t *testing.T) {
	for _, c := range []struct{ loss, window, mss, size, lazy int }{
		{0, 1 << 20, 1460, 300000, 0},
		{5, 1 << 20, 1460, 300000, 20},
		{10, 1 << 20, 65495, 600000, 50},
		{10, 65535, 536, 60000, 50},
		{20, 4000, 1460, 20000, 60},
		{20, 100, 1460, 1000, 60},
		{30, 20000, 48, 10000, 30},
		{10, 300000, 8000, 0, 0},
		{3, 100000, 1460, 200000, 99},
	} {
		for seed := range uint64(12) {
			t.Run(fmt.Sprintf("loss %d, window %d, MSS %d, seed %d", c.loss, c.window, c.mss, seed), func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, uint64(c.window)))
				w := &wire{random: random, loss: c.loss, now: time.Hour, plain: seed%3 == 2}
				for i := range w.ends {
					w.ends[i] = &end{wire: w, who: i, lazy: c.lazy, write: stream(random.IntN(c.size+1), random)}
				}
				a, b := w.ends[0], w.ends[1]
				a.want, b.want = bytes.Clone(b.write), bytes.Clone(a.write)
				for i, e := range w.ends {
					e.o = Options{Wire: e, Pool: &e.pool, MSS: uint16(c.mss), Window: c.window, IPv6: seed%2 == 0}
					if i == 0 || seed%4 == 3 { // both, at once
						e.Open(e.o, w.now)
					}
				}
				for steps := 0; a.gone == 0 || b.gone == 0; steps++ {
					if steps == 10000 {
						w.loss = min(w.loss, 5) // all comes to an end
					}
					if steps > 200000 {
						t.Fatalf("no end in sight: %d and %d bytes to be written, %d and %d to be read", len(a.write), len(b.write), len(a.want), len(b.want))
					}
					w.step(t)
				}
				for _, e := range w.ends {
					e.lazy = 0
					e.use(t)
					if e.gone == 0 || e.gone == TimedOut || len(e.want) != 0 || !e.ended {
						t.Errorf("end %d: gone %08b, ended %v, %d bytes are missing", e.who, e.gone, e.ended, len(e.want))
					}
					e.Release()
					e.check(t)
				}
			})
		}
	}
}
