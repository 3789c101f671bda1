package tcp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// acceptedPlainly is accepted of a peer without SACK.
func acceptedPlainly(t testing.TB, change ...func(*Options)) *rig {
	r := newRig(t)
	r.accept(plain[:sizeMSS], change...)
	r.in(ACK, 0, 0, "")
	r.forget()
	return r
}

func TestThreeDuplicatesTellOfALoss(t *testing.T) {
	for name, c := range map[string]struct {
		in   func(r *rig)
		want bool
	}{
		"three":                     {func(r *rig) { r.in(ACK, 0, 0, ""); r.in(ACK, 0, 0, ""); r.in(ACK, 0, 0, "") }, true},
		"two":                       {func(r *rig) { r.in(ACK, 0, 0, ""); r.in(ACK, 0, 0, "") }, false},
		"with bytes they are none":  {func(r *rig) { r.in(ACK, 0, 0, "a"); r.in(ACK, 1, 0, "b"); r.in(ACK, 2, 0, "c") }, false},
		"with an end they are none": {func(r *rig) { r.in(FIN|ACK, 1, 0, ""); r.in(FIN|ACK, 1, 0, ""); r.in(FIN|ACK, 1, 0, "") }, false},
		"with news of the window they are none": {func(r *rig) {
			r.window(ACK, 0, 0, 60000, "")
			r.window(ACK, 0, 0, 60001, "")
			r.window(ACK, 0, 0, 60002, "")
		}, false},
		"not in a row": {func(r *rig) { r.in(ACK, 0, 0, ""); r.in(ACK, 0, 0, ""); r.in(ACK, 0, 1, ""); r.in(ACK, 0, 1, "") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := acceptedPlainly(t)
			r.send("abc")
			r.send("def")
			r.forget()
			c.in(r)
			if again := len(r.said) > 0; again != c.want {
				t.Errorf("sent again: %v, want %v", again, c.want)
			}
		})
	}
	t.Run("none where all has come", func(t *testing.T) {
		r := accepted(t)
		for range 5 {
			r.in(ACK, 0, 0, "")
		}
		r.hears()
	})
}

// fly sends n segments of a kilobyte each.
func (r *rig) fly(n int) {
	for range n {
		r.send(strings.Repeat("x", 1000))
	}
	r.forget()
}

func TestLossesAreMendedOneAfterTheOther(t *testing.T) {
	r := acceptedPlainly(t, func(o *Options) { o.MSS = 1000 })
	r.window(ACK, 0, 0, 30000, "")
	r.fly(10)
	for range 3 {
		r.window(ACK, 0, 0, 30000, "")
	}
	if r.flight != 5000 || r.threshold != 5000 {
		t.Errorf("a flight of %d up to %d after a loss, want half", r.flight, r.threshold)
	}
	r.hears("PA 0:1024 ack 0") // a buffer is sent again as a whole
	for range 5 {
		r.window(ACK, 0, 0, 30000, "")
	}
	r.hears() // that is known
	r.expect(r.window(ACK, 0, 3000, 30000, ""), 0)
	r.hears("PA 3000:3072 ack 0")
	if r.flight != 5000 {
		t.Errorf("a flight of %d while a loss is mended", r.flight)
	}
	r.expect(r.window(ACK, 0, 10000, 30000, ""), Acknowledged)
	r.hears()
	if r.flight != 5000 || r.recovering {
		t.Errorf("a flight of %d after a loss was mended", r.flight)
	}
	r.fly(1)
	r.window(ACK, 0, 11000, 30000, "")
	if r.flight != 5200 {
		t.Errorf("a flight of %d, want it to grow by a segment each", r.flight)
	}
}

func TestAfterSilenceTheFlightBeginsAnew(t *testing.T) {
	r := accepted(t, func(o *Options) { o.MSS = 1000 })
	r.window(ACK, 0, 0, 30000, "")
	for range 3 {
		r.send(strings.Repeat("x", 8000))
	}
	r.forget()
	r.tick()
	r.hears("PA 0:1000 ack 0")
	if r.Room() != 0 {
		t.Error("room beside what is lost")
	}
	if r.threshold != 12000 {
		t.Errorf("a threshold of %d, want half of what was on its way", r.threshold)
	}
	r.window(ACK, 0, 1000, 30000, "")
	r.hears("PA 1000:3000 ack 0")
	r.window(ACK, 0, 3000, 30000, "")
	r.hears("PA 3000:7000 ack 0")
	r.window(ACK, 0, 24000, 30000, "")
	if r.recovering || r.resend != 0 {
		t.Error("a loss that was mended goes on")
	}
}

func TestANarrowerLinkCutsWhatIsSent(t *testing.T) {
	for name, c := range map[string]struct {
		ipv6     bool
		seq, mtu int
		mss      uint16
		again    bool
	}{
		"IPv4":             {false, 0, 1000, 960, true},
		"IPv6":             {true, 0, 1000, 940, true},
		"the last byte":    {false, 1999, 1000, 960, true},
		"tiny":             {false, 0, 68, minMSS, true},
		"as it was":        {false, 0, 1500, 1460, false},
		"larger":           {false, 0, 9000, 1460, false},
		"of an old packet": {false, -1, 1000, 1460, false},
		"of none":          {false, 2000, 1000, 1460, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t, func(o *Options) { o.IPv6 = c.ipv6 })
			r.send(strings.Repeat("x", 2000))
			r.forget()
			r.TooBig(ours+uint32(c.seq), c.mtu)
			if r.mss != c.mss || c.again != (len(r.said) == 1) {
				t.Errorf("pieces of %d, sent again %d times; want %d, %v", r.mss, len(r.said), c.mss, c.again)
			}
			if c.again && r.said[0].MSS != c.mss {
				t.Errorf("sent again in pieces of %d", r.said[0].MSS)
			}
		})
	}
}

func TestANarrowerLinkHasAllSentAgain(t *testing.T) {
	r := accepted(t)
	r.send(strings.Repeat("x", 2000))
	r.send(strings.Repeat("y", 2000))
	r.forget()
	r.TooBig(ours, 1000)
	r.hears("PA 0:2000 ack 0", "PA 2000:4000 ack 0")
	r.expect(r.in(ACK, 0, 2000, ""), 0)
	r.hears()
	r.expect(r.in(ACK, 0, 4000, ""), Acknowledged)
	r.hears()
}

// tells has an acknowledgement come that tells of spans behind it, each by its two ends.
func (r *rig) tells(ack int, ends ...int) Events {
	option := []byte{optionNone, optionNone, optionSACK, uint8(2 + 4*len(ends))}
	for _, at := range ends {
		option = binary.BigEndian.AppendUint32(option, ours+uint32(at))
	}
	return r.Input(&Segment{Seq: r.next, Ack: ours + uint32(ack), Flags: ACK, Window: 0xffff, Options: option}, r.at)
}

func TestWhatThePeerHas(t *testing.T) {
	for name, c := range map[string]struct {
		told []int // two each, in a segment of their own
		want []int
		news int // how many of them were
	}{
		"one":                        {[]int{100, 200}, []int{100, 200}, 1},
		"the same again":             {[]int{100, 200, 100, 200}, []int{100, 200}, 1},
		"a part of it":               {[]int{100, 200, 110, 190}, []int{100, 200}, 1},
		"more of it":                 {[]int{100, 200, 100, 201}, []int{100, 201}, 2},
		"more before it":             {[]int{100, 200, 99, 200}, []int{99, 200}, 2},
		"the next":                   {[]int{100, 200, 200, 300}, []int{100, 300}, 2},
		"the one before":             {[]int{200, 300, 100, 200}, []int{100, 300}, 2},
		"another":                    {[]int{100, 200, 201, 300}, []int{100, 200, 201, 300}, 2},
		"another before":             {[]int{201, 300, 100, 200}, []int{100, 200, 201, 300}, 2},
		"one between":                {[]int{100, 200, 300, 400, 200, 300}, []int{100, 400}, 3},
		"one around all":             {[]int{100, 200, 300, 400, 500, 600, 50, 450}, []int{50, 450, 500, 600}, 4},
		"what is acknowledged":       {[]int{-10, 10}, nil, 0},
		"what begins at the gap":     {[]int{0, 10}, nil, 0},
		"what was never sent":        {[]int{900, 1001}, nil, 0},
		"up to the last":             {[]int{900, 1000}, []int{900, 1000}, 1},
		"nothing":                    {[]int{100, 100}, nil, 0},
		"what ends before it begins": {[]int{200, 100}, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t)
			r.send(strings.Repeat("x", 1000))
			r.recovering = true // so that nothing else comes of it
			r.recover, r.lostTo, r.resent = r.nxt, r.una+1, r.nxt
			news := 0
			for told := c.told; len(told) > 0; told = told[2:] {
				before := slices.Clone(r.had)
				r.tells(0, told[:2]...)
				if !slices.Equal(before, r.had) {
					news++
				}
			}
			var got []int
			for _, p := range r.had {
				got = append(got, int(int32(p.from-ours)), int(int32(p.to-ours)))
			}
			if !slices.Equal(got, c.want) || news != c.news {
				t.Errorf("got %v, %d times news; want %v, %d times", got, news, c.want, c.news)
			}
		})
	}
	t.Run("is bounded", func(t *testing.T) {
		r := accepted(t)
		r.send(strings.Repeat("x", 1000))
		for at := 1; at < 1000; at += 3 {
			r.tells(0, at, at+1)
		}
		if len(r.had) != maxSpans {
			t.Errorf("%d spans are remembered", len(r.had))
		}
		r.tells(0, 1, 1000)
		if len(r.had) != 1 {
			t.Errorf("%d spans are remembered, want one", len(r.had))
		}
	})
	t.Run("is forgotten with its acknowledgement", func(t *testing.T) {
		r := accepted(t)
		r.send(strings.Repeat("x", 1000))
		r.tells(0, 100, 200, 300, 400)
		r.tells(250)
		if want := []span{{300 - 100, 400 - 100}}; !slices.Equal(r.had, want) {
			t.Errorf("left %v", r.had)
		}
		r.tells(1000)
		if r.had != nil {
			t.Errorf("left %v", r.had)
		}
	})
}

// Two segments or three of them make a loss of what was sent before.
func TestWhatIsMissingBeforeWhatHasComeIsLost(t *testing.T) {
	for name, c := range map[string]struct {
		told [][]int
		want bool
	}{
		"two segments":             {[][]int{{1000, 3000}}, false},
		"more":                     {[][]int{{1000, 3001}}, true},
		"in two":                   {[][]int{{1000, 2000}, {4000, 5001}}, true},
		"two":                      {[][]int{{1000, 1001}, {1000, 1002}}, false},
		"three":                    {[][]int{{1000, 1001}, {1000, 1002}, {1000, 1003}}, true},
		"one thrice":               {[][]int{{1000, 1001}, {1000, 1001}, {1000, 1001}, {1000, 1001}}, false},
		"nothing thrice":           {[][]int{{}, {}, {}}, false},
		"three, with other news":   {[][]int{{1000, 1001}, {1000, 1002}, {1000, 1003}}, true},
		"three, not one after one": {[][]int{{1000, 1001}, {1000, 1002}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t, func(o *Options) { o.MSS = 1000 })
			r.fly(9)
			for i, told := range c.told {
				switch {
				case strings.HasSuffix(name, "other news"):
					r.o.Window, r.wnd = r.o.Window+1, r.wnd+1 // a window, each time another
				case strings.HasSuffix(name, "one after one") && i == 1:
					r.tells(1)
				}
				r.tells(0, told...)
			}
			if len(r.said) > 0 != c.want || r.recovering != c.want {
				t.Errorf("sent again %d times, recovering %v", len(r.said), r.recovering)
			}
		})
	}
}

// A kilobyte is a piece and a buffer here.
func TestABurstOfLossesIsMendedAtOnce(t *testing.T) {
	r := accepted(t, func(o *Options) { o.MSS = 1024 })
	r.flight = 64 << 10
	for range 20 {
		r.send(strings.Repeat("x", 1024))
	}
	r.forget()
	const k = 1024
	r.tells(k, 10*k, 12*k)
	r.hears()
	r.tells(k, 10*k, 13*k)
	r.hears("PA 1024:2048 ack 0", "PA 2048:3072 ack 0", "PA 3072:4096 ack 0", "PA 4096:5120 ack 0", "PA 5120:6144 ack 0",
		"PA 6144:7168 ack 0", "PA 7168:8192 ack 0", "PA 8192:9216 ack 0", "PA 9216:10240 ack 0")
	if r.flight != 19*k/2 || r.threshold != 19*k/2 {
		t.Errorf("a flight of %d up to %d after a loss, want half", r.flight, r.threshold)
	}
	r.tells(k, 16*k, 18*k, 10*k, 13*k)
	r.hears() // a flight is on its way
	r.tells(2*k, 16*k, 18*k, 10*k, 13*k)
	r.hears("PA 13312:14336 ack 0")
	r.tells(13*k, 16*k, 18*k)
	r.hears("PA 14336:15360 ack 0", "PA 15360:16384 ack 0", "PA 18432:19456 ack 0", "PA 19456:20480 ack 0")
	r.tells(14*k, 16*k, 18*k)
	r.tells(18 * k)
	r.hears()
	if !r.recovering || r.had != nil {
		t.Error("not all is mended yet")
	}
	r.expect(r.tells(20*k), Acknowledged)
	if r.recovering || r.Due()-r.at < time.Hour {
		t.Errorf("mended, and due in %v", r.Due()-r.at)
	}
	if r.flight != 19*k/2 {
		t.Errorf("a flight of %d after a loss was mended", r.flight)
	}
}

func TestWhatIsFoundLostLaterIsMendedAtOnce(t *testing.T) {
	r := accepted(t, func(o *Options) { o.MSS = 1000 })
	r.send(strings.Repeat("x", 10000))
	r.forget()
	r.tells(0, 1000, 4000)
	r.hears("PA 0:1000 ack 0")
	r.tells(0, 6000, 7000, 1000, 4000)
	r.hears("PA 4000:6000 ack 0")
	r.tells(0, 6000, 8000, 1000, 4000)
	r.hears()
}

func TestWhatIsSentAgainIsWithinTheWindow(t *testing.T) {
	for window, want := range map[uint16]string{4000: "PA 0:4000 ack 0", 2500: "PA 0:1920 ack 0", 960: "PA 0:960 ack 0", 1: "PA 0:960 ack 0"} {
		r := accepted(t)
		r.send(strings.Repeat("x", 4000))
		r.window(ACK, 0, 0, window, "")
		r.forget()
		r.TooBig(ours, 1000)
		r.hears(want)
	}
}

func TestWhatIsSentAgainIsCutAtWhatThePeerHas(t *testing.T) {
	r := accepted(t, func(o *Options) { o.MSS = 100 })
	r.send(strings.Repeat("x", 5000)) // one buffer
	r.send("end")
	r.CloseWrite()
	r.forget()
	r.tells(0, 250, 300, 1000, 1500)
	r.hears("PA 0:250 ack 0", "PA 300:1000 ack 0")
	r.tells(1500)
	r.hears("PA 1500:4000 ack 0") // of half of it, whole segments
	r.tells(4000)
	r.hears("FPA 4000:5003 ack 0")
	r.tells(5003)
	r.hears()
	r.tick()
	r.hears("FA 5003 ack 0")
	r.expect(r.tells(5004), Acknowledged)
}

// A peer may throw away what it has told of. After a silence all goes again.
func TestWhatThePeerHadIsForgottenAfterSilence(t *testing.T) {
	r := accepted(t, func(o *Options) { o.MSS = 1000 })
	for range 3 {
		r.send(strings.Repeat("x", 2000))
	}
	r.tells(0, 2000, 4000)
	r.forget()
	r.tick()
	r.hears("PA 0:1000 ack 0")
	r.tells(1000)
	r.hears("PA 1000:2000 ack 0", "PA 2000:3000 ack 0")
	r.tells(2000, 4000, 6000) // which it has kept, or got again
	r.hears("PA 3000:4000 ack 0")
}

// Whatever part of a stream is lost, a round trip or two mend it, and not the timeout.
func TestABurstOfLossesCostsLittleTime(t *testing.T) {
	const size = 200000
	for name, lost := range map[string]func(at int) bool{ // of the byte
		"nothing":             func(int) bool { return false },
		"one":                 func(at int) bool { return at/1460 == 50 },
		"the first":           func(at int) bool { return at == 0 },
		"the last":            func(at int) bool { return at >= size-10000 },
		"the last half":       func(at int) bool { return at > size/2 },
		"all but the first":   func(at int) bool { return at > 0 },
		"all, for a while":    func(at int) bool { return at < 50000 },
		"every second":        func(at int) bool { return at/1460%2 == 0 },
		"two of three":        func(at int) bool { return at/1460%3 > 0 },
		"a half":              func(at int) bool { return at > 50000 && at < 150000 },
		"the first, and last": func(at int) bool { return at < 10000 || at > 190000 },
	} {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			w := &wire{random: random, now: time.Hour, cuts: true}
			for i := range w.ends {
				w.ends[i] = &end{wire: w, who: i}
				w.ends[i].o = Options{Wire: w.ends[i], Pool: &w.ends[i].pool, MSS: 1460, Window: 1 << 20}
			}
			a, b := w.ends[0], w.ends[1]
			a.write = stream(size, random)
			b.want = bytes.Clone(a.write)
			a.Open(a.o, w.now)
			first, sent := a.nxt, a.nxt
			w.loses = func(to int, s *Segment) bool {
				end := s.Seq + uint32(len(s.Payload))
				if to != 1 || int32(end-sent) <= 0 {
					return false // it comes by once more
				}
				sent = end
				return lost(int(s.Seq - first))
			}
			for steps := 0; a.gone == 0 || b.gone == 0; steps++ {
				if steps > 10000 {
					t.Fatal("no end in sight")
				}
				w.step(t)
			}
			if took := w.now - time.Hour; len(b.want) > 0 || took >= minRTO {
				t.Errorf("took %v, and %d bytes are missing", took, len(b.want))
			}
		})
	}
}
