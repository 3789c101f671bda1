package builtin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestUDPReachesTheServiceInEveryFamily(t *testing.T) {
	d := start(t, Options{})
	for _, tt := range []struct{ name, proto, parent, service string }{
		{"udp from IPv4 to IPv4", "udp", "127.0.0.1", "127.0.0.1:0"},
		{"udp from IPv6 to IPv6", "udp", "::1", "[::1]:0"},
		{"udp4 from IPv4 to IPv6", "udp4", "127.0.0.1", "[::1]:0"},
		{"udp6 from IPv6 to IPv4", "udp6", "::1", "127.0.0.1:0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			service, _ := serveUDP(t, tt.service, same)
			c := dialUDP(t, forwardTo(t, d, tt.proto, tt.parent, service))
			exchangeUDP(t, c, []byte("hello"))
		})
	}
}

func TestUDPCarriesDatagramsOfEverySize(t *testing.T) {
	d := start(t, Options{})
	for _, ip := range []string{"127.0.0.1", "::1"} {
		service, _ := serveUDP(t, at(ip, 0), same)
		c := dialUDP(t, forwardTo(t, d, "udp", ip, service))
		for _, size := range []int{0, 1, 1472, 9000, 65507} {
			t.Run(fmt.Sprintf("%d bytes to %s", size, ip), func(t *testing.T) {
				exchangeUDP(t, c, bytes.Repeat([]byte{byte(size)}, size))
			})
		}
	}
}

// A client that sends runs (UDP_SEGMENT in udp(7)) has each datagram of them answered.
func TestUDPCarriesRunsAsDatagrams(t *testing.T) {
	d := start(t, Options{})
	for _, ip := range []string{"127.0.0.1", "::1"} {
		service, _ := serveUDP(t, at(ip, 0), same)
		c := dialUDP(t, forwardTo(t, d, "udp", ip, service))
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		const size, count = 1000, maxPending // a flow keeps no more while it opens
		var failed error
		err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
		if err := errors.Join(err, failed); err != nil {
			t.Fatal(err)
		}
		var run []byte
		for i := range count {
			run = append(run, bytes.Repeat([]byte{byte(i)}, size)...)
		}
		run = run[:len(run)-1]
		if _, err := c.Write(run); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for range count {
			b := make([]byte, 1<<16)
			n, err := c.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			if want := min(size, len(run)-len(got)); n != want {
				t.Errorf("to %s, an answer of %d bytes, want %d", ip, n, want)
			}
			got = append(got, b[:n]...)
		}
		if !bytes.Equal(got, run) {
			t.Errorf("to %s, other bytes come back than were sent", ip)
		}
	}
}

// TestUDPAnswersFromTheAddressThatWasAsked uses a connected socket, which takes
// answers from that address alone, on an address that routing would not choose.
func TestUDPAnswersFromTheAddressThatWasAsked(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveUDP(t, "127.0.0.1:0", same)
	status := add(t, d, fmt.Sprintf("0:%d/udp", service.(*net.UDPAddr).Port))[0]
	for _, ip := range []string{"127.0.0.1", "127.0.0.77", "::1"} {
		t.Run(ip, func(t *testing.T) {
			exchangeUDP(t, dialUDP(t, at(ip, status.Spec.ParentPort)), []byte(ip))
		})
	}
}

func TestUDPKeepsClientsApart(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveUDP(t, "127.0.0.1:0", same)
	address := forwardTo(t, d, "udp", "127.0.0.1", service)
	clients := []*net.UDPConn{dialUDP(t, address), dialUDP(t, address), dialUDP(t, address)}
	for round := range 3 {
		for i, c := range clients {
			exchangeUDP(t, c, fmt.Appendf(nil, "client %d, round %d", i, round))
		}
	}
	if got := d.Counters().Flows; got != 3 {
		t.Errorf("%d flows, want 3", got)
	}
}

func TestUDPServiceMayComeLateAndGo(t *testing.T) {
	d := start(t, Options{})
	for _, proto := range []string{"udp", "udp4"} {
		t.Run(proto, func(t *testing.T) {
			reserved, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			service := reserved.LocalAddr().String()
			reserved.Close()
			status := add(t, d, fmt.Sprintf("127.0.0.1:0:%d/%s", mustAddrPort(t, service).Port(), proto))[0]
			c := dialUDP(t, at("127.0.0.1", status.Spec.ParentPort))
			for range 2 {
				if _, err := c.Write([]byte("nobody is there")); err != nil {
					t.Fatal(err)
				}
				_, stop := serveUDP(t, service, same)
				exchangeUDP(t, c, []byte("hello"))
				stop()
			}
		})
	}
}

func TestUDPFallsBackToTheOtherFamily(t *testing.T) {
	for _, tt := range []struct{ name, service, client string }{
		{"an IPv6 client reaches an IPv4 service", "127.0.0.1:0", "::1"},
		{"an IPv4 client reaches an IPv6 service", "[::1]:0", "127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := start(t, Options{})
			service, _ := serveUDP(t, tt.service, same)
			status := add(t, d, fmt.Sprintf("0:%d/udp", service.(*net.UDPAddr).Port))[0]
			exchangeUDP(t, dialUDP(t, at(tt.client, status.Spec.ParentPort)), []byte("hello"))
		})
	}
}

func TestUDPFlowsMakeRoomForNewOnes(t *testing.T) {
	t.Run("of their forward", func(t *testing.T) {
		d := start(t, Options{MaxFlowsPerForward: 2})
		service, _ := serveUDP(t, "127.0.0.1:0", same)
		address := forwardTo(t, d, "udp", "127.0.0.1", service)
		other := dialUDP(t, forwardTo(t, d, "udp", "127.0.0.1", service))
		exchangeUDP(t, other, []byte("other"))
		for i := range 5 {
			exchangeUDP(t, dialUDP(t, address), fmt.Appendf(nil, "%d", i))
		}
		if c := d.Counters(); c.Flows != 3 || c.FlowsEvicted != 3 {
			t.Errorf("%d flows, %d evicted, want 3 and 3", c.Flows, c.FlowsEvicted)
		}
	})
	t.Run("of all", func(t *testing.T) {
		d := start(t, Options{MaxFlows: 2})
		service, _ := serveUDP(t, "127.0.0.1:0", same)
		lasting := dialUDP(t, forwardTo(t, d, "udp", "127.0.0.1", service))
		exchangeUDP(t, lasting, []byte("one"))
		exchangeUDP(t, lasting, []byte("two"))
		for i := range 5 {
			exchangeUDP(t, dialUDP(t, forwardTo(t, d, "udp", "127.0.0.1", service)), fmt.Appendf(nil, "%d", i))
		}
		if c := d.Counters(); c.Flows != 2 || c.FlowsEvicted != 4 {
			t.Errorf("%d flows, %d evicted, want 2 and 4: the lasting one stays", c.Flows, c.FlowsEvicted)
		}
	})
}

func TestUDPFlowsEndWhenSilent(t *testing.T) {
	d := start(t, Options{FlowTimeout: 40 * time.Millisecond})
	service, _ := serveUDP(t, "127.0.0.1:0", same)
	c := dialUDP(t, forwardTo(t, d, "udp", "127.0.0.1", service))
	for range 2 {
		exchangeUDP(t, c, []byte("brief"))
		exchangeUDP(t, c, []byte("lasting"))
		testenv.Until(t, "the flow to end", func() bool { return d.Counters().Flows == 0 })
	}
	if !d.udp.loop.do(func() {
		if d.udp.batch != nil {
			t.Error("the batch is still there without flows")
		}
	}) {
		t.Error("the loop has ended")
	}
}

func TestUDPDatagramsWaitForASocket(t *testing.T) {
	sockets := &home{gate: make(chan struct{})}
	d := start(t, Options{Sockets: sockets})
	service, _ := serveUDP(t, "127.0.0.1:0", same)
	c := dialUDP(t, forwardTo(t, d, "udp", "127.0.0.1", service))
	for i := range 3 {
		fmt.Fprintf(c, "%d", i)
	}
	testenv.Until(t, "the flow", func() bool { return d.Counters().Flows == 1 })
	close(sockets.gate)
	_ = c.SetReadDeadline(time.Now().Add(testenv.Patience))
	buf := make([]byte, 8)
	for i := range 3 {
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != fmt.Sprint(i) {
			t.Fatalf("got %q, %v, want %d", buf[:n], err, i)
		}
	}
}

func TestUDPWithoutSocketsDropsAndRecovers(t *testing.T) {
	sockets := &home{}
	failure := errors.New("the child is out of memory")
	sockets.fail.Store(&failure)
	d := start(t, Options{Sockets: sockets})
	service, _ := serveUDP(t, "127.0.0.1:0", same)
	c := dialUDP(t, forwardTo(t, d, "udp", "127.0.0.1", service))
	fmt.Fprint(c, "lost")
	testenv.Until(t, "the datagram to be dropped", func() bool { return d.Counters().Dropped > 0 })
	sockets.fail.Store(nil)
	exchangeUDP(t, c, []byte("hello"))
}

func TestRemoveUDP(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveUDP(t, "127.0.0.1:0", same)
	address := forwardTo(t, d, "udp", "127.0.0.1", service)
	c := dialUDP(t, address)
	exchangeUDP(t, c, []byte("hello"))
	if err := d.Remove(t.Context(), []int{1}, 0); err != nil {
		t.Fatal(err)
	}
	if got := d.Counters().Flows; got != 0 {
		t.Errorf("%d flows are left", got)
	}
	// The address is free at once.
	again, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// TestUDPSteadyStateAllocatesNothing counts the allocations of the loop's work
// for one datagram each way.
func TestUDPSteadyStateAllocatesNothing(t *testing.T) {
	d := New(Options{Sockets: &home{}})
	defer d.cancel()
	x, err := newExchange(d)
	if err != nil {
		t.Fatal(err)
	}
	defer x.loop.close()
	forwards, err := binder{t.Context(), d.opts.Sockets, nil, d.keepAlive}.bindAll(specs(t, "127.0.0.1:0:1/udp4"), nil)
	if err != nil {
		t.Fatal(err)
	}
	service, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	forwards[0].status.Spec.ChildPort = service.LocalAddr().(*net.UDPAddr).Port
	s := forwards[0].sockets[0]
	x.sockets[s] = struct{}{}
	defer x.closeSocket(s)
	defer func() { d.cancel(); d.wg.Wait(); d.pool.close() }()
	file, err := d.pool.take(context.Background(), kindFor(false, unix.SOCK_DGRAM))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()

	c := dialUDP(t, at("127.0.0.1", forwards[0].status.Spec.ParentPort))
	buf := make([]byte, 16)
	var from netip.AddrPort
	ping := func() {
		if _, err := c.Write(buf[:1]); err != nil {
			t.Fatal(err)
		}
		x.fromClients(s)
		if _, from, err = service.(*net.UDPConn).ReadFromUDPAddrPort(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := service.(*net.UDPConn).WriteToUDPAddrPort(buf[:1], from); err != nil {
			t.Fatal(err)
		}
		for _, f := range s.flows {
			x.fromService(f)
		}
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	ping() // makes the flow
	if n := testing.AllocsPerRun(100, ping); n != 0 {
		t.Errorf("%v allocations for a datagram each way", n)
	}
}

func mustAddrPort(t *testing.T, text string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A forward on 127.0.0.2 may lead to a service there, or on either loopback.
func TestForwardsOnALoopbackAddressOfTheirOwn(t *testing.T) {
	for _, service := range []string{"127.0.0.2", "127.0.0.1", "::1"} {
		t.Run("service on "+service, func(t *testing.T) {
			d := start(t, Options{})
			stream, _ := serveTCP(t, at(service, 0), echo)
			datagrams, _ := serveUDP(t, at(service, 0), same)
			statuses := add(t, d,
				fmt.Sprintf("127.0.0.2:0:%d/tcp", stream.(*net.TCPAddr).Port),
				fmt.Sprintf("127.0.0.2:0:%d/udp", datagrams.(*net.UDPAddr).Port))
			roundTrip(t, dialTCP(t, at("127.0.0.2", statuses[0].Spec.ParentPort)), "hello")
			exchangeUDP(t, dialUDP(t, at("127.0.0.2", statuses[1].Spec.ParentPort)), []byte("hello"))
		})
	}
}
