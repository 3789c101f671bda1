package tcp

import (
	"strings"
	"testing"
	"time"
)

// Where a part of what was sent is lost at its end, nothing tells of it. So the last
// segment goes again when it is later than usual.
func TestTheLastSegmentIsSentAgain(t *testing.T) {
	const took = time.Millisecond
	fly := func(t *testing.T, options []byte, payload ...string) *rig {
		r := newRig(t)
		r.accept(options)
		r.at += took
		r.in(ACK, 0, 0, "")
		for _, p := range payload {
			r.send(p)
		}
		r.forget()
		return r
	}
	large := strings.Repeat("x", 4000)
	usual := 2*took + tailGrace
	t.Run("and tells of the loss", func(t *testing.T) {
		r := fly(t, plain, large, large)
		if r.after() != usual {
			t.Fatalf("due after %v, want %v", r.after(), usual)
		}
		r.expect(r.tick(), 0)
		r.hears("PA 6540:8000 ack 0")
		if r.after() != minRTO+took {
			t.Errorf("then due after %v", r.after())
		}
		r.tells(1460, 6540, 8000)
		r.hears("PA 1460:4000 ack 0") // a half of what was on its way
		r.tells(4000, 6540, 8000)
		r.hears("PA 4000:6540 ack 0")
		r.expect(r.tells(8000), Acknowledged)
		if r.after() != 2*time.Hour {
			t.Errorf("due after %v, with nothing on its way", r.after())
		}
	})
	t.Run("which was the loss", func(t *testing.T) {
		r := fly(t, plain, large)
		r.tick()
		r.forget()
		srtt := r.srtt
		r.at += time.Minute
		r.expect(r.tells(4000), Acknowledged)
		r.hears()
		if r.recovering || r.srtt != srtt {
			t.Error("more is lost, or the answer to one of two was timed")
		}
	})
	t.Run("once", func(t *testing.T) {
		r := fly(t, plain, large)
		r.tick()
		r.forget()
		r.tick()
		r.hears("PA 0:1460 ack 0") // the first, after the timeout
		if r.tail != 0 {
			t.Error("a second time, before an answer")
		}
	})
	t.Run("not after the timeout", func(t *testing.T) {
		r := fly(t, plain)
		r.srtt = time.Second
		r.send(large)
		r.tick()
		if r.tail != 0 {
			t.Error("beside what goes ever more seldom")
		}
	})
	t.Run("and what was lost twice", func(t *testing.T) {
		r := fly(t, plain, large, large)
		r.tells(0, 1460, 2920, 4000, 6000)
		r.hears("PA 0:1460 ack 0", "PA 2920:4000 ack 0")
		r.at += 5 * time.Millisecond
		r.tells(2920, 4000, 6000)
		r.hears("PA 6000:8000 ack 0")
		if r.after() != usual {
			t.Fatalf("due after %v, want %v", r.after(), usual)
		}
		r.tick()
		r.hears("PA 2920:4000 ack 0", "PA 6000:8000 ack 0")
		if r.after() != minRTO+took {
			t.Errorf("then due after %v", r.after())
		}
	})
	t.Run("once for each answer", func(t *testing.T) {
		r := fly(t, plain, large)
		r.tick()
		r.send(large)
		if r.tail != 0 {
			t.Error("a second time, before an answer")
		}
		r.tells(1460)
		if r.after() != usual {
			t.Errorf("due after %v", r.after())
		}
	})
	t.Run("after the last that was sent", func(t *testing.T) {
		r := fly(t, plain, "x")
		if r.after() != usual+delayedACK {
			t.Errorf("a segment that is alone is due after %v", r.after())
		}
		r.at += 5 * time.Millisecond
		r.Tell(r.at)
		r.send(large)
		if r.after() != usual {
			t.Errorf("due after %v", r.after())
		}
	})
	t.Run("though it is alone", func(t *testing.T) {
		for size, want := range map[int]time.Duration{1460: usual + delayedACK, 1461: usual} {
			r := fly(t, plain, strings.Repeat("x", size))
			if r.after() != want {
				t.Errorf("%d bytes are due after %v, want %v", size, r.after(), want)
			}
			r.tick()
			if len(r.said) != 1 || !r.tailed {
				t.Errorf("said %v", r.said)
			}
		}
	})
	t.Run("the end with it, or alone", func(t *testing.T) {
		r := fly(t, plain, "abc")
		r.CloseWrite()
		r.forget()
		r.tick()
		r.hears("FPA 0:3 ack 0 abc")
		r.tells(3)
		r.tick()
		r.hears("FA 3 ack 0")
	})
	for name, r := range map[string]*rig{
		"not to who would not tell of it":    fly(t, plain[:sizeMSS], strings.Repeat("x", 530), large),
		"not where nobody knows what is due": func() *rig { r := accepted(t); r.send(large); return r }(),
	} {
		t.Run(name, func(t *testing.T) {
			if r.tail != 0 || r.after() < minRTO {
				t.Errorf("due after %v", r.after())
			}
		})
	}
	t.Run("not of a connection that is closed", func(t *testing.T) {
		r := fly(t, plain, large)
		r.Drop()
		if r.Due() != 0 {
			t.Error("something is waited for")
		}
	})
}
