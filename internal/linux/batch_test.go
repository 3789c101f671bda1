package linux

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// bindUDP binds a datagram socket for the length of the test.
func bindUDP(t *testing.T, address string) (fd int, at netip.AddrPort) {
	t.Helper()
	at = netip.MustParseAddrPort(address)
	fd = newSocket(t, familyOf(at), unix.SOCK_DGRAM)
	if err := BindUDP(fd, at); err != nil {
		t.Fatal(err)
	}
	number, err := LocalPort(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, netip.AddrPortFrom(at.Addr(), uint16(number))
}

// receive waits for datagrams.
func receive(t *testing.T, b *Batch, fd int) int {
	t.Helper()
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); err != nil {
		t.Fatal(err)
	}
	n, err := b.Receive(fd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBatchAnswersFromTheAddressThatWasAsked(t *testing.T) {
	for _, tt := range []struct{ name, server, asked string }{
		{"IPv4 on every address", "0.0.0.0:0", "127.0.0.77"},
		{"IPv6 on every address", "[::]:0", "::1"},
		{"IPv4 on one address", "127.0.0.5:0", "127.0.0.5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, bound := bindUDP(t, tt.server)
			asked := netip.MustParseAddr(tt.asked)
			local := "127.0.0.1:0"
			if asked.Is6() {
				local = "[::1]:0"
			}
			client, clientAt := bindUDP(t, local)
			if err := Connect(client, netip.AddrPortFrom(asked, bound.Port())); err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				if _, err := unix.Write(client, fmt.Appendf(nil, "%.*s", i, "ab")); err != nil { // the first is empty
					t.Fatal(err)
				}
			}
			b := NewBatch(4, 1<<16)
			if n := receive(t, b, server); n != 3 {
				t.Fatalf("%d datagrams, want 3", n)
			}
			arrival := b.Arrival(0)
			want := Arrival{Peer: Endpoint{Addr: clientAt.Addr(), Port: clientAt.Port()}}
			if bound.Addr().IsUnspecified() {
				want.Local.Addr = asked
			}
			if arrival != want || b.Arrival(2) != want {
				t.Fatalf("arrival %+v, want %+v", arrival, want)
			}
			if n, err := b.Answer(server, 0, 3, arrival); n != 3 || err != nil {
				t.Fatalf("answered %d, %v", n, err)
			}
			// The client is connected, and takes answers from the asked address alone.
			if n := receive(t, b, client); n != 3 || string(b.Data(0)) != "" || string(b.Data(2)) != "ab" {
				t.Fatalf("%d answers, the last is %q", n, b.Data(2))
			}
			if n, err := b.Send(client, 1, 3); n != 2 || err != nil {
				t.Fatalf("sent %d, %v", n, err)
			}
			if n := receive(t, b, server); n != 2 || string(b.Data(1)) != "ab" {
				t.Fatalf("%d datagrams, the last is %q", n, b.Data(1))
			}
		})
	}
}

// Runs of one size, their ends, and what is between them all come out as they
// went in.
func TestBatchKeepsDatagramsApart(t *testing.T) {
	sizes := []int{}
	for range 70 {
		sizes = append(sizes, 1200)
	}
	sizes = append(sizes, 900, 1200, 1200, 0, 8, 8, 8, 8, 8, 9, 3, 3, 3, 3, 60000, 60000, 60000, 60000, 1, 0, 0, 0, 0, 0)
	for _, ip := range []string{"127.0.0.1:0", "[::1]:0"} {
		from, fromAt := bindUDP(t, ip)
		middle, middleAt := bindUDP(t, ip)
		onward, _ := bindUDP(t, ip)
		end, endAt := bindUDP(t, ip)
		for _, c := range []struct {
			fd int
			to netip.AddrPort
		}{{from, middleAt}, {onward, endAt}} {
			if err := Connect(c.fd, c.to); err != nil {
				t.Fatal(err)
			}
			if err := SetBuffers(c.fd, 1<<20); err != nil {
				t.Fatal(err)
			}
		}
		for _, fd := range []int{middle, end} {
			if err := SetBuffers(fd, 1<<20); err != nil {
				t.Fatal(err)
			}
		}
		relay := NewBatch(32, 1<<16)
		buf := make([]byte, 1<<16)
		next := 0 // of the sizes to arrive
		check := func(fd int) {
			t.Helper()
			n, err := unix.Read(fd, buf)
			if err != nil || n != sizes[next] || n > 0 && (buf[0] != byte(next) || buf[n-1] != byte(next)) {
				t.Fatalf("%s, datagram %d: %d bytes of %v, %v, want %d", ip, next, n, buf[:min(n, 1)], err, sizes[next])
			}
			next++
		}
		for first := 0; first < len(sizes); { // as many at once as the queues hold
			last := min(first+20, len(sizes))
			for i := first; i < last; i++ {
				if _, err := unix.Write(from, bytes.Repeat([]byte{byte(i)}, sizes[i])); err != nil {
					t.Fatal(err)
				}
			}
			for first < last {
				n := receive(t, relay, middle)
				if sent, err := relay.Send(onward, 0, n); sent != n || err != nil {
					t.Fatalf("%s: %d of %d sent, %v", ip, sent, n, err)
				}
				for range n {
					check(end)
				}
				// And back to where they came from, from the address they were sent to.
				arrival := Arrival{Peer: Endpoint{Addr: fromAt.Addr(), Port: fromAt.Port()}, Local: Endpoint{Addr: middleAt.Addr()}}
				if sent, err := relay.Answer(middle, 0, n, arrival); sent != n || err != nil {
					t.Fatalf("%s: %d of %d answered, %v", ip, sent, n, err)
				}
				next -= n
				for range n {
					check(from)
				}
				first += n
			}
		}
	}
}

// A run that the kernel hands over as one message is told of as the datagrams that
// it is, each from where it came, and goes on as such, and back.
func TestJoinedRunsAreTheirDatagrams(t *testing.T) {
	const size = 1200
	for _, tt := range []struct{ server, asked string }{{"0.0.0.0:0", "127.0.0.77"}, {"[::]:0", "::1"}} {
		server, bound := bindUDP(t, tt.server)
		asked := netip.AddrPortFrom(netip.MustParseAddr(tt.asked), bound.Port())
		local := "127.0.0.1:0"
		if asked.Addr().Is6() {
			local = "[::1]:0"
		}
		client, clientAt := bindUDP(t, local)
		onward, _ := bindUDP(t, local)
		end, endAt := bindUDP(t, local)
		for _, err := range []error{
			JoinDatagrams(server), Connect(client, asked), Connect(onward, endAt),
			unix.SetsockoptInt(client, unix.SOL_UDP, unix.UDP_SEGMENT, size),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		var sent []byte
		var sizes []int
		for i := range 3 {
			run := make([]byte, 0, 20*size)
			for j := range 19 {
				run = append(run, bytes.Repeat([]byte{byte(19*i + j)}, size)...)
			}
			run = append(run, make([]byte, 100*i)...) // whose last is smaller, if there
			for left := len(run); left > 0; left -= size {
				sizes = append(sizes, min(left, size))
			}
			if _, err := unix.Write(client, run); err != nil {
				t.Fatal(err)
			}
			sent = append(sent, run...)
		}
		b := NewBatch(4, 1<<16)
		if n := receive(t, b, server); n != len(sizes) {
			t.Fatalf("%s: %d datagrams in three messages, want %d", tt.server, n, len(sizes))
		}
		want := Arrival{
			Peer:  Endpoint{Addr: clientAt.Addr(), Port: clientAt.Port()},
			Local: Endpoint{Addr: asked.Addr()},
		}
		for i := range sizes {
			if got := b.Arrival(i); got != want || len(b.Data(i)) != sizes[i] {
				t.Fatalf("%s: datagram %d has %d bytes and arrival %+v, want %d and %+v", tt.server, i, len(b.Data(i)), got, sizes[i], want)
			}
		}
		arrived := func(fd int) {
			t.Helper()
			var got []byte
			buf := make([]byte, 1<<16)
			for i, size := range sizes {
				n, err := unix.Read(fd, buf)
				if err != nil || n != size {
					t.Fatalf("%s: datagram %d has %d bytes, %v, want %d", tt.server, i, n, err, size)
				}
				got = append(got, buf[:n]...)
			}
			if !bytes.Equal(got, sent) {
				t.Errorf("%s: other bytes than were sent", tt.server)
			}
		}
		// Some of a message, and a single one.
		for first := 0; first < len(sizes); {
			last := min(first+7, len(sizes))
			if n, err := b.Send(onward, first, last); n != last-first || err != nil {
				t.Fatalf("%s: sent %d of %d, %v", tt.server, n, last-first, err)
			}
			first = last
		}
		arrived(end)
		if n, err := b.Answer(server, 0, len(sizes), want); n != len(sizes) || err != nil {
			t.Fatalf("%s: answered %d of %d, %v", tt.server, n, len(sizes), err)
		}
		arrived(client)
	}
}

func TestRunsAreOfOneSize(t *testing.T) {
	for _, tt := range []struct {
		sizes []int
		want  int
	}{
		{[]int{5}, 1},
		{[]int{5, 5, 5}, 3},
		{[]int{5, 5, 4, 4}, 3},
		{[]int{5, 5, 6}, 2},
		{[]int{5, 5, 0, 5}, 2},
		{[]int{0, 5}, 0},
		{[]int{30000, 30000, 30000}, 2},
	} {
		b := NewBatch(len(tt.sizes), 1)
		for _, size := range tt.sizes {
			b.datagrams = append(b.datagrams, datagram{length: size})
		}
		if got := b.run(0, len(tt.sizes)); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.sizes, got, tt.want)
		}
	}
}

func TestEndpointsSurviveTheirSockaddr(t *testing.T) {
	for _, e := range []Endpoint{
		{Addr: netip.MustParseAddr("198.51.100.7"), Port: 65535},
		{Addr: netip.MustParseAddr("2001:db8::7"), Port: 1},
		{Addr: netip.MustParseAddr("fe80::7"), Port: 53, Scope: 9},
	} {
		var raw sockaddr
		encodeEndpoint(&raw, e)
		if got := decodeEndpoint(&raw); got != e {
			t.Errorf("got %+v, want %+v", got, e)
		}
	}
}
