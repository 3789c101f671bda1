package tcp

import (
	"bytes"
	"testing"
	"time"
)

func TestSYNOptions(t *testing.T) {
	for name, c := range map[string]struct {
		options []byte
		ipv6    bool
		window  int
		mss     uint16
		scale   uint8
		sack    bool
		answer  []byte
	}{
		"Linux's":                     {synOptions, false, 1 << 20, 1448, 7, true, []byte{2, 4, 5, 180, 1, 1, 4, 2, 1, 1, 8, 10, 0, 0x36, 0xee, 0x80, 0, 0, 0, 1, 1, 3, 3, 5}},
		"none":                        {nil, false, 1 << 20, 536, 0, false, []byte{2, 4, 5, 180}},
		"none of IPv6":                {nil, true, 1 << 20, 1220, 0, false, []byte{2, 4, 5, 180}},
		"a scale alone":               {[]byte{3, 3, 9}, false, 1 << 20, 536, 9, false, []byte{2, 4, 5, 180, 1, 3, 3, 5}},
		"a scale that we do not need": {[]byte{3, 3, 9}, false, 0xffff, 536, 9, false, []byte{2, 4, 5, 180, 1, 3, 3, 0}},
		"a scale of none":             {[]byte{3, 3, 0}, false, 1 << 20, 536, 0, false, []byte{2, 4, 5, 180, 1, 3, 3, 5}},
		"a scale beyond 14":           {[]byte{3, 3, 15}, false, 1 << 16, 536, 14, false, []byte{2, 4, 5, 180, 1, 3, 3, 1}},
		"a scale of another size":     {[]byte{3, 4, 9, 9}, false, 1 << 20, 536, 0, false, []byte{2, 4, 5, 180}},
		"a large MSS":                 {[]byte{2, 4, 255, 255}, false, 1 << 20, 1460, 0, false, []byte{2, 4, 5, 180}},
		"a tiny MSS":                  {[]byte{2, 4, 0, 1}, false, 1 << 20, minMSS, 0, false, []byte{2, 4, 5, 180}},
		"an MSS of another size":      {[]byte{2, 3, 1, 1}, false, 1 << 20, 536, 0, false, []byte{2, 4, 5, 180}},
		"SACK of another size":        {[]byte{4, 3, 0, 1}, false, 1 << 20, 536, 0, false, []byte{2, 4, 5, 180}},
		"an end before others":        {[]byte{0, 2, 4, 1, 0}, false, 1 << 20, 536, 0, false, []byte{2, 4, 5, 180}},
		"one without a size":          {[]byte{1, 2}, false, 1 << 20, 536, 0, false, []byte{2, 4, 5, 180}},
		"stamps of another size":      {[]byte{8, 9, 0, 0, 0, 1, 0, 0, 0}, false, 1 << 20, 536, 0, false, []byte{2, 4, 5, 180}},
		"stamps alone":                {[]byte{8, 10, 0, 0, 0, 7, 0, 0, 0, 0}, false, 1 << 20, 524, 0, false, []byte{2, 4, 5, 180, 1, 1, 8, 10, 0, 0x36, 0xee, 0x80, 0, 0, 0, 7}},
		"one with a size of none":     {[]byte{8, 0, 2, 4, 1, 0}, false, 1 << 20, 536, 0, false, []byte{2, 4, 5, 180}},
		"one that is cut off":         {[]byte{2, 4, 1}, false, 1 << 20, 536, 0, false, []byte{2, 4, 5, 180}},
		"unknown ones":                {[]byte{253, 2, 4, 2}, false, 1 << 20, 536, 0, true, []byte{2, 4, 5, 180, 1, 1, 4, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.accept(c.options, func(o *Options) { o.IPv6, o.Window = c.ipv6, c.window })
			if r.mss != c.mss || r.scale != c.scale || r.sack != c.sack {
				t.Errorf("MSS %d, scale %d, SACK %v; want %d, %d, %v", r.mss, r.scale, r.sack, c.mss, c.scale, c.sack)
			}
			h := &r.said[0]
			if got := h.options[:h.size]; !bytes.Equal(got, c.answer) {
				t.Errorf("answered % d, want % d", got, c.answer)
			}
			if int(h.Window) != min(c.window, 0xffff) {
				t.Errorf("a window of %d", h.Window)
			}
			r.window(ACK, 0, 0, 10, "")
			if r.wnd != 10<<c.scale {
				t.Errorf("10 is taken for %d", r.wnd)
			}
			r.Acknowledge()
			scale := 0
			if n := len(c.answer); c.answer[n-3] == optionScale {
				scale = int(c.answer[n-1])
			}
			if got, want := int(r.said[1].Window)<<scale, min(c.window, 0xffff<<scale); got != want || r.edge != r.next+uint32(want) {
				t.Errorf("a window of %d, to %d, want %d", got, r.edge-r.next, want)
			}
		})
	}
}

func TestOurSideMayTakeLessThanThePeer(t *testing.T) {
	r := newRig(t)
	r.accept(nil, func(o *Options) { o.MSS = 400 })
	if r.mss != 400 {
		t.Errorf("pieces of %d", r.mss)
	}
}

func TestAnAnswerMayComeLate(t *testing.T) {
	r := newRig(t)
	r.Accept(r.options(nil), &Segment{Seq: peers - 1, Flags: SYN, Window: 0xffff, Options: plain}, r.at)
	if r.Due() != 0 {
		t.Error("waits before it has answered")
	}
	r.at += 30 * time.Second
	r.una, r.nxt = ours-1, ours
	r.Answer(r.at)
	if r.after() != time.Second {
		t.Errorf("answers again after %v", r.after())
	}
	r.tick()
	r.at += 10 * time.Millisecond
	r.in(ACK, 0, 0, "")
	if r.rto != 2*time.Second {
		t.Errorf("a timeout of %v from one of two answers", r.rto)
	}
}

func TestAnAnswerToOneOfTwoAnswersIsNotTimed(t *testing.T) {
	r := newRig(t)
	r.accept(plain)
	r.at += 100 * time.Millisecond
	s := Segment{Seq: peers - 1, Flags: SYN, Window: 0xffff, Options: plain}
	r.Input(&s, r.at)
	r.at += time.Millisecond
	r.expect(r.in(ACK, 0, 0, ""), Opened|Acknowledged)
	if r.srtt != 0 || r.rto != initialRTO {
		t.Errorf("learned %v, a timeout of %v", r.srtt, r.rto)
	}
}

func TestThePeerOpens(t *testing.T) {
	r := newRig(t)
	r.accept(plain)
	r.hears("SA -1 ack 0")
	if r.IsOpen() || r.IsClosed() {
		t.Error("open before it is")
	}
	s := Segment{Seq: peers - 1, Flags: SYN, Window: 0xffff, Options: plain}
	r.expect(r.Input(&s, r.at), 0)
	r.hears("SA -1 ack 0") // again
	s.Seq++
	r.expect(r.Input(&s, r.at), 0)
	r.hears("A 0 ack 0")
	r.at += challengeInterval
	r.expect(r.in(SYN|ACK, -1, 0, ""), 0)
	r.hears("A 0 ack 0")
	for _, ack := range []int{-1, 1} {
		r.expect(r.in(ACK, 0, ack, "abc"), 0)
		if len(r.said) != 1 || r.said[0].Flags != RST || r.said[0].Seq != ours+uint32(ack) || r.IsOpen() {
			t.Errorf("an acknowledgement of nothing of ours is not answered by a reset: %v", r.said)
		}
		r.forget()
	}
	r.expect(r.in(ACK, 0, 0, "abc"), Opened|Acknowledged|Arrived)
	if !r.IsOpen() || r.take() != "abc" {
		t.Error("not open, or without what came with it")
	}
	r.settleACK()
	r.forget()
	s.Seq = peers - 1
	r.at += challengeInterval
	r.expect(r.Input(&s, r.at), 0) // one that has forgotten us
	r.hears("A 0 ack 3")
}

func TestWeOpen(t *testing.T) {
	open := func(t *testing.T) *rig {
		r := newRig(t)
		r.Open(r.options(nil), r.at)
		if got, want := r.said[0].options[:r.said[0].size], []byte{2, 4, 5, 180, 1, 1, 4, 2, 1, 1, 8, 10, 0, 0x36, 0xee, 0x80, 0, 0, 0, 0, 1, 3, 3, 5}; !bytes.Equal(got, want) {
			t.Errorf("asks with % d, want % d", got, want)
		}
		r.said[0].Seq, r.una, r.nxt, r.timedSeq = ours-1, ours-1, ours, ours
		r.hears("S -1")
		return r
	}
	answer := Segment{Seq: peers - 1, Ack: ours, Flags: SYN | ACK, Window: 500, Options: synOptions}
	for name, c := range map[string]struct {
		change func(*Segment)
		events Events
		said   []string
		state  state
	}{
		"an answer":                 {func(*Segment) {}, Opened, []string{"A 0 ack 0 at 0 of 1"}, established},
		"one to another SYN":        {func(s *Segment) { s.Ack++ }, 0, []string{"R 1"}, synSent},
		"an acknowledgement alone":  {func(s *Segment) { s.Flags = ACK }, 0, nil, synSent},
		"a refusal":                 {func(s *Segment) { s.Flags = RST | ACK }, Reset, nil, closed},
		"a refusal of another SYN":  {func(s *Segment) { s.Flags, s.Ack = RST|ACK, ours+1 }, 0, nil, synSent},
		"a reset of nothing":        {func(s *Segment) { s.Flags = RST }, 0, nil, synSent},
		"a SYN of its own, at once": {func(s *Segment) { s.Flags = SYN }, 0, []string{"SA -1 ack 0"}, synReceived},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t)
			s := answer
			c.change(&s)
			r.expect(r.Input(&s, r.at), c.events)
			r.hears(c.said...)
			if r.state != c.state {
				t.Errorf("state %d, want %d", r.state, c.state)
			}
			switch c.state {
			case established:
				if r.mss != 1448 || r.scale != 7 || !r.sack {
					t.Errorf("MSS %d, scale %d: not what the answer says", r.mss, r.scale)
				}
				if r.wnd != 500 || r.Room() != 500 || r.after() != 2*time.Hour {
					t.Errorf("a window of %d, want one that is not scaled; due in %v", r.wnd, r.after())
				}
			case synReceived:
				r.expect(r.in(ACK, 0, 0, ""), Opened|Acknowledged)
			case closed:
				if r.Due() != 0 {
					t.Error("waits for something")
				}
			}
		})
	}
	t.Run("and give up without a word", func(t *testing.T) {
		r := open(t)
		r.Abort()
		r.Abort()
		r.hears()
	})
}

func TestAbort(t *testing.T) {
	r := accepted(t)
	r.in(ACK, 0, 0, "abc")
	r.in(ACK, 5, 0, "later")
	r.send("xyz")
	r.forget()
	r.Abort()
	r.hears("RA 3 ack 3")
	r.Abort()
	r.Acknowledge()
	r.hears()
	if got := string(r.Peek()); got != "abc" || r.later != nil || r.Due() != 0 || !r.IsClosed() {
		t.Errorf("%q may be taken", got)
	}
	r.Release()
	if len(r.Peek()) != 0 {
		t.Error("what was given up may be taken")
	}
}

func TestRefusal(t *testing.T) {
	for name, c := range map[string]struct {
		segment Segment
		want    Header
		ok      bool
	}{
		"of a SYN":              {Segment{Seq: 5, Flags: SYN}, Header{Ack: 6, Flags: RST | ACK}, true},
		"of bytes and an end":   {Segment{Seq: 5, Flags: FIN, Payload: []byte("abc")}, Header{Ack: 9, Flags: RST | ACK}, true},
		"of an acknowledgement": {Segment{Seq: 5, Ack: 7, Flags: ACK}, Header{Seq: 7, Flags: RST}, true},
		"of a reset":            {Segment{Seq: 5, Flags: RST}, Header{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := Refusal(&c.segment); got != c.want || ok != c.ok {
				t.Errorf("got %v, %v; want %v, %v", got, ok, c.want, c.ok)
			}
		})
	}
}

func TestAHeaderIsReadAsItWasWritten(t *testing.T) {
	h := Header{Seq: 0x01020304, Ack: 0x05060708, Flags: PSH | ACK, Window: 0x090a}
	h.add(optionSACKWell, sizeSACKWell)
	b := bytes.Repeat([]byte{0xff}, MaxHeaderSize)
	n := h.Put(b, 0x1112, 0x1314)
	want := []byte{0x11, 0x12, 0x13, 0x14, 1, 2, 3, 4, 5, 6, 7, 8, 6 << 4, PSH | ACK, 9, 10, 0, 0, 0, 0, 1, 1, 4, 2}
	if !bytes.Equal(b[:n], want) {
		t.Fatalf("wrote % x, want % x", b[:n], want)
	}
	var s Segment
	s.Parse(append(b[:n], "abc"...))
	if s.Seq != h.Seq || s.Ack != h.Ack || s.Flags != h.Flags || s.Window != h.Window || string(s.Payload) != "abc" || !bytes.Equal(s.Options, want[20:]) {
		t.Errorf("read %+v", s)
	}
	for flags, opens := range map[uint8]bool{SYN: true, SYN | ACK: false, SYN | RST: false, ACK: false, 0: false, SYN | PSH: true} {
		if s.Flags = flags; s.Opens() != opens {
			t.Errorf("flags %05b open: %v", flags, s.Opens())
		}
	}
}

// stamps are the option of a segment, at a time of the peer's clock.
func stamps(clock byte) []byte { return []byte{1, 1, 8, 10, 0, 0, 0, clock, 0, 0, 0, 0} }

// Each segment tells our clock, and the peer's as the last in order has told it.
func TestClocksAreTold(t *testing.T) {
	r := newRig(t)
	r.accept(append(stamps(1), plain...))
	r.forget()
	comes := func(seq, ack int, options []byte, payload string) {
		t.Helper()
		r.at += 10 * time.Millisecond
		r.Input(&Segment{Seq: peers + uint32(seq), Ack: ours + uint32(ack), Flags: ACK, Window: 0xffff, Options: options, Payload: []byte(payload)}, r.at)
		r.Settle(nil)
		r.Acknowledge()
	}
	comes(0, 0, stamps(2), "")
	r.hears("A 0 ack 0 at 10 of 2")
	comes(0, 0, stamps(3), "abc")
	r.hears("A 0 ack 3 at 20 of 3")
	comes(3, 0, []byte{8, 10, 0, 0, 0, 4, 0, 0, 0, 0}, "def") // written otherwise
	r.hears("A 0 ack 6 at 30 of 4")
	comes(6, 0, nil, "ghi") // as no kernel does
	r.hears("A 0 ack 9 at 40 of 4")
	comes(20, 0, stamps(6), "late") // before its turn
	r.hears("A 0 ack 9 at 50 of 4 sack 20-24")
	comes(30, 0, stamps(7), "late")
	comes(40, 0, stamps(8), "late")
	r.forget()
	comes(50, 0, stamps(9), "late") // of which there is no room to tell
	r.hears("A 0 ack 9 at 80 of 4 sack 50-54 sack 20-24 sack 30-34")
	if h := r.header(r.nxt, 0); h.size > MaxHeaderSize-HeaderSize || int(h.MSS)+h.size != 1460 {
		t.Errorf("pieces of %d bytes beside %d of options", h.MSS, h.size)
	}
}

// Who does not tell its own is told nothing.
func TestClocksAreNotToldToWhoTellsNone(t *testing.T) {
	r := accepted(t)
	r.Input(&Segment{Seq: peers, Ack: ours, Flags: ACK, Window: 0xffff, Options: stamps(2)}, r.at)
	r.Acknowledge()
	r.hears("A 0 ack 0")
}

// Of several segments that one acknowledgement is for, the first is told of, so that the
// peer measures what the acknowledgement has waited, too (RFC 7323, 4.3).
func TestTheClockOfTheFirstSegmentIsTold(t *testing.T) {
	r := newRig(t)
	r.accept(append(stamps(1), plain...))
	r.forget()
	for i, payload := range []string{"abc", "def", "ghi"} {
		r.Input(&Segment{Seq: peers + uint32(3*i), Ack: ours, Flags: ACK, Window: 0xffff, Options: stamps(byte(2 + i)), Payload: []byte(payload)}, r.at)
		r.Settle(nil)
	}
	r.hears("A 0 ack 9 at 0 of 2")
	r.Input(&Segment{Seq: peers + 9, Ack: ours, Flags: ACK, Window: 0xffff, Options: stamps(5), Payload: []byte("j")}, r.at)
	r.hears("A 0 ack 10 at 0 of 5")
}
