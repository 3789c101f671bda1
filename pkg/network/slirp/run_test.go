package slirp

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// Datagrams that go as one arrive as they were sent: each in its size, in order,
// and where it was sent to.
func TestUDPDatagramsOfARunStayApart(t *testing.T) {
	type sent struct {
		to, size int
		ttl      uint8
	}
	repeat := func(n int, s sent) []sent { return slices.Repeat([]sent{s}, n) }
	for _, test := range []struct {
		name     string
		sent     []sent
		gathered int // bytes that wait in the end
	}{
		{"of one size", repeat(10, sent{size: 100, ttl: 64}), 1000},
		{"with a smaller one at the end", append(repeat(3, sent{size: 100, ttl: 64}), sent{size: 7, ttl: 64}), 307},
		{"with a larger one", append(repeat(3, sent{size: 100, ttl: 64}), sent{size: 101, ttl: 64}), 101},
		{"after a smaller one", append(repeat(2, sent{size: 100, ttl: 64}), sent{size: 7, ttl: 64}, sent{size: 7, ttl: 64}), 7},
		{"with an empty one", append(repeat(2, sent{size: 100, ttl: 64}), sent{size: 0, ttl: 64}, sent{size: 100, ttl: 64}), 100},
		{"to two", []sent{{0, 100, 64}, {1, 100, 64}, {0, 100, 64}, {1, 100, 64}}, 100},
		{"with two times to live", []sent{{0, 100, 64}, {0, 100, 63}, {0, 100, 64}}, 100},
		{"more than go as one", repeat(2*maxRun+3, sent{size: 10, ttl: 64}), 30},
		{"larger than go as one", repeat(8, sent{size: 20000, ttl: 64}), 40000},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, rigOptions{Options: all, bare: true})
			var servers [2]netip.AddrPort
			var got [2]chan []byte
			for i := range servers {
				got[i] = make(chan []byte, len(test.sent))
				servers[i] = listenUDP(t, "127.0.0.1:0", func(_ *net.UDPConn, msg []byte, _ netip.AddrPort) { got[i] <- bytes.Clone(msg) })
			}
			// No frame comes, so the run is the test's.
			u := r.e.udp
			var want [2][][]byte
			for i, s := range test.sent {
				payload := bytes.Repeat([]byte{byte(i)}, s.size)
				want[s.to] = append(want[s.to], payload)
				d := datagram{src: netip.AddrPortFrom(childIPv4, 4000), dst: r.gateway(servers[s.to]), mac: guestMAC, payload: payload, ttl: s.ttl}
				if !u.send(&d) {
					t.Fatal("refused")
				}
			}
			if n := len(u.run.buffer); n != test.gathered || u.run.session == nil {
				t.Errorf("%d bytes wait, want %d", n, test.gathered)
			}
			u.flush()
			for i := range want {
				for k, w := range want[i] {
					select {
					case g := <-got[i]:
						if !bytes.Equal(g, w) {
							t.Fatalf("datagram %d to %d: got %d bytes, want %d", k, i, len(g), len(w))
						}
					case <-time.After(patience):
						t.Fatalf("datagram %d to %d has not come", k, i)
					}
				}
			}
		})
	}
}
