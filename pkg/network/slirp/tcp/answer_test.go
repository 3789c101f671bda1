package tcp

import (
	"strings"
	"testing"
	"time"
)

func TestSegmentsOutsideOfTheWindowAreAnswered(t *testing.T) {
	const window = 1000
	for name, c := range map[string]struct {
		flags   uint8
		seq     int
		payload string
		answer  bool
		events  Events
	}{
		"old bytes":                {ACK, 0, "abc", true, 0},
		"an old acknowledgement":   {ACK, 1, "", true, 0},
		"a probe":                  {ACK, 2, "", true, Probed},
		"a probe with a byte":      {ACK, 2, "c", true, Probed},
		"the end of an old stream": {ACK | FIN, 2, "", true, 0},
		"two old bytes":            {ACK, 1, "bc", true, 0},
		"the next":                 {ACK, 3, "", false, 0},
		"just behind the window":   {ACK, 3 + window, "", false, 0},
		"bytes behind the window":  {ACK, 3 + window, "x", true, 0},
		"an end behind the window": {ACK | FIN, 4 + window, "", true, 0},
		"far behind it":            {ACK, 4 + window, "", true, 0},
		"2 GiB away":               {ACK, 3 - 1<<31, "x", true, 0},
		"no acknowledgement":       {PSH, 3, "def", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t, func(o *Options) { o.Window = window })
			r.in(ACK, 0, 0, "abc")
			r.take()
			r.settleACK()
			r.Discard(0)
			r.forget()
			r.edge = r.next + window
			r.expect(r.in(c.flags, c.seq, 0, c.payload), c.events)
			if _, now := r.Owed(); now != c.answer {
				t.Errorf("an answer at once: %v, want %v", now, c.answer)
			}
			if got := r.take(); got != "" {
				t.Errorf("%q has come", got)
			}
		})
	}
}

func TestWhatThePeerSendsInVainIsAnsweredAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		flags   uint8
		seq     int
		size    int
		edge    int // of the window
		want    int // bytes that come
		atOnce  bool
		already uint8
	}{
		"the next":                       {ACK, 100, 10, 500, 10, false, 0},
		"a part of it again":             {ACK, 90, 20, 500, 10, true, 0},
		"all of it again, with its end":  {ACK | FIN, 90, 10, 500, 0, true, 0},
		"more than there is room for":    {ACK, 100, 11, 10, 10, true, 0},
		"a part again, and more":         {ACK, 50, 100, 10, 10, true, 0},
		"what fits":                      {ACK, 100, 10, 10, 10, false, 0},
		"bytes behind the end":           {ACK, 101, 10, 500, 0, true, FIN},
		"an end again":                   {ACK | FIN, 100, 0, 500, 0, true, FIN},
		"an end behind the end":          {ACK | FIN, 101, 0, 500, 0, true, FIN},
		"an acknowledgement alone":       {ACK, 100, 0, 500, 0, false, 0},
		"before its turn":                {ACK, 110, 10, 500, 0, true, 0},
		"before its turn, and too large": {ACK, 110, 10, 15, 0, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t)
			r.in(ACK|c.already, 0, 0, strings.Repeat("x", 100))
			r.take()
			r.settleACK()
			r.edge = r.next + uint32(c.edge)
			r.in(c.flags, c.seq, 0, strings.Repeat("y", c.size))
			if _, now := r.Owed(); now != c.atOnce || r.come.size != c.want {
				t.Errorf("%d bytes have come, answered at once %v; want %d, %v", r.come.size, now, c.want, c.atOnce)
			}
		})
	}
}

// Two ends that have lost each other do not answer each other for ever.
func TestWhatCannotBeRightIsAnsweredSeldom(t *testing.T) {
	for name, c := range map[string]struct {
		in     func(r *rig)
		always bool
	}{
		"an acknowledgement from elsewhere":  {func(r *rig) { r.in(ACK, -5, 0, "") }, false},
		"one of what was never sent":         {func(r *rig) { r.in(ACK, 3, 7, "") }, false},
		"one of long ago":                    {func(r *rig) { r.in(ACK, 3, -maxFlight-1, "") }, false},
		"a SYN":                              {func(r *rig) { r.in(SYN, 3, 0, "") }, false},
		"a reset that does not know":         {func(r *rig) { r.in(RST, 5, 0, "") }, false},
		"bytes that came already":            {func(r *rig) { r.in(ACK, 0, 0, "abc") }, true},
		"bytes that came already, as an end": {func(r *rig) { r.in(FIN|ACK, 0, 0, "a") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := accepted(t)
			r.in(ACK, 0, 0, "abc")
			r.settleACK()
			for _, s := range []struct {
				after time.Duration
				want  bool
			}{{0, true}, {0, false}, {challengeInterval - 1, false}, {1, true}, {1, false}} {
				r.at += s.after
				r.forget()
				c.in(r)
				if r.settleACK(); (len(r.said) == 1) != (s.want || c.always) {
					t.Errorf("%v later answered %d times", s.after, len(r.said))
				}
			}
			if r.IsClosed() || r.take() != "abc" {
				t.Error("not as it was")
			}
		})
	}
}

// What an acknowledgement of long ago comes with is not taken (RFC 5961, 5).
func TestBytesWithAnAcknowledgementOfLongAgo(t *testing.T) {
	for ack, want := range map[int]string{0: "abc", -1: "abc", -maxFlight: "abc", -maxFlight - 1: "", 1<<31 - 1: ""} {
		r := accepted(t)
		r.in(ACK, 0, ack, "abc")
		if got := r.take(); got != want {
			t.Errorf("with an acknowledgement of %d came %q, want %q", ack, got, want)
		}
	}
}
