package tcp

import (
	"strings"
	"testing"
	"time"
)

func TestRoom(t *testing.T) {
	for name, c := range map[string]struct {
		window uint16
		sent   int // on the way
		want   int
	}{
		"whole segments":                        {10000, 0, 8760},
		"no more than a segment has":            {0xffff, 0, 64240},
		"less than a segment where it is alone": {100, 0, 100},
		"a segment exactly":                     {1460, 0, 1460},
		"not less beside others":                {2919, 1460, 0},
		"a segment beside others":               {2920, 1460, 1460},
		"none":                                  {0, 0, 0},
		"none that is not used up":              {1460, 1460, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t)
			r.window(ACK, 0, 0, c.window, "")
			if c.sent > 0 {
				r.send(strings.Repeat("x", c.sent))
			}
			if got := r.Room(); got != c.want {
				t.Errorf("room for %d bytes, want %d", got, c.want)
			}
		})
	}
	t.Run("none before the connection is open, and after its end", func(t *testing.T) {
		r := newRig(t)
		r.accept(plain)
		if r.Room() != 0 {
			t.Error("room before it is open")
		}
		r.in(ACK, 0, 0, "")
		r.CloseWrite()
		r.in(ACK, 0, 1, "")
		due := r.Due()
		if r.Room() != 0 || r.Due() != due {
			t.Error("room, or a wait for some, after the end")
		}
	})
}

func TestRoomIsToldWhereThereWasNone(t *testing.T) {
	r := accepted(t)
	r.window(ACK, 0, 0, 2000, "")
	if n := r.send(strings.Repeat("x", 1460)); n != 1460 || r.Room() != 0 {
		t.Fatalf("%d bytes sent", n)
	}
	r.expect(r.window(ACK, 0, 0, 2919, ""), 0)
	r.expect(r.window(ACK, 0, 0, 2920, ""), Room)
	r.expect(r.window(ACK, 0, 0, 3000, ""), 0)
	r.expect(r.window(ACK, 0, 1460, 3000, ""), Acknowledged)
}

func TestAWindowCountsFromItsAcknowledgement(t *testing.T) {
	for name, c := range map[string]struct {
		seq, ack int
		window   uint16
		want     uint32
	}{
		"of the newest segment":             {3, 0, 100, 100},
		"of the same, later":                {3, 1, 100, 100},
		"of an older one":                   {2, 0, 100, 1000},
		"of an older one that acknowledges": {2, 5, 100, 100},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t)
			r.send("12345")
			r.window(ACK, 3, 0, 1000, "")
			r.window(ACK, c.seq, c.ack, c.window, "abcd")
			if r.wnd != c.want {
				t.Errorf("a window of %d, want %d", r.wnd, c.want)
			}
		})
	}
	t.Run("not of an older acknowledgement with later bytes", func(t *testing.T) {
		r := accepted(t)
		r.send("12345")
		r.window(ACK, 0, 5, 1000, "")
		r.window(ACK, 1, 4, 100, "x")
		if r.wnd != 1000 {
			t.Errorf("a window of %d", r.wnd)
		}
	})
	t.Run("not of an older acknowledgement", func(t *testing.T) {
		r := accepted(t)
		r.send("12345")
		r.window(ACK, 0, 5, 1000, "")
		r.window(ACK, 0, 4, 100, "")
		if r.wnd != 1000 {
			t.Errorf("a window of %d", r.wnd)
		}
	})
}

func TestSending(t *testing.T) {
	r := accepted(t)
	r.send("abc")
	r.send("def")
	r.hears("PA 0:3 ack 0 abc", "PA 3:6 ack 0 def")
	if r.HasAll() {
		t.Error("the peer has all before it says so")
	}
	r.expect(r.in(ACK, 0, 3, ""), 0)
	r.expect(r.in(ACK, 0, 2, ""), 0)
	r.expect(r.in(ACK, 0, 6, ""), Acknowledged)
	r.expect(r.in(ACK, 0, 6, ""), 0)
	if r.Conn.sent.front != nil || !r.HasAll() {
		t.Error("what is acknowledged is kept")
	}
	r.hears()
	r.expect(r.in(ACK, 0, 7, "x"), 0) // was never sent
	r.hears("A 6 ack 0")
	r.in(ACK, 0, 6, "x")
	r.send("g")
	if soon, _ := r.Owed(); soon {
		t.Error("an acknowledgement is owed that went with bytes")
	}
	r.hears("PA 6:7 ack 1 g")
}

// A segment without bytes is within the peer's window, or the peer drops it with what it
// acknowledges.
func TestWhatHasNoBytesIsWithinTheWindow(t *testing.T) {
	for name, c := range map[string]struct {
		begin func(r *rig)
		want  string
	}{
		"all of it":                      {func(r *rig) { r.send("abc"); r.window(ACK, 0, 0, 3, "") }, "3"},
		"taken back":                     {func(r *rig) { r.send("abc"); r.window(ACK, 0, 0, 2, "") }, "2"},
		"closed":                         {func(r *rig) { r.send("abc"); r.window(ACK, 0, 0, 0, "") }, "0"},
		"less than the scale can say":    {func(r *rig) { r.scale = 7; r.send(strings.Repeat("x", 127)); r.window(ACK, 0, 0, 0, "") }, "127"},
		"as much as the scale can say":   {func(r *rig) { r.scale = 7; r.send(strings.Repeat("x", 128)); r.window(ACK, 0, 0, 0, "") }, "0"},
		"closed before our end":          {func(r *rig) { r.scale = 7; r.window(ACK, 0, 0, 0, ""); r.CloseWrite() }, "0"},
		"closed before our end, and had": {func(r *rig) { r.window(ACK, 0, 0, 0, ""); r.CloseWrite(); r.window(ACK, 0, 1, 0, "") }, "1"},
		"with room for our end":          {func(r *rig) { r.window(ACK, 0, 0, 1, ""); r.CloseWrite() }, "1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t)
			c.begin(r)
			r.forget()
			r.Acknowledge()
			r.Abort()
			r.hears("A "+c.want+" ack 0", "RA "+c.want+" ack 0")
		})
	}
}

func TestOurEnd(t *testing.T) {
	t.Run("alone", func(t *testing.T) {
		r := accepted(t)
		r.CloseWrite()
		r.CloseWrite()
		r.hears("FA 0 ack 0")
		r.expect(r.in(ACK, 0, 1, ""), Acknowledged)
		if r.after() != 2*time.Hour {
			t.Errorf("something is waited for, for %v", r.after())
		}
		r.expect(r.in(FIN|ACK, 0, 1, ""), Arrived|Over)
		r.hears("A 1 ack 1")
	})
	t.Run("with the last bytes", func(t *testing.T) {
		r := accepted(t)
		b := r.pool.Get(3)
		copy(b.Bytes(), "abc")
		r.Send(b, true)
		r.hears("FPA 0:3 ack 0 abc")
		r.expect(r.in(ACK, 0, 3, ""), 0)
		r.expect(r.in(ACK, 0, 4, ""), Acknowledged)
	})
	t.Run("after the peer's", func(t *testing.T) {
		r := accepted(t)
		r.expect(r.in(FIN|ACK, 0, 0, ""), Arrived)
		r.hears("A 0 ack 1")
		r.CloseWrite()
		r.hears("FA 0 ack 1")
		r.expect(r.in(ACK, 1, 1, ""), Acknowledged|Over)
		r.expect(r.in(ACK, 1, 1, ""), 0)
	})
	t.Run("and the peer's at once", func(t *testing.T) {
		r := accepted(t)
		r.CloseWrite()
		r.expect(r.in(FIN|ACK, 0, 0, ""), Arrived)
		r.hears("FA 0 ack 0", "A 1 ack 1")
		r.expect(r.in(FIN|ACK, 0, 1, ""), 0) // comes twice, and is not a probe
		r.hears("A 1 ack 1")
		r.expect(r.in(ACK, 1, 1, ""), Acknowledged|Over)
	})
	t.Run("is over when all was taken", func(t *testing.T) {
		r := accepted(t)
		r.CloseWrite()
		r.expect(r.in(FIN|ACK, 0, 1, "abc"), Arrived|Acknowledged)
		r.forget()
		if r.Ended() {
			t.Error("has ended before all was taken")
		}
		r.expect(r.Discard(2), 0)
		r.expect(r.Discard(1), Over)
		r.hears("A 1 ack 4")
	})
	t.Run("that was lost", func(t *testing.T) {
		r := accepted(t)
		r.send("abc")
		r.CloseWrite()
		r.in(ACK, 0, 3, "")
		r.forget()
		r.tick()
		r.hears("FA 3 ack 0")
	})
	t.Run("with bytes that were lost", func(t *testing.T) {
		r := accepted(t)
		r.send("abc")
		r.CloseWrite()
		r.forget()
		r.tick()
		r.hears("FPA 0:3 ack 0 abc")
	})
	t.Run("not before the beginning", func(t *testing.T) {
		r := newRig(t)
		r.accept(plain)
		r.forget()
		r.CloseWrite()
		r.hears()
		r.Drop()
		r.CloseWrite()
		r.hears()
	})
}

func TestSmallSendsShareMemory(t *testing.T) {
	for _, size := range []int{1, 100, 1000, 1025, 3000, 8193, 20000} {
		r := newRig(t)
		r.accept(synOptions)
		r.window(ACK, 0, 0, 0xffff, "")
		total := 0
		for total < 100000 {
			b := r.pool.Get(64 << 10)
			b.Cut(size)
			r.Send(b, false)
			total += size
			r.forget()
		}
		memory := 0
		for b := r.Conn.sent.front; b != nil; b = b.next {
			memory += len(b.room)
		}
		if memory > 8*total+1<<10 || size < 1000 && memory > 2*total {
			t.Errorf("%d bytes in pieces of %d take %d", total, size, memory)
		}
	}
}
