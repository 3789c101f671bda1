package builtin

import (
	"cmp"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/flows"
)

// expectListed waits until the flows are these, but for their times, TCP first.
func expectListed(t *testing.T, d *Driver, when string, want ...flows.Flow) {
	t.Helper()
	var got []flows.Flow
	if !testenv.Eventually(testenv.Patience, func() bool {
		got = d.Flows()
		for i, f := range got {
			if f.Since.IsZero() {
				t.Errorf("%s: a flow has no time: %+v", when, f)
			}
			got[i].Since, got[i].Used = time.Time{}, time.Time{}
		}
		slices.SortFunc(got, func(a, b flows.Flow) int { return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.Forward-b.Forward) })
		return slices.Equal(got, want)
	}) {
		t.Errorf("%s: the flows are\n%+v\nwant\n%+v", when, got, want)
	}
}

func addrPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

func TestTheFlowsOfForwardsAreListed(t *testing.T) {
	d := start(t, Options{})
	stream, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 5))
		_, _ = c.Write([]byte("12345678"))
		_, _ = io.Copy(io.Discard, c)
	})
	datagrams, _ := serveUDP(t, "127.0.0.1:0", same)
	tcp, udp := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", stream)), dialUDP(t, forwardTo(t, d, "udp", "127.0.0.1", datagrams))
	exchangeUDP(t, udp, []byte("hello"))
	if _, err := tcp.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(tcp, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	first := flows.Flow{
		Proto: "tcp", Direction: flows.Forward, State: flows.Open, Forward: 1,
		Child: addrPort(stream), Remote: addrPort(tcp.LocalAddr()), In: 5, Out: 8, Counted: true,
	}
	second := flows.Flow{Proto: "udp", Direction: flows.Forward, State: flows.Open, Forward: 2, Child: addrPort(datagrams), Remote: addrPort(udp.LocalAddr())}
	expectListed(t, d, "with two", first, second)

	// A connection that goes on for a while is listed for that while.
	if err := d.Remove(t.Context(), []int{1, 2}, time.Hour); err != nil {
		t.Fatal(err)
	}
	expectListed(t, d, "while it drains", first)
	tcp.Close()
	expectListed(t, d, "at last")
	testenv.Until(t, "the end of the drain", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.waning) == 0
	})
}

func TestReverseFlowsAreListedFromTheOtherSide(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		inside := newAway(t)
		d := start(t, Options{Sockets: inside})
		serveTCP(t, "127.0.0.1:80", func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 5))
			_, _ = c.Write([]byte("12345678"))
			_, _ = io.Copy(io.Discard, c)
		})
		if _, err := d.Add(t.Context(), reversed(t, "127.0.0.1:80:127.0.0.1:81/tcp4")); err != nil {
			t.Fatal(err)
		}
		var c *net.TCPConn
		inside.do(func() { c = dialTCP(t, "127.0.0.1:81") })
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		expectListed(t, d, "with one", flows.Flow{
			Proto: "tcp", Direction: flows.Reverse, State: flows.Open, Forward: 1,
			Child: addrPort(c.LocalAddr()), Remote: netip.MustParseAddrPort("127.0.0.1:80"), In: 8, Out: 5, Counted: true,
		})
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFlowsThatWaitForTheServiceAreConnecting(t *testing.T) {
	h := &home{gate: make(chan struct{})}
	d := start(t, Options{Sockets: h})
	stream, _ := serveTCP(t, "127.0.0.1:0", echo)
	tcp := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", stream))
	want := flows.Flow{
		Proto: "tcp", Direction: flows.Forward, State: flows.Connecting, Forward: 1,
		Child: addrPort(stream), Remote: addrPort(tcp.LocalAddr()), Counted: true,
	}
	expectListed(t, d, "without a socket", want)
	close(h.gate)
	want.State = flows.Open
	expectListed(t, d, "with a socket", want)
}

func TestFlowsInTheirClientsNameAreListed(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		opener, client := &teller{}, newClientHost(t)
		t.Cleanup(opener.running.Wait)
		d := start(t, Options{Opener: opener})
		stream, _ := serveTCP(t, "127.0.0.1:0", echo)
		datagrams, _ := serveUDP(t, "127.0.0.1:0", same)
		address := forwardTo(t, d, "tcp", hostIPv4, stream)
		_, tcp := ask(t, client, "tcp", address)
		_, udp := ask(t, client, "udp", forwardTo(t, d, "udp", hostIPv4, datagrams))
		first := flows.Flow{
			Proto: "tcp", Direction: flows.Forward, State: flows.Open, Forward: 1, Kept: true,
			Child: addrPort(stream), Remote: addrPort(tcp.LocalAddr()),
		}
		second := first
		second.Proto, second.Forward, second.Child, second.Remote = "udp", 2, addrPort(datagrams), addrPort(udp.LocalAddr())
		expectListed(t, d, "with two", first, second)

		// One that cannot be kept is listed as it is.
		opener.set(false, unix.ECONNREFUSED)
		tcp.Close()
		var other *net.TCPConn
		client.do(func() { other = dialTCP(t, address) })
		roundTrip(t, other, "hello")
		first.Kept, first.Remote, first.In, first.Out, first.Counted = false, addrPort(other.LocalAddr()), 5, 5, true
		expectListed(t, d, "with one that is not kept", first, second)
	})
}
