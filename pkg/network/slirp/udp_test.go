package slirp

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestUDPEchoesDatagramsOfAllSizes(t *testing.T) {
	eachFamily(t, func(t *testing.T, r *rig, local string) {
		c := r.dialUDP(r.gateway(listenUDP(t, local, echoUDP)))
		buf := make([]byte, maxFrame)
		for _, size := range []int{0, 1, 1400, 1452, 1453, 1472, 1473, 9001, 65507} {
			msg := bytes.Repeat([]byte{byte(size)}, size)
			if _, err := c.Write(msg); err != nil {
				t.Fatalf("send %d bytes: %v", size, err)
			}
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("echo of %d bytes: %v", size, err)
			}
			if !bytes.Equal(buf[:n], msg) {
				t.Fatalf("sent %d bytes, got %d that differ", size, n)
			}
		}
	})
}

func TestUDPEchoesAtTheLargestMTU(t *testing.T) {
	o := all
	o.MTU = MaxMTU
	r := newRig(t, rigOptions{Options: o})
	c := r.dialUDP(r.gateway(listenUDP(t, "127.0.0.1:0", echoUDP)))
	msg := bytes.Repeat([]byte{7}, 65507) // a fragment and a bit
	c.Write(msg)
	buf := make([]byte, maxFrame)
	if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], msg) {
		t.Fatalf("got %d bytes, %v", n, err)
	}
}

// The outside has to see one address and port for a socket of the namespace,
// whomever it talks to.
func TestUDPMappingDoesNotDependOnTheDestination(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	seen := make(chan netip.AddrPort, 2)
	record := func(c *net.UDPConn, msg []byte, from netip.AddrPort) {
		seen <- from
		c.WriteToUDPAddrPort(msg, from)
	}
	a, b := listenUDP(t, "127.0.0.1:0", record), listenUDP(t, "127.0.0.1:0", record)
	addr, proto := fullAddress(r.gateway(a))
	addr.Addr = toAddress(r.net.subnets[0].child)
	addr.Port = 4000
	c, err := gonet.DialUDP(r.guest, &addr, nil, proto)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	for _, to := range []netip.AddrPort{r.gateway(a), r.gateway(b)} {
		c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(to))
		_, from, err := c.ReadFrom(make([]byte, 10))
		if err != nil {
			t.Fatal(err)
		}
		if got := from.(*net.UDPAddr).AddrPort(); got.Port() != to.Port() {
			t.Errorf("answer from %v, want %v", got, to)
		}
	}
	if first, second := <-seen, <-seen; first != second {
		t.Errorf("the outside saw %v and %v", first, second)
	}
}

func TestUDPAnswersOfStrangersStayOutside(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	stranger, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	server := listenUDP(t, "127.0.0.1:0", func(c *net.UDPConn, msg []byte, from netip.AddrPort) {
		stranger.WriteTo([]byte("stranger"), net.UDPAddrFromAddrPort(from))
		c.WriteToUDPAddrPort(msg, from)
	})
	addr, proto := fullAddress(netip.AddrPortFrom(r.net.subnets[0].child, 4000))
	c, err := gonet.DialUDP(r.guest, &addr, nil, proto)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 20)
	for range 3 {
		c.WriteTo([]byte("friend"), net.UDPAddrFromAddrPort(r.gateway(server)))
		if n, _, err := c.ReadFrom(buf); err != nil || string(buf[:n]) != "friend" {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
	}
	testenv.Until(t, "the stranger's datagrams to be dropped", func() bool { return r.e.udp.dropped.Load() == 3 })
}

// A port without a listener answers with an ICMP error, which the namespace's
// socket learns of, and which must not end the flow: the listener may come later.
func TestUDPFlowSurvivesAPortThatIsClosed(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	c.Close()
	guest := r.dialUDP(r.gateway(at))
	testenv.Until(t, "the socket to be told that it is refused", func() bool {
		_, err := guest.Write([]byte("anybody?"))
		return err != nil && strings.Contains(err.Error(), "refused")
	})
	if n := len(flowsOf(r.e.udp)); n != 1 {
		t.Fatalf("%d flows, want 1", n)
	}
	listenUDP(t, at.String(), echoUDP)
	testenv.Until(t, "the socket to send again", func() bool {
		_, err := guest.Write([]byte("hello"))
		return err == nil
	})
	buf := make([]byte, 20)
	for {
		n, err := guest.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if string(buf[:n]) == "hello" {
			return // those before may have come late enough, too
		}
	}
}

// flowsOf copies the relay's flows.
func flowsOf(u *udpRelay) []flow {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []flow
	for _, f := range u.flows {
		out = append(out, *f)
	}
	return out
}

func TestUDPEvictsTheLeastRecentlyUsedFlow(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, tweak: func(e *engine) { e.udp.limit = 2 }})
	server := listenUDP(t, "127.0.0.1:0", echoUDP)
	exchange := func(c *gonet.UDPConn) {
		t.Helper()
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	a, b, c := r.dialUDP(r.gateway(server)), r.dialUDP(r.gateway(server)), r.dialUDP(r.gateway(server))
	exchange(a)
	exchange(b)
	exchange(a) // so b is the oldest
	exchange(c)
	ports := map[int]bool{}
	for _, f := range flowsOf(r.e.udp) {
		ports[int(f.key.guest.Port())] = true
	}
	port := func(c *gonet.UDPConn) int { return c.LocalAddr().(*net.UDPAddr).Port }
	if len(ports) != 2 || !ports[port(a)] || !ports[port(c)] {
		t.Errorf("flows of ports %v are left, want those of %d and %d", ports, port(a), port(c))
	}
	if n := r.e.counters().UDP.Evicted; n != 1 {
		t.Errorf("%d flows were evicted, want 1", n)
	}
	exchange(b) // comes back as a new one
}

func TestUDPFlowsExpire(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	c := r.dialUDP(r.gateway(listenUDP(t, "127.0.0.1:0", echoUDP)))
	c.Write([]byte("x"))
	c.Read(make([]byte, 1))
	u := r.e.udp
	age := func(d time.Duration) {
		u.mu.Lock()
		for _, f := range u.flows {
			f.used = time.Now().Add(-d)
		}
		u.mu.Unlock()
		u.expire()
	}
	age(longIdle - time.Minute)
	if n := len(flowsOf(u)); n != 1 {
		t.Fatalf("%d flows before the time, want 1", n)
	}
	age(longIdle + time.Second)
	if n := len(flowsOf(u)); n != 0 || len(u.sessions) != 0 || u.timer != nil {
		t.Errorf("%d flows, %d sessions, timer %v after the time, want none", n, len(u.sessions), u.timer)
	}
}

func TestUDPThatIsRefusedGetsAnICMPError(t *testing.T) {
	for _, test := range []struct {
		family, local string
		from          netip.Addr
		unreachable   func(frame []byte) bool
	}{
		{"IPv4", "127.0.0.1:0", childIPv4, isICMPv4(header.ICMPv4DstUnreachable)},
		{"IPv6", "[::1]:0", childIPv6, isICMPv6(header.ICMPv6DstUnreachable)},
	} {
		t.Run(test.family, func(t *testing.T) {
			r := newRig(t, rigOptions{bare: true})
			r.introduce()
			got := make(chan struct{}, 1)
			server := listenUDP(t, test.local, func(*net.UDPConn, []byte, netip.AddrPort) { got <- struct{}{} })
			frame := udpFrame(netip.AddrPortFrom(test.from, 4000), r.gateway(server), "x")
			r.send(frame, vnetHeader{flags: vnetNeedsChecksum})
			r.next(test.unreachable)
			if n := r.e.udp.refused.Load(); n != 1 {
				t.Errorf("%d datagrams were refused, want 1", n)
			}
			select {
			case <-got:
				t.Error("a datagram reached the host's loopback")
			default:
			}
		})
	}
}

// A program that sends many datagrams with one call has them arrive one by one.
func TestUDPSegmentsAreDatagrams(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	got := make(chan string, 3)
	server := listenUDP(t, "127.0.0.1:0", func(_ *net.UDPConn, msg []byte, _ netip.AddrPort) { got <- string(msg) })
	frame := udpFrame(netip.AddrPortFrom(childIPv4, 4000), r.gateway(server), "aaaabbbbcc")
	r.send(frame, vnetHeader{flags: vnetNeedsChecksum, segmentType: vnetSegmentUDP, segmentSize: 4})
	for _, want := range []string{"aaaa", "bbbb", "cc"} {
		if msg := <-got; msg != want {
			t.Errorf("got %q, want %q", msg, want)
		}
	}
	// And one by one, where the host does not take them as one.
	f := flowsOf(r.e.udp)[0]
	d := &datagram{payload: []byte("aaaabbbbcc"), segment: 4}
	if _, errno := f.session.sendSegments(d, f.to); errno != 0 {
		t.Fatal(errno)
	}
	for _, want := range []string{"aaaa", "bbbb", "cc"} {
		if msg := <-got; msg != want {
			t.Errorf("got %q, want %q", msg, want)
		}
	}
	d.payload = make([]byte, 65000)
	if _, errno := f.session.sendSegments(d, f.to); errno != unix.EMSGSIZE {
		t.Error("more segments were sent than Linux allows")
	}
}

func TestUDPFilteringLetsInWhatItSays(t *testing.T) {
	for name, test := range map[string]struct {
		filtering Filtering
		stranger  bool // whether another port of the address that was sent to gets in
	}{
		"address and port": {FilterAddressAndPort, false},
		"address":          {FilterAddress, true},
		"none":             {FilterNone, true},
	} {
		t.Run(name, func(t *testing.T) {
			o := all
			o.UDPFiltering = test.filtering
			r := newRig(t, rigOptions{Options: o})
			stranger, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer stranger.Close()
			server := listenUDP(t, "127.0.0.1:0", func(c *net.UDPConn, msg []byte, from netip.AddrPort) {
				stranger.WriteTo([]byte("stranger"), net.UDPAddrFromAddrPort(from))
				c.WriteToUDPAddrPort(msg, from)
			})
			addr, proto := fullAddress(netip.AddrPortFrom(r.net.subnets[0].child, 4000))
			c, err := gonet.DialUDP(r.guest, &addr, nil, proto)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			c.WriteTo([]byte("friend"), net.UDPAddrFromAddrPort(r.gateway(server)))
			want := map[string]netip.AddrPort{"friend": r.gateway(server)}
			if test.stranger {
				want["stranger"] = r.gateway(stranger.LocalAddr().(*net.UDPAddr).AddrPort())
			}
			buf := make([]byte, 20)
			for range len(want) {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					t.Fatal(err)
				}
				if got := from.(*net.UDPAddr).AddrPort(); got != want[string(buf[:n])] {
					t.Errorf("%q from %v, want %v", buf[:n], got, want)
				}
			}
			if !test.stranger {
				testenv.Until(t, "the stranger's datagram to be dropped", func() bool { return r.e.udp.dropped.Load() == 1 })
			}
		})
	}
}

func TestUDPFilteringByAddressKnowsItsPeers(t *testing.T) {
	r := newRig(t, rigOptions{Options: Options{UDPFiltering: FilterAddress}, bare: true})
	u := r.e.udp
	peer, other := netip.AddrPortFrom(worldIPv4, 1), netip.MustParseAddrPort("198.51.100.8:1")
	open := func(remote netip.AddrPort) *flow {
		f, err := u.acquire(&datagram{src: netip.AddrPortFrom(childIPv4, 4000), dst: remote})
		if err != nil {
			t.Fatal(err)
		}
		f.session.release()
		return f
	}
	first, second := open(peer), open(netip.AddrPortFrom(worldIPv4, 2))
	third := open(other)
	u.mu.Lock()
	defer u.mu.Unlock()
	s := first.session
	accepts := func(a netip.AddrPort) bool { return u.accepts(s, netip.AddrPortFrom(a.Addr(), 99)) }
	if !accepts(peer) || !accepts(other) || accepts(netip.MustParseAddrPort("198.51.100.9:1")) {
		t.Error("what is accepted are not the addresses that were sent to")
	}
	u.end(first)
	u.end(third)
	if !accepts(peer) || accepts(other) {
		t.Error("an address with a flow left is refused, or one without is accepted")
	}
	u.end(second)
}

// Short flows end in time where a long one has come first.
func TestUDPShortFlowsDoNotWaitForLongOnes(t *testing.T) {
	r := newRig(t, rigOptions{bare: true})
	u := r.e.udp
	for _, port := range []uint16{5000, ntpPort} {
		f, err := u.acquire(&datagram{src: netip.AddrPortFrom(childIPv4, 4000), dst: netip.AddrPortFrom(worldIPv4, port)})
		if err != nil {
			t.Fatal(err)
		}
		f.session.release()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if in := time.Until(u.due); in > shortIdle {
		t.Errorf("flows are looked at in %v, want %v at most", in, shortIdle)
	}
}

// What comes while the loop is at other work has more room than the kernel gives by
// itself.
func TestUDPBurstsHaveRoom(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	server := listenUDP(t, "127.0.0.1:0", echoUDP)
	r.dialUDP(r.gateway(server)).Write([]byte("x"))
	room := func(fd int) int {
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var given int
	testenv.Until(t, "the flow", func() bool {
		r.e.udp.mu.Lock()
		defer r.e.udp.mu.Unlock()
		for _, s := range r.e.udp.sessions {
			given = room(s.fd)
		}
		return given != 0
	})
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if usual := room(fd); given < 2*usual {
		t.Errorf("there is room for %d bytes, and by default for %d", given, usual)
	}
}
