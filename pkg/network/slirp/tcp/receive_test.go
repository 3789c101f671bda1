package tcp

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBytesArriveInOrderWhateverTheOrderOfSegments(t *testing.T) {
	type segment struct {
		seq     int
		payload string
		fin     bool
	}
	for name, c := range map[string]struct {
		segments []segment
		want     string
		ended    bool
	}{
		"one after the other":               {[]segment{{0, "abc", false}, {3, "def", false}}, "abcdef", false},
		"the same twice":                    {[]segment{{0, "abc", false}, {0, "abc", false}}, "abc", false},
		"the second first":                  {[]segment{{3, "def", false}, {0, "abc", false}}, "abcdef", false},
		"all the other way round":           {[]segment{{6, "ghi", false}, {3, "def", false}, {0, "abc", false}}, "abcdefghi", false},
		"half of it again":                  {[]segment{{0, "abc", false}, {1, "bcd", false}}, "abcd", false},
		"a larger one over a gap":           {[]segment{{3, "d", false}, {5, "f", false}, {0, "abcdefg", false}}, "abcdefg", false},
		"one that reaches into another":     {[]segment{{3, "def", false}, {0, "abcde", false}}, "abcdef", false},
		"one within another":                {[]segment{{2, "cdef", false}, {3, "d", false}, {0, "ab", false}}, "abcdef", false},
		"overlapping ones":                  {[]segment{{2, "cde", false}, {3, "defg", false}, {0, "ab", false}}, "abcdefg", false},
		"two gaps":                          {[]segment{{2, "c", false}, {4, "e", false}, {0, "ab", false}, {3, "d", false}}, "abcde", false},
		"the longer of two":                 {[]segment{{1, "b", false}, {1, "bcd", false}, {0, "a", false}}, "abcd", false},
		"an end with bytes":                 {[]segment{{0, "abc", true}}, "abc", true},
		"an end alone":                      {[]segment{{0, "abc", false}, {3, "", true}}, "abc", true},
		"an end before its turn":            {[]segment{{3, "", true}, {0, "abc", false}}, "abc", true},
		"an end behind what waits":          {[]segment{{3, "def", false}, {6, "", true}, {0, "abc", false}}, "abcdef", true},
		"the same with its end again":       {[]segment{{3, "def", false}, {3, "def", true}, {0, "abc", false}}, "abcdef", true},
		"an end in what comes later":        {[]segment{{1, "bc", true}, {0, "a", false}}, "abc", true},
		"an end in what came half":          {[]segment{{0, "ab", false}, {1, "bc", true}}, "abc", true},
		"an end of what has come":           {[]segment{{0, "abc", false}, {0, "abc", true}}, "abc", true},
		"bytes behind the end":              {[]segment{{0, "abc", true}, {4, "efg", false}}, "abc", true},
		"bytes over the end":                {[]segment{{0, "abc", true}, {0, "abcdefg", false}}, "abc", true},
		"bytes that wait behind an end":     {[]segment{{5, "xyz", false}, {0, "abc", true}}, "abc", true},
		"bytes at an end that waits":        {[]segment{{1, "bc", true}, {3, "xyz", false}, {0, "a", false}}, "abc", true},
		"an end that bytes are in place of": {[]segment{{1, "b", true}, {0, "abc", false}}, "abc", false},
		"an end that bytes went beyond":     {[]segment{{1, "b", true}, {0, "abcdef", false}}, "abcdef", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t)
			seen := ""
			for _, s := range c.segments {
				flags := ACK
				if s.fin {
					flags |= FIN
				}
				r.in(flags, s.seq, 0, s.payload)
				if strings.HasPrefix(name, "bytes over") {
					seen += r.take()
				}
			}
			if seen += r.take(); seen != c.want || r.Ended() != c.ended {
				t.Errorf("got %q, ended %v; want %q, %v", seen, r.Ended(), c.want, c.ended)
			}
		})
	}
}

func TestArrivalIsToldWithItsGap(t *testing.T) {
	r := accepted(t)
	r.expect(r.in(ACK, 3, 0, "def"), 0)
	if _, now := r.Owed(); !now {
		t.Error("a gap is not told of at once")
	}
	r.hears("A 0 ack 0 sack 3-6")
	r.expect(r.in(ACK, 0, 0, "abc"), Arrived)
	if _, now := r.Owed(); !now {
		t.Error("that a gap is filled is not told at once")
	}
	r.hears("A 0 ack 6")
	r.expect(r.in(ACK, 6, 0, "g"), Arrived)
	if soon, now := r.Owed(); !soon || now {
		t.Errorf("what comes in order is acknowledged soon %v, now %v; want it to wait for company", soon, now)
	}
	r.hears("A 0 ack 7")
	r.expect(r.in(FIN|ACK, 7, 0, ""), Arrived)
	r.hears("A 0 ack 8")
}

func TestSACKTellsWhatWaits(t *testing.T) {
	for name, c := range map[string]struct {
		come []int // the first bytes of segments of ten
		want string
	}{
		"one":                    {[]int{10}, "A 0 ack 0 sack 10-20"},
		"neighbours are one":     {[]int{20, 10}, "A 0 ack 0 sack 10-30"},
		"in order, too":          {[]int{10, 20}, "A 0 ack 0 sack 10-30"},
		"overlapping are one":    {[]int{10, 15}, "A 0 ack 0 sack 10-25"},
		"four":                   {[]int{70, 50, 30, 10}, "A 0 ack 0 sack 10-20 sack 30-40 sack 50-60 sack 70-80"},
		"at most four":           {[]int{90, 70, 50, 30, 10}, "A 0 ack 0 sack 10-20 sack 30-40 sack 50-60 sack 70-80"},
		"the last first":         {[]int{10, 30, 50, 70, 90}, "A 0 ack 0 sack 90-100 sack 10-20 sack 30-40 sack 50-60"},
		"with its neighbours":    {[]int{10, 30, 60, 50}, "A 0 ack 0 sack 50-70 sack 10-20 sack 30-40"},
		"over the wrap of 2**32": {[]int{95}, "A 0 ack 0 sack 95-105"},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t)
			for _, seq := range c.come {
				r.forget()
				r.in(ACK, seq, 0, "0123456789")
				r.settleACK()
			}
			r.hears(c.want)
		})
	}
	t.Run("what came last before a part of the gap", func(t *testing.T) {
		r := accepted(t)
		r.in(ACK, 10, 0, "x")
		r.in(ACK, 20, 0, "y")
		r.forget()
		r.in(ACK, 0, 0, "z")
		r.hears("A 0 ack 1 sack 20-21 sack 10-11")
	})
	t.Run("the end has a number", func(t *testing.T) {
		r := accepted(t)
		r.in(ACK|FIN, 10, 0, "")
		r.hears("A 0 ack 0 sack 10-11")
	})
	t.Run("not to who has not asked", func(t *testing.T) {
		r := newRig(t)
		r.accept(nil)
		r.in(ACK, 0, 0, "")
		r.forget()
		r.in(ACK, 10, 0, "x")
		r.hears("A 0 ack 0")
	})
	t.Run("a larger one around a smaller", func(t *testing.T) {
		r := accepted(t)
		r.in(ACK, 10, 0, "0123456789")
		r.in(ACK, 12, 0, "2")
		r.hears("A 0 ack 0 sack 10-20")
	})
	t.Run("its bytes are those of a piece", func(t *testing.T) {
		r := accepted(t)
		r.in(ACK, 10, 0, "x")
		r.forget()
		r.send("y")
		if got, want := int(r.said[0].MSS), 1460-12; got != want {
			t.Errorf("pieces have %d bytes, want %d: with the option they are as large as the MTU", got, want)
		}
	})
}

func TestNoMoreIsTakenThanTheWindowHasRoomFor(t *testing.T) {
	for name, c := range map[string]struct {
		seq  int
		size int
		end  uint8
		want int
	}{
		"all of it":              {0, 1000, 0, 1000},
		"a byte too much":        {0, 1001, 0, 1000},
		"a byte less":            {0, 999, 0, 999},
		"an end behind it":       {0, 1000, FIN, 1000},
		"an end that is too far": {0, 1001, FIN, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t, func(o *Options) { o.Window = 1000 })
			all := strings.Repeat("x", c.size)
			r.expect(r.in(ACK|c.end, c.seq, 0, all), Arrived)
			if r.come.size != c.want || r.finCome != (c.end != 0 && c.size <= 1000) {
				t.Errorf("%d bytes have come, ended %v", r.come.size, r.finCome)
			}
			if _, now := r.Owed(); !now {
				t.Error("a quarter of the window is not acknowledged at once")
			}
			r.Acknowledge()
			if r.lastWindow() != 1000-c.want {
				t.Errorf("a window of %d, want %d", r.lastWindow(), 1000-c.want)
			}
		})
	}
	t.Run("none where there is no room", func(t *testing.T) {
		r := accepted(t, func(o *Options) { o.Window = 1000 })
		r.in(ACK, 0, 0, strings.Repeat("x", 1000))
		r.settleACK()
		r.expect(r.in(ACK, 1000, 0, "y"), 0)
		if _, now := r.Owed(); !now || r.come.size != 1000 {
			t.Error("a probe with a byte is not answered, or taken")
		}
		r.settleACK()
		r.expect(r.in(ACK|FIN, 1000, 0, "y"), 0)
		if r.finCome {
			t.Error("the end of what was not taken has come")
		}
		r.expect(r.in(ACK|FIN, 1000, 0, ""), Arrived)
		if r.take(); !r.Ended() {
			t.Error("the end needs no room")
		}
	})
	t.Run("where a part waits for its turn", func(t *testing.T) {
		r := accepted(t, func(o *Options) { o.Window = 1000 })
		r.in(ACK|FIN, 999, 0, "xyz")
		r.hears("A 0 ack 0 sack 999-1000")
		r.in(ACK|FIN, 1000, 0, "yz")
		r.hears("A 0 ack 0 sack 999-1000")
	})
}

func TestTheWindowOpensWhenItIsWorthASegment(t *testing.T) {
	for name, c := range map[string]struct {
		window, mss, come int
		taken             []int
		want              []bool
	}{
		"two segments":                  {60000, 1000, 50000, []int{1999, 1}, []bool{false, false}},
		"two segments of a closed one":  {60000, 1000, 60000, []int{1000, 999, 1}, []bool{false, false, true}},
		"not where a quarter is left":   {60000, 1000, 45000, []int{45000}, []bool{false}},
		"not before it is twice":        {60000, 1000, 50000, []int{10000, 2}, []bool{false, true}},
		"half of a small window":        {1000, 1460, 1000, []int{499, 1}, []bool{false, true}},
		"what has room enough goes on":  {60000, 1000, 30000, []int{30000}, []bool{false}},
		"all of it":                     {60000, 1000, 60000, []int{60000}, []bool{true}},
		"less than a quarter, all free": {1000, 1460, 760, []int{760}, []bool{true}},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t, func(o *Options) { o.Window, o.MSS = c.window, uint16(c.mss) })
			r.ownScale = 0
			for n := c.come; n > 0; n -= min(n, 1000) {
				r.in(ACK, c.come-n, 0, strings.Repeat("x", min(n, 1000)))
			}
			r.settleACK()
			var got []bool
			for _, n := range c.taken {
				for n > 0 {
					k := min(n, len(r.Peek()))
					r.Discard(k)
					n -= k
				}
				_, now := r.Owed()
				got = append(got, now)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("told of room %v, want %v", got, c.want)
			}
		})
	}
	t.Run("not after the end", func(t *testing.T) {
		r := accepted(t, func(o *Options) { o.Window = 1000 })
		r.in(ACK|FIN, 0, 0, strings.Repeat("x", 1000))
		r.settleACK()
		r.take()
		if soon, _ := r.Owed(); soon {
			t.Error("room is told of where nothing comes any more")
		}
	})
}

func TestAQuarterOfTheWindowIsAcknowledgedAtOnce(t *testing.T) {
	r := accepted(t, func(o *Options) { o.Window = 1000 })
	for _, c := range []struct {
		size int
		want bool
	}{{249, false}, {1, true}} {
		r.in(ACK, r.come.size, 0, strings.Repeat("x", c.size))
		if soon, now := r.Owed(); !soon || now != c.want {
			t.Errorf("%d bytes: soon %v, now %v", r.come.size, soon, now)
		}
	}
}

func TestTheWindowIsNeverTakenBack(t *testing.T) {
	r := newRig(t)
	r.accept(synOptions, func(o *Options) { o.Window = 1 << 20 })
	r.in(ACK, 0, 0, "")
	at := 0
	edge := r.edge
	for size := 1; at < 2<<20; size = size*3%7919 + 1 {
		p := strings.Repeat("x", min(size, int(r.edge-r.next)))
		r.in(ACK, at, 0, p)
		at += len(p)
		if at%5 == 0 {
			r.settleACK()
		}
		if len(p) == 0 || at%7 == 0 {
			r.take()
		}
		r.settleACK()
		if int32(r.edge-edge) < 0 || r.come.size+int(r.edge-r.next) > 1<<20 {
			t.Fatalf("the window's edge moves by %d, with %d bytes there", int32(r.edge-edge), r.come.size)
		}
		if said := r.next + uint32(r.lastWindow()); int32(said-r.edge) > 0 || int32(r.edge-said) >= 1<<r.ownScale {
			t.Fatalf("the edge that is told is %d off", int32(said-r.edge))
		}
		edge = r.edge
		r.forget()
	}
}

func TestResets(t *testing.T) {
	for name, c := range map[string]struct {
		flags  uint8
		seq    int
		answer bool
		events Events
	}{
		"the next number":         {RST, 3, false, Reset},
		"with an acknowledgement": {RST | ACK, 3, false, Reset},
		"within the window":       {RST, 4, true, 0},
		"before it":               {RST, 2, false, 0},
		"behind it":               {RST, 4 + 1000, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t, func(o *Options) { o.Window = 1000 })
			r.in(ACK, 0, 0, "abc")
			r.settleACK()
			r.edge = r.next + 1000
			r.send("xyz")
			r.in(ACK, 5, 0, "later")
			r.settleACK()
			r.expect(r.in(c.flags, c.seq, 0, ""), c.events)
			if _, now := r.Owed(); now != c.answer {
				t.Errorf("an answer at once: %v, want %v", now, c.answer)
			}
			if gone := c.events != 0; r.IsClosed() != gone || gone != (r.unacknowledged() == 0) || gone != (r.later == nil) {
				t.Errorf("closed %v with %d bytes and %d pieces", r.IsClosed(), r.unacknowledged(), len(r.later))
			}
			if got := r.take(); got != "abc" {
				t.Errorf("%q may be taken, want what came in order before", got)
			}
			if c.events != 0 {
				r.expect(r.in(c.flags, c.seq, 0, ""), 0)
				r.expect(r.Tick(r.at+time.Hour), 0)
				if r.Due() != 0 {
					t.Error("a closed connection waits")
				}
			}
		})
	}
}

// unacknowledged is how many bytes wait to be acknowledged.
func (r *rig) unacknowledged() int { return r.Conn.sent.size }

func TestSettleKeepsAFrameThatIsHalfFull(t *testing.T) {
	for name, c := range map[string]struct {
		size, taken int
		frame, kept bool
	}{
		"a large one":                          {40000, 0, true, true},
		"a byte more than half":                {32769, 0, true, true},
		"half":                                 {32768, 0, true, false},
		"a small one":                          {10, 0, true, false},
		"a large one, of which little is left": {40000, 39999, true, false},
		"a large one, all taken":               {40000, 40000, true, false},
		"none":                                 {40000, 0, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t)
			var frame *Buffer
			p := []byte(strings.Repeat("x", c.size))
			if c.frame {
				frame = r.pool.Get(64 << 10)
				p = append(frame.Bytes()[66:66], p...)
			}
			r.expect(r.Input(&Segment{Seq: peers, Ack: ours, Flags: ACK, Window: 100, Payload: p}, r.at), Arrived)
			if got := len(r.Peek()); got != c.size {
				t.Errorf("Peek has %d bytes", got)
			}
			r.Discard(c.taken)
			if kept := r.Settle(frame); kept != c.kept {
				t.Errorf("kept %v, want %v", kept, c.kept)
			} else if !kept {
				copy(p, strings.Repeat("!", len(p)))
			}
			if r.Settle(frame) {
				t.Error("kept twice")
			}
			if got, want := r.take(), strings.Repeat("x", c.size-c.taken); got != want {
				t.Errorf("%d bytes are left, want %d, as they were", len(got), len(want))
			}
		})
	}
}

func TestWhatWaitsIsBoundedByItsMemory(t *testing.T) {
	memory := func(r *rig) (n int) {
		for _, p := range r.later {
			n += len(p.buffer.room)
		}
		return n
	}
	t.Run("of many small pieces", func(t *testing.T) {
		r := accepted(t)
		for i := range 1000 {
			r.in(ACK, 2+2*i, 0, "x")
		}
		if len(r.later) != maxPieces {
			t.Errorf("%d pieces wait", len(r.later))
		}
	})
	t.Run("of many large pieces that overlap", func(t *testing.T) {
		r := newRig(t)
		r.accept(synOptions)
		r.in(ACK, 0, 0, "")
		r.settleACK()
		for i := range 100 {
			r.in(ACK, 1+i, 0, strings.Repeat("x", 60000))
		}
		if got := memory(r); got > 2<<20 {
			t.Errorf("%d bytes of memory wait, for a window of 1 MiB", got)
		}
	})
	t.Run("of a stream with a hole, in small segments, all of it", func(t *testing.T) {
		r := accepted(t)
		for at := 1; at < 50000; at += 300 {
			r.in(ACK, at, 0, strings.Repeat("x", 300))
			r.in(ACK, at, 0, strings.Repeat("x", 300)) // and again
		}
		r.in(ACK, 0, 0, "x")
		if got := len(r.take()); got != 50101 {
			t.Errorf("%d bytes came", got)
		}
		if r.later != nil {
			t.Errorf("%d bytes of memory wait for nothing", memory(r))
		}
	})
	t.Run("but not of what is there", func(t *testing.T) {
		r := accepted(t)
		for _, s := range []struct{ seq, size int }{{5000, 2000}, {5000, 2000}, {5500, 500}, {6500, 500}} {
			r.in(ACK, s.seq, 0, strings.Repeat("x", s.size))
		}
		if len(r.later) != 1 || len(r.later[0].buffer.bytes) != 2000 {
			t.Errorf("%d pieces wait", len(r.later))
		}
	})
	t.Run("of a stream with many holes, some of it", func(t *testing.T) {
		r := accepted(t)
		for at := 1; at < 60000; at += 500 {
			r.in(ACK, at, 0, strings.Repeat("x", 300))
		}
		if got := memory(r); got > 64<<10 {
			t.Errorf("%d bytes of memory wait", got)
		}
	})
}

// The end of a stream has a number behind the window's edge where that was closed.
func TestNothingIsWithinAWindowThatAnEndWasBehind(t *testing.T) {
	r := accepted(t, func(o *Options) { o.Window = 1000 })
	r.in(ACK, 0, 0, strings.Repeat("x", 1000))
	r.settleACK()
	r.send("y")
	r.expect(r.in(FIN|ACK, 1000, 0, ""), Arrived)
	r.expect(r.in(ACK, 1<<20, 1, ""), 0)
	if r.HasAll() {
		t.Error("an acknowledgement from far behind the window is taken")
	}
	r.expect(r.in(ACK, 1001, 1, ""), Acknowledged)
}

func TestASliverOfRoomIsNotTold(t *testing.T) {
	r := accepted(t, func(o *Options) { o.Window = 20000; o.MSS = 1000 })
	r.in(ACK, 0, 0, strings.Repeat("x", 20000))
	r.settleACK()
	for _, c := range []struct{ take, want int }{{999, 0}, {1, 1000}, {500, 1500}} {
		for n := c.take; n > 0; {
			k := min(n, len(r.Peek()))
			r.Discard(k)
			n -= k
		}
		r.at += challengeInterval
		r.in(ACK, 19999, 0, "") // it asks for room
		if r.settleACK(); r.lastWindow() != c.want {
			t.Errorf("a window of %d, want %d", r.lastWindow(), c.want)
		}
	}
}
