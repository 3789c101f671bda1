package tcp

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"
)

// waits lets the time come n times, and says how long each took. Events end it.
func (r *rig) waits(n int) (all []time.Duration, events Events) {
	r.t.Helper()
	for range n {
		all = append(all, r.after())
		if events = r.tick(); events != 0 {
			break
		}
	}
	return all, events
}

func seconds(all ...float64) (d []time.Duration) {
	for _, s := range all {
		d = append(d, time.Duration(s*float64(time.Second)))
	}
	return d
}

func TestSilenceIsBoreAsLongAsLinuxDoes(t *testing.T) {
	for name, c := range map[string]struct {
		begin func(r *rig)
		want  []time.Duration
		last  string // word
	}{
		"an answer of ours to a SYN": {func(r *rig) { r.accept(plain) }, seconds(1, 2, 4, 8, 16, 32, 64), "RA 0 ack 0"},
		"a SYN of ours":              {func(r *rig) { r.Open(r.options(nil), r.at); r.una, r.nxt = ours-1, ours }, seconds(1, 2, 4, 8, 16, 32, 64), ""},
		"bytes": {func(r *rig) { r.established(); r.send("abc") },
			seconds(.2, .4, .8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 120, 120, 120, 120, 120, 120), "RA 3 ack 0"},
		"bytes of which nobody is left": {func(r *rig) { r.established(); r.send("abc"); r.Orphan() },
			seconds(.2, .4, .8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2), "RA 3 ack 0"},
		"an end": {func(r *rig) { r.established(); r.CloseWrite(); r.Orphan() },
			seconds(.2, .4, .8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2), "RA 1 ack 0"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			c.begin(r)
			r.forget()
			got, events := r.waits(100)
			if !slices.Equal(got, c.want) || events != TimedOut {
				t.Errorf("waited %v, events %08b; want %v", got, events, c.want)
			}
			n := len(c.want) - 1
			if c.last != "" {
				n++
				if got := text(&r.said[len(r.said)-1], nil); got != c.last {
					t.Errorf("the last word is %s, want %s", got, c.last)
				}
			}
			if len(r.said) != n || !r.IsClosed() {
				t.Errorf("%d segments were said, want %d", len(r.said), n)
			}
			r.expect(r.Tick(r.at+time.Hour), 0)
		})
	}
}

// established is accepted with a peer that answers at once.
func (r *rig) established() {
	r.accept(plain)
	r.in(ACK, 0, 0, "")
	r.forget()
}

func TestTheTimeIsThatOfTheOwner(t *testing.T) {
	r := accepted(t)
	r.at += time.Hour
	r.Tell(r.at)
	r.send("abc")
	if r.after() != minRTO && r.after() != initialRTO {
		t.Errorf("sent again after %v", r.after())
	}
	r.at += 10 * time.Millisecond
	r.in(ACK, 0, 3, "")
	if r.rto > time.Second {
		t.Errorf("an answer within 10 ms makes a timeout of %v", r.rto)
	}
}

func TestTheTimeoutIsLearned(t *testing.T) {
	r := accepted(t) // whose handshake took no time
	at := 0
	for _, c := range []struct{ took, want time.Duration }{
		{100 * time.Millisecond, 300 * time.Millisecond}, // and half of it four times
		{100 * time.Millisecond, 300 * time.Millisecond}, // never less than 200 ms beside it
		{500 * time.Millisecond, 662500 * time.Microsecond},
		{10 * time.Minute, 2 * time.Minute},
	} {
		r.Tell(r.at)
		r.send("x")
		r.at += c.took
		at++
		r.in(ACK, 0, at, "")
		if r.rto != c.want {
			t.Errorf("after an answer in %v a timeout of %v, want %v", c.took, r.rto, c.want)
		}
	}
}

func TestOneOfSeveralOnTheirWayIsTimed(t *testing.T) {
	r := accepted(t)
	r.send("abc")
	r.at += 100 * time.Millisecond
	r.Tell(r.at)
	r.send("def")
	r.at += 100 * time.Millisecond
	r.in(ACK, 0, 2, "")
	if r.rto != initialRTO && r.rto != minRTO {
		t.Errorf("a timeout of %v from a part of it", r.rto)
	}
	r.in(ACK, 0, 3, "")
	if r.rto != 600*time.Millisecond {
		t.Errorf("a timeout of %v, want one of 200 ms, and half of it four times", r.rto)
	}
}

func TestAnAnswerToOneOfTwoTeachesNothing(t *testing.T) {
	r := newRig(t)
	r.established()
	r.send("abc")
	r.tick()
	r.at += 10 * time.Second
	r.in(ACK, 0, 3, "")
	if r.rto != 2*minRTO {
		t.Errorf("a timeout of %v, want it as it was, twice the first", r.rto)
	}
	r.Tell(r.at)
	r.send("def")
	r.at += time.Millisecond
	r.in(ACK, 0, 6, "")
	if r.rto != minRTO+r.srtt {
		t.Errorf("a timeout of %v after a quick answer", r.rto)
	}
}

// The clock in an answer says of which of two it is, so that the timeout does not stay as
// long as it has become.
func TestAnAnswerWithOurClockTeaches(t *testing.T) {
	r := newRig(t)
	r.accept(append(stamps(1), plain...))
	answers := func(ack int, sent time.Duration) Events {
		options := binary.BigEndian.AppendUint32(append([]byte{}, stamps(2)[:8]...), uint32(sent/time.Millisecond))
		return r.Input(&Segment{Seq: peers, Ack: ours + uint32(ack), Flags: ACK, Window: 0xffff, Options: options}, r.at)
	}
	r.tick()
	r.tick()
	again := r.at
	r.at += 4 * time.Millisecond
	r.expect(answers(0, again), Opened|Acknowledged)
	if r.srtt != 4*time.Millisecond || r.rto != minRTO+r.srtt {
		t.Errorf("the second answer to a SYN, after 4 ms, makes a timeout of %v, %v more than usual", r.rto, r.rto-r.srtt)
	}
	r.Tell(r.at)
	r.send("abc")
	r.tick() // the tail
	r.tick()
	r.tick()
	again = r.at
	r.at += 100 * time.Microsecond // less than the clock says
	r.expect(answers(3, again), Acknowledged)
	if r.srtt != 3625*time.Microsecond || r.rto != minRTO+r.srtt {
		t.Errorf("an answer after less than 1 ms makes a timeout of %v, %v more than usual", r.rto, r.rto-r.srtt)
	}
}

func TestRoomIsAskedFor(t *testing.T) {
	t.Run("of a peer that answers, for ever, ever more seldom", func(t *testing.T) {
		r := newRig(t)
		r.established()
		r.window(ACK, 0, 0, 0, "")
		if r.Room() != 0 {
			t.Fatal("there is room")
		}
		var got []time.Duration
		for range 30 {
			got = append(got, r.after())
			r.expect(r.tick(), 0)
			r.hears("A -1 ack 0")
			r.expect(r.window(ACK, 0, 0, 0, ""), 0)
		}
		if want := seconds(.2, .2, .4, .8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 120); !slices.Equal(got[:12], want) || got[29] != maxRTO {
			t.Errorf("asked after %v, want %v", got, want)
		}
		r.expect(r.window(ACK, 0, 0, 10, ""), Room)
		r.expect(r.window(ACK, 0, 0, 0, ""), 0)
		if r.Room(); r.after() != 200*time.Millisecond {
			t.Errorf("the next time asked after %v", r.after())
		}
	})
	t.Run("of one that does not, until it is gone", func(t *testing.T) {
		r := newRig(t)
		r.established()
		r.window(ACK, 0, 0, 0, "")
		r.Room()
		got, events := r.waits(100)
		if len(got) != maxRetransmits+1 || events != TimedOut {
			t.Errorf("asked %d times, events %08b", len(got)-1, events)
		}
	})
	t.Run("where the last acknowledgement takes it", func(t *testing.T) {
		r := newRig(t)
		r.established()
		r.window(ACK, 0, 0, 3, "")
		r.send("abc")
		if r.Room() != 0 {
			t.Fatal("there is room")
		}
		r.expect(r.window(ACK, 0, 3, 0, ""), Acknowledged)
		if r.after() != 200*time.Millisecond {
			t.Errorf("room is asked for after %v", r.after())
		}
	})
	t.Run("not while something is on its way", func(t *testing.T) {
		r := newRig(t)
		r.established()
		r.window(ACK, 0, 0, 3, "")
		r.send("abc")
		r.Room()
		if r.persist != 0 {
			t.Error("it is asked for")
		}
	})
	t.Run("and an end is sent as often as if it had not been", func(t *testing.T) {
		r := newRig(t)
		r.established()
		r.window(ACK, 0, 0, 0, "")
		r.Room()
		r.waits(5)
		r.CloseWrite()
		if got, events := r.waits(100); len(got) != maxRetransmits+1 || events != TimedOut {
			t.Errorf("sent again %d times, events %08b", len(got)-1, events)
		}
	})
	t.Run("not once our half has ended", func(t *testing.T) {
		r := newRig(t)
		r.established()
		r.window(ACK, 0, 0, 0, "")
		r.Room()
		r.CloseWrite()
		r.in(ACK, 0, 1, "")
		if r.after() != 2*time.Hour {
			t.Errorf("something is waited for, for %v", r.after())
		}
	})
}

func TestAnEndForWhichThereIsNoRoom(t *testing.T) {
	r := newRig(t)
	r.established()
	r.window(ACK, 0, 0, 0, "")
	r.CloseWrite()
	r.Orphan()
	r.hears("FA 0 ack 0")
	for range 30 { // longer than anything else is sent again
		r.expect(r.tick(), 0)
		r.hears("FA 0 ack 0")
		r.expect(r.window(ACK, 0, 0, 0, ""), 0)
	}
	r.expect(r.window(ACK, 0, 0, 100, ""), 0)
	r.hears("FA 0 ack 0") // at once
	r.expect(r.window(ACK, 0, 0, 200, ""), 0)
	r.hears()
	if got, events := r.waits(100); len(got) != maxOrphans+1 || events != TimedOut {
		t.Errorf("sent again %d times, events %08b", len(got)-1, events)
	}
}

func TestASilentPeerIsProbed(t *testing.T) {
	r := accepted(t)
	got, events := r.waits(100)
	want := append(seconds(7200), slices.Repeat(seconds(75), 9)...)
	if !slices.Equal(got, want) || events != TimedOut {
		t.Errorf("waited %v, events %08b; want %v", got, events, want)
	}
	if len(r.said) != 10 || text(&r.said[8], nil) != "A -1 ack 0" || text(&r.said[9], nil) != "RA 0 ack 0" {
		t.Errorf("%d segments were said", len(r.said))
	}

	r = accepted(t)
	r.waits(5)
	r.expect(r.in(ACK, 0, 0, ""), 0)
	if r.after() != 2*time.Hour {
		t.Errorf("after an answer probed in %v", r.after())
	}
	r.SetIdle(time.Minute)
	if r.after() != time.Minute {
		t.Errorf("probed in %v, want a minute", r.after())
	}
	r.SetIdle(0)
	if r.Due() != 0 {
		t.Error("probed where it is not asked for")
	}
}

func TestASilentPeerIsNotProbedWhileSomethingElseAsksIt(t *testing.T) {
	r := newRig(t)
	r.established()
	r.SetIdle(time.Millisecond)
	r.send("abc")
	if r.after() != minRTO {
		t.Errorf("probed after %v, while bytes are on their way", r.after())
	}
	r.window(ACK, 0, 3, 0, "")
	r.Room()
	if r.after() != minRTO {
		t.Errorf("probed after %v, while room is asked for", r.after())
	}
}
