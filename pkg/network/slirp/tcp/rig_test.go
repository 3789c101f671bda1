package tcp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Where the streams of a rig begin. Both wrap after 100 bytes.
const (
	ours  = uint32(1<<32 - 100)
	peers = uint32(1<<32 - 100)
)

// rig is a connection whose peer is the test. What it says is kept, and time stands
// still.
type rig struct {
	Conn
	t    testing.TB
	pool Pool
	at   time.Duration
	said []Header
	sent [][]byte // the payloads of said
}

// Transmit implements Wire.
func (r *rig) Transmit(h *Header, payload []byte) {
	r.said, r.sent = append(r.said, *h), append(r.sent, bytes.Clone(payload))
}

func newRig(t testing.TB) *rig { return &rig{t: t, at: time.Hour} }

func (r *rig) options(change []func(*Options)) Options {
	o := Options{Wire: r, Pool: &r.pool, MSS: 1460, Window: 1 << 20, KeepAlive: KeepAlive{Idle: 2 * time.Hour, Interval: 75 * time.Second, Count: 9}}
	for _, f := range change {
		f(&o)
	}
	return o
}

// synOptions are those of a SYN as Linux sends it.
var synOptions = []byte{optionMSS, sizeMSS, 1460 >> 8, 1460 & 0xff, optionSACKWell, sizeSACKWell, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, optionNone, optionScale, sizeScale, 7}

// plain has no scale, so that windows are what is written.
var plain = []byte{optionMSS, sizeMSS, 1460 >> 8, 1460 & 0xff, optionSACKWell, sizeSACKWell}

// accepted returns a connection that the peer has opened, with nothing on the way.
func accepted(t testing.TB, change ...func(*Options)) *rig {
	t.Helper()
	r := newRig(t)
	r.accept(plain, change...)
	r.expect(r.in(ACK, 0, 0, ""), Opened|Acknowledged)
	r.forget()
	return r
}

// accept answers a SYN with options.
func (r *rig) accept(options []byte, change ...func(*Options)) {
	r.Accept(r.options(change), &Segment{Seq: peers - 1, Flags: SYN, Window: 0xffff, Options: options}, r.at)
	r.una, r.nxt = ours-1, ours
	r.Answer(r.at)
}

// in has a segment come, with numbers that count from the beginnings of the streams, and
// nothing of it taken.
func (r *rig) in(flags uint8, seq, ack int, payload string) Events {
	return r.window(flags, seq, ack, 0xffff, payload)
}

// window is in with a window.
func (r *rig) window(flags uint8, seq, ack int, window uint16, payload string) Events {
	s := Segment{Seq: peers + uint32(seq), Ack: ours + uint32(ack), Flags: flags, Window: window, Payload: []byte(payload)}
	events := r.Input(&s, r.at)
	r.Settle(nil)
	copy(s.Payload, strings.Repeat("!", len(payload))) // which belongs to others now
	return events
}

// send sends what there is room for, and says how much that was.
func (r *rig) send(payload string) int {
	n := min(r.Room(), len(payload))
	if n == 0 {
		return 0
	}
	b := r.pool.Get(n)
	copy(b.Bytes(), payload)
	r.Send(b, false)
	return n
}

// take takes all that has come.
func (r *rig) take() string {
	var all []byte
	for p := r.Peek(); len(p) > 0; p = r.Peek() {
		all = append(all, p...)
		r.Discard(len(p))
	}
	return string(all)
}

// tick lets the time come that the connection waits for.
func (r *rig) tick() Events {
	r.t.Helper()
	due := r.Due()
	if due == 0 {
		r.t.Fatal("no time is waited for")
	}
	if due > r.at {
		r.at = due - 1
		if events := r.Tick(r.at); events != 0 || r.Due() != due {
			r.t.Fatalf("a tick before its time did %v", events)
		}
	}
	r.at = max(r.at, due)
	return r.Tick(r.at)
}

// after is when the connection is due, from now.
func (r *rig) after() time.Duration {
	if r.Due() == 0 {
		return 0
	}
	return r.Due() - r.at
}

// forget forgets what was said.
func (r *rig) forget() { r.said, r.sent = nil, nil }

// settleACK says what is owed.
func (r *rig) settleACK() {
	if soon, _ := r.Owed(); soon {
		r.Acknowledge()
	}
}

// expect compares events.
func (r *rig) expect(got, want Events) {
	r.t.Helper()
	if got != want {
		r.t.Errorf("events %08b, want %08b", got, want)
	}
}

// hears compares what was said since it was last asked for with what is to be, each as
// text has it.
func (r *rig) hears(want ...string) {
	r.t.Helper()
	r.settleACK()
	var got []string
	for i := range r.said {
		got = append(got, text(&r.said[i], r.sent[i]))
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("said\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	r.forget()
}

// text is a segment of ours: flags, numbers that count from the beginnings, and what it
// holds: "PA 0:5 ack 7 abcde". Of more than 20 bytes only their number is said. A block of
// SACK is "sack 7-9"; timestamps are "at 5 of 7", in milliseconds of the rig's time and of
// what the peer has told.
func text(h *Header, payload []byte) string {
	var b strings.Builder
	for i, name := range "FSRPA" {
		if h.Flags&(1<<i) != 0 {
			b.WriteRune(name)
		}
	}
	fmt.Fprintf(&b, " %d", int32(h.Seq-ours))
	if len(payload) > 0 {
		fmt.Fprintf(&b, ":%d", int32(h.Seq-ours)+int32(len(payload)))
	}
	if h.Flags&ACK != 0 {
		fmt.Fprintf(&b, " ack %d", int32(h.Ack-peers))
	}
	for p := h.options[:h.size]; h.Flags&SYN == 0 && len(p) > 0; {
		if p[0] == optionNone {
			p = p[1:]
			continue
		}
		if p[0] == optionStamps {
			fmt.Fprintf(&b, " at %d of %d", time.Duration(binary.BigEndian.Uint32(p[2:]))-time.Hour/time.Millisecond, binary.BigEndian.Uint32(p[6:]))
		}
		for at := 2; p[0] == optionSACK && at < int(p[1]); at += sizeOfSACKBlock {
			fmt.Fprintf(&b, " sack %d-%d", int32(binary.BigEndian.Uint32(p[at:])-peers), int32(binary.BigEndian.Uint32(p[at+4:])-peers))
		}
		p = p[p[1]:]
	}
	if len(payload) > 0 && len(payload) <= 20 {
		fmt.Fprintf(&b, " %s", payload)
	}
	return b.String()
}

// lastWindow is the window that was said last, as bytes.
func (r *rig) lastWindow() int {
	return int(r.said[len(r.said)-1].Window) << r.ownScale
}
