package tcp

import (
	"strings"
	"testing"
	"time"
)

// FuzzInput has a peer that says anything, while our side sends, takes and lets time
// pass. Four bytes are one act.
func FuzzInput(f *testing.F) {
	f.Add([]byte{}, uint16(1000))
	f.Add([]byte{0, 0, 0, 16, 1, 5, 0, 16, 9, 0, 0, 0, 8, 50, 0, 0}, uint16(1000))
	f.Add([]byte{1, 100, 50, 16, 1, 100, 20, 17, 1, 100, 0, 16, 9, 0, 0, 0}, uint16(65535))
	f.Add([]byte{8, 255, 0, 0, 11, 0, 0, 0, 11, 0, 0, 0, 0, 0, 255, 16, 10, 0, 0, 0}, uint16(1))
	f.Add([]byte{2, 0, 1, 16, 8, 9, 0, 0, 12, 0, 0, 0, 2, 0, 10, 17}, uint16(100))
	f.Add([]byte{0, 0, 0, 4, 0, 1, 0, 2, 0, 0, 0, 20}, uint16(500))
	f.Add([]byte{13, 0, 0, 0, 0, 0, 1, 17, 10, 0, 0, 0, 0, 1, 2, 16}, uint16(5000))
	f.Fuzz(func(t *testing.T, acts []byte, window uint16) {
		r := accepted(t, func(o *Options) { o.Window = max(1, int(window)) })
		e := &end{}
		told := Events(0)
		for ; len(acts) >= 4; acts = acts[4:] {
			events := r.act(acts[0], acts[1], acts[2], acts[3])
			if events&Gone != 0 {
				if told&Gone != 0 {
					t.Fatalf("%08b is told after %08b", events, told)
				}
				told |= events
			}
			e.Conn = r.Conn
			e.check(t)
			r.forget()
		}
		r.Drop()
		r.Release()
		if footprint(&r.Conn) != 0 || r.come.size != 0 {
			t.Error("something is kept")
		}
	})
}

// act does one of all that may happen.
func (r *rig) act(what, x, y, z byte) Events {
	switch what % 16 {
	case 0, 1, 2, 3, 4, 5: // a segment, near what is expected
		seq := int(int32(r.next-peers)) + int(int8(x))*(1+int(what%3)*100)
		ack := int(int32(r.nxt-ours)) - int(y)%32
		return r.window(z&0x1f|ACK, seq, ack, uint16(y)*uint16(what%6), strings.Repeat("x", int(y)*int(1+what%4)))
	case 6: // any at all
		return r.window(z, int(x)<<24, int(y)<<24, uint16(z), strings.Repeat("y", int(z)))
	case 7: // SACK
		from := int(r.una-ours) + int(int8(x))
		return r.tells(int(r.una-ours)+int(y%4), from, from+int(int8(y)), from+int(z), from+2*int(z))
	case 8:
		r.Tell(r.at)
		for r.send(strings.Repeat("z", 1+int(x)*10)) > 0 && y > 0 {
			y--
		}
	case 9:
		var events Events
		for n := 1 + int(x); len(r.Peek()) > 0 && n > 0; {
			k := min(n, len(r.Peek()))
			events |= r.Discard(k)
			n -= k
		}
		return events
	case 10:
		r.CloseWrite()
	case 11:
		if due := r.Due(); due != 0 {
			r.at = max(r.at, due)
		}
		return r.Tick(r.at)
	case 12:
		r.at += time.Duration(x) * time.Millisecond
		return r.Tick(r.at)
	case 13:
		r.Orphan()
	case 14:
		r.TooBig(r.una+uint32(x), 68+int(y)*6)
	case 15:
		r.settleACK()
	}
	return 0
}
