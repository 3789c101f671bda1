package slirp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
)

// inboundRig is a rig whose way in is open, with what goes to the namespace's lo.
type inboundRig struct {
	*rig
	lo *os.File
}

func newInboundRig(t *testing.T, bare bool) inboundRig {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	lo := os.NewFile(uintptr(fds[1]), "lo's other end")
	t.Cleanup(func() { lo.Close() })
	r := newRig(t, rigOptions{Options: Options{SourceIP: true}, bare: bare, tweak: func(e *engine) {
		if err := e.inbound.enter(os.NewFile(uintptr(fds[0]), "lo")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.inbound.leave() })
	}})
	r.net.inbound.Store(r.e.inbound)
	return inboundRig{r, lo}
}

// toLoopback returns the next frame for lo, without its virtio-net header.
func (r inboundRig) toLoopback() []byte {
	r.t.Helper()
	buf := make([]byte, vnetHeaderSize+maxFrame)
	r.lo.SetReadDeadline(time.Now().Add(patience))
	n, err := r.lo.Read(buf)
	if err != nil {
		r.t.Fatalf("waiting for a frame to lo: %v", err)
	}
	return slices.Clone(buf[vnetHeaderSize:n])
}

func port80(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 80) }

func TestOnlySomeAddressesCanBeKept(t *testing.T) {
	r := newInboundRig(t, true)
	for _, c := range []struct {
		name, client, service string
		kept                  bool
	}{
		{"IPv4 to the loopback", "198.51.100.7", "127.0.0.1", true},
		{"IPv4 to another of its addresses", "198.51.100.7", "127.0.0.5", true},
		{"IPv4 to the interface", "198.51.100.7", "10.0.2.100", true},
		{"IPv6 to the loopback", "2001:db8::7", "::1", true},
		{"IPv6 to the interface", "2001:db8::7", "fd67:6174:656b::100", true},
		{"IPv4 to a nested guest", "198.51.100.7", "10.0.2.101", true},
		{"IPv6 to a nested guest", "2001:db8::7", "fd67:6174:656b::101", true},
		{"to the gateway", "198.51.100.7", "10.0.2.2", false},
		{"to the DNS server", "2001:db8::7", "fd67:6174:656b::3", false},
		{"to a container inside", "198.51.100.7", "172.17.0.2", false},
		{"to an address of the outside", "198.51.100.7", "198.51.100.8", false},
		{"IPv4 to IPv6", "198.51.100.7", "::1", false},
		{"IPv6 to IPv4", "2001:db8::7", "127.0.0.1", false},
		{"from a loopback", "127.0.0.1", "127.0.0.1", false},
		{"from the namespace's own network", "10.0.2.7", "127.0.0.1", false},
		{"from the gateway", "fd67:6174:656b::2", "::1", false},
		{"from a link-local address", "fe80::7%eth0", "::1", false},
		{"from a link-local address without its link", "fe80::7", "::1", false},
		{"from nowhere", "0.0.0.0", "127.0.0.1", false},
	} {
		if got := r.net.Keeps(netip.MustParseAddr(c.client), netip.MustParseAddr(c.service)); got != c.kept {
			t.Errorf("%s: kept is %v", c.name, got)
		}
		service := netip.MustParseAddr(c.service)
		if way := c.kept || service.IsLoopback(); r.net.Reaches(service) != way {
			t.Errorf("%s: that it is reached is %v", c.service, !way)
		}
	}
}

// The routes are those of a namespace without any, nor an address.
func TestWhoCannotBeAnsweredIsNotKept(t *testing.T) {
	testenv.UserNS{Flags: unix.CLONE_NEWNET, Inner: func(t *testing.T) {
		r := newInboundRig(t, true)
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		r.e.inbound.routes.Store(linux.NewRoutes(os.NewFile(uintptr(fd), "routes")))
		expect := func(client, service netip.Addr, want bool) {
			t.Helper()
			if got := r.net.Keeps(client, service); got != want {
				t.Errorf("%v to %v: kept is %v", client, service, got)
			}
		}
		expect(worldIPv4, childIPv4, false)
		expect(worldIPv6, childIPv6, false)
		expect(worldIPv4, nestedIPv4, true) // it has routes of its own
		if err := r.e.inbound.routes.Load().Close(); err != nil {
			t.Fatal(err)
		}
		expect(worldIPv4, childIPv4, true) // there is no knowing
		r.e.inbound.routes.Store(nil)
	}}.Run(t)
}

func TestAServiceThatIsNowhereOnTheLinkDoesNotAnswer(t *testing.T) {
	r := newInboundRig(t, true)
	client, service := netip.AddrPortFrom(worldIPv4, 5555), netip.AddrPortFrom(nestedIPv4, 80)
	if _, err := r.e.inbound.open(t.Context(), client, service, -1, nil); !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("got %v, want %v", err, unix.ETIMEDOUT)
	}
}

func TestWhatTheChildSendsIsNoAnswerOfANestedGuest(t *testing.T) {
	r := newInboundRig(t, true)
	client, service := netip.AddrPortFrom(worldIPv4, 5555), netip.AddrPortFrom(nestedIPv4, 80)
	flow, err := r.net.OpenDatagrams(client, service, func([]byte) {}, func([]byte) {})
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	for from, want := range map[netip.Addr]bool{nestedIPv4: true, childIPv4: false} {
		d := datagram{src: netip.AddrPortFrom(from, 80), dst: client}
		if got := r.e.inbound.udp.deliver(&d); got != want {
			t.Errorf("what %v sends is an answer: %v", from, got)
		}
	}
}

func TestWithoutAPacketSocketTheInterfaceIsReachedAlone(t *testing.T) {
	r := newRig(t, rigOptions{Options: Options{SourceIP: true}, bare: true})
	r.net.inbound.Store(r.e.inbound)
	for service, kept := range map[string]bool{"10.0.2.100": true, "127.0.0.1": false} {
		if got := r.net.Keeps(worldIPv4, netip.MustParseAddr(service)); got != kept {
			t.Errorf("to %s: kept is %v", service, got)
		}
		if got := r.net.Reaches(netip.MustParseAddr(service)); got != kept {
			t.Errorf("that %s is reached is %v", service, got)
		}
	}
}

// hostPair is a TCP connection of the host.
func hostPair(t *testing.T) (client *net.TCPConn, fd int) {
	t.Helper()
	accepted := make(chan int, 1)
	addr := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) {
				own, _ := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
				accepted <- own
			})
		}
		if err != nil {
			t.Error(err)
		}
	})
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), <-accepted
}

func TestConnectionsInAClientsName(t *testing.T) {
	for name, c := range map[string]struct{ client, child netip.Addr }{
		"IPv4": {worldIPv4, childIPv4},
		"IPv6": {worldIPv6, childIPv6},
	} {
		t.Run(name, func(t *testing.T) {
			r := newInboundRig(t, false)
			service, from := netip.AddrPortFrom(c.child, 80), netip.AddrPortFrom(c.client, 5555)
			addr, proto := fullAddress(service)
			client, fd := hostPair(t)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()

			_, err := r.net.Connect(ctx, from, service, fd, func() { t.Error("over is called after an error") })
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatalf("without a service: %v, want that it is refused", err)
			}
			l, err := gonet.ListenTCP(r.guest, addr, proto)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			over := make(chan struct{})
			if _, err := r.net.Connect(ctx, from, service, fd, func() { close(over) }); err != nil {
				t.Fatal(err)
			}
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if got := conn.RemoteAddr().String(); got != from.String() {
				t.Errorf("the service sees %s, want %v", got, from)
			}
			if _, err := client.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if err := client.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
				t.Errorf("the service reads %q, %v", got, err)
			}
			if _, err := conn.Write([]byte("goodbye")); err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if got, err := io.ReadAll(client); string(got) != "goodbye" || err != nil {
				t.Errorf("the client reads %q, %v", got, err)
			}
			<-over
		})
	}
}

func TestACutResetsBothEnds(t *testing.T) {
	r := newInboundRig(t, false)
	addr, proto := fullAddress(netip.AddrPortFrom(childIPv4, 80))
	l, err := gonet.ListenTCP(r.guest, addr, proto)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, fd := hostPair(t)
	over := make(chan struct{})
	cut, err := r.net.Connect(t.Context(), netip.AddrPortFrom(worldIPv4, 5555), netip.AddrPortFrom(childIPv4, 80), fd, func() { close(over) })
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cut()
	<-over
	cut() // once more does nothing
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client sees %v", err)
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the service sees %v, want a reset", err)
	}
}

func TestAConnectionToTheLoopbackEntersByLo(t *testing.T) {
	for name, c := range map[string]struct {
		client  netip.Addr
		service netip.AddrPort
	}{
		"IPv4": {worldIPv4, port80("127.0.0.1")},
		"IPv6": {worldIPv6, port80("::1")},
	} {
		t.Run(name, func(t *testing.T) {
			r := newInboundRig(t, true)
			_, fd := hostPair(t)
			defer unix.Close(fd)
			ctx, cancel := context.WithCancel(t.Context())
			failed := make(chan error, 1)
			go func() {
				_, err := r.net.Connect(ctx, netip.AddrPortFrom(c.client, 5555), c.service, fd, func() {})
				failed <- err
			}()
			frame := r.toLoopback()
			if eth := header.Ethernet(frame); macAddr(frame) != (macAddr{}) || eth.Type() != protocolOf(c.client) {
				t.Errorf("the frame is %x, want one for lo", frame)
			}
			cancel()
			if err := <-failed; !errors.Is(err, context.Canceled) {
				t.Errorf("Connect ends with %v", err)
			}
		})
	}
}

func TestLoopbackSourcesAreThoseOfFlows(t *testing.T) {
	r := newInboundRig(t, true)
	client, service := netip.AddrPortFrom(worldIPv4, 5555), port80("127.0.0.1")
	verdictOn := func(frame []byte) verdict {
		var f finding
		return r.e.link.inspector.inspect(frame, vnetHeader{}, &f)
	}
	datagram := udpFrame(service, client, "answer")
	if got := verdictOn(datagram); got != drop {
		t.Errorf("without a flow, a datagram from 127.0.0.1 gets %v", got)
	}
	flow, err := r.net.OpenDatagrams(client, service, func([]byte) {}, func([]byte) {})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		frame []byte
		want  verdict
	}{
		"its answer":              {datagram, toUDP},
		"one to another client":   {udpFrame(service, port80("198.51.100.9"), "x"), drop},
		"one to the gateway":      {udpFrame(service, port80("10.0.2.2"), "x"), drop},
		"one to the host":         {udpFrame(service, port80("127.0.0.1"), "x"), drop},
		"a SYN":                   {synFrame(service, client), drop},
		"an echo request":         {ipFrame(service.Addr(), client.Addr(), header.ICMPv4ProtocolNumber, []byte{8, 0, 0, 0, 0, 0, 0, 0}), drop},
		"a SYN from ::1":          {synFrame(port80("::1"), netip.AddrPortFrom(worldIPv6, 5555)), drop},
		"one from another family": {udpFrame(port80("::1"), netip.AddrPortFrom(worldIPv6, 5555), "x"), drop},
	} {
		if got := verdictOn(c.frame); got != c.want {
			t.Errorf("%s gets %v, want %v", name, got, c.want)
		}
	}
	flow.Close()
	if got := verdictOn(datagram); got != drop {
		t.Errorf("after the flow, its answer gets %v", got)
	}
}

// unreachableFrame is an ICMP error of a service's kernel about a datagram.
func unreachableFrame(client, service netip.AddrPort) []byte {
	quoted := udpFrame(client, service, "x")[ethernetSize:]
	proto, message := header.ICMPv4ProtocolNumber, []byte{3, 3, 0, 0, 0, 0, 0, 0}
	if service.Addr().Is6() {
		proto, message = header.ICMPv6ProtocolNumber, []byte{1, 4, 0, 0, 0, 0, 0, 0}
	}
	putICMPChecksum(&outgoing{src: service.Addr(), dst: client.Addr(), proto: proto}, message, quoted)
	return ipFrame(service.Addr(), client.Addr(), proto, append(message, quoted...))
}

// An ICMP error ends an attempt only where it quotes the very SYN: whoever else is on the
// link may guess the rest.
func TestOnlyAnErrorAboutItsSYNEndsAnAttempt(t *testing.T) {
	r := newInboundRig(t, true)
	client, service := netip.AddrPortFrom(worldIPv4, 5555), netip.AddrPortFrom(childIPv4, 80)
	_, fd := hostPair(t)
	defer unix.Close(fd)
	failed := make(chan error, 1)
	go func() {
		_, err := r.net.Connect(t.Context(), client, service, fd, func() {})
		failed <- err
	}()
	syn := r.next(func(f []byte) bool {
		return len(f) > ethernetSize+40 && f[ethernetSize+9] == uint8(header.TCPProtocolNumber)
	})[ethernetSize:]
	complain := func(change func(ip []byte)) {
		quoted := slices.Clone(syn)
		change(quoted)
		message := []byte{3, 13, 0, 0, 0, 0, 0, 0}
		putICMPChecksum(&outgoing{src: service.Addr(), dst: client.Addr(), proto: header.ICMPv4ProtocolNumber}, message, quoted)
		r.send(ipFrame(service.Addr(), client.Addr(), header.ICMPv4ProtocolNumber, append(message, quoted...)), vnetHeader{})
	}
	sequence := func(ip []byte) header.TCP { return header.TCP(ip[20:]) }
	seq := sequence(syn).SequenceNumber()
	complain(func(ip []byte) { sequence(ip).SetSequenceNumber(seq - 1) })
	complain(func(ip []byte) { sequence(ip).SetSequenceNumber(seq + 1) })
	complain(func(ip []byte) { ip[7] = 1 }) // of a later fragment
	testenv.Until(t, "them to be heard", func() bool { c := r.e.counters(); return c.FramesAccepted+c.FramesRefused >= 3 })
	if !r.isTrue(func() bool { return len(r.e.tcp.relays) == 1 }) {
		t.Errorf("an error about something else ends it: %v", <-failed)
	}
	complain(func([]byte) {})
	select {
	case err := <-failed:
		if !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("Connect ends with %v", err)
		}
	case <-time.After(patience):
		t.Error("the error about it is not heard")
	}
}

func TestDatagramsInAClientsName(t *testing.T) {
	for name, c := range map[string]struct{ client, service, child netip.Addr }{
		"IPv4": {worldIPv4, netip.MustParseAddr("127.0.0.1"), childIPv4},
		"IPv6": {worldIPv6, netip.MustParseAddr("::1"), childIPv6},
	} {
		t.Run(name, func(t *testing.T) {
			r := newInboundRig(t, true)
			client, service := netip.AddrPortFrom(c.client, 5555), netip.AddrPortFrom(c.service, 80)
			answers := make(chan string, 4)
			flow, err := r.net.OpenDatagrams(client, service,
				func(payload []byte) { answers <- string(payload) }, func(payload []byte) { answers <- "refused " + string(payload) })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.net.OpenDatagrams(client, service, nil, nil); err == nil {
				t.Error("the same flow opens twice")
			}
			inside := netip.AddrPortFrom(c.child, 80)
			expectFrame := func(to netip.AddrPort, want string) {
				t.Helper()
				frame := r.toLoopback()
				var f finding
				in := outsideInspector(t)
				ethernetHeader(frame, guestMAC, gatewayMAC, uint16(header.Ethernet(frame).Type())) // lo has none
				if in.inspect(frame, vnetHeader{flags: vnetNeedsChecksum}, &f) != toUDP || f.datagram.src != client || f.datagram.dst != to || string(f.datagram.payload) != want {
					t.Errorf("the frame to lo has %v -> %v %q, want %q to %v", f.datagram.src, f.datagram.dst, f.datagram.payload, want, to)
				}
			}
			flow.Send([]byte("question"))
			expectFrame(service, "question")
			expect := func(want string, frame []byte) {
				t.Helper()
				r.send(frame, vnetHeader{})
				select {
				case got := <-answers:
					if got != want {
						t.Errorf("got %q, want %q", got, want)
					}
				case <-time.After(patience):
					t.Errorf("nothing comes, want %q", want)
				}
			}
			expect("answer", udpFrame(service, client, "answer"))
			expect("from the interface", udpFrame(inside, client, "from the interface"))
			flow.Send([]byte("to where it came from"))
			expectFrame(inside, "to where it came from")
			expect("", udpFrame(service, client, ""))
			broken := unreachableFrame(client, service)
			broken[len(broken)-1]++
			r.send(broken, vnetHeader{})
			expect("after a broken error", udpFrame(service, client, "after a broken error"))
			flow.Send([]byte("and back"))
			expectFrame(service, "and back")
			// What is refused goes to the other address, and is refused by both in the end.
			r.send(unreachableFrame(client, service), vnetHeader{})
			expectFrame(inside, "x")
			r.send(unreachableFrame(client, service), vnetHeader{}) // sent before that
			expectFrame(inside, "x")
			expect("refused x", unreachableFrame(client, inside))
			expect("refused x", unreachableFrame(client, service))
			testenv.Until(t, "all to be counted", func() bool { return r.e.counters().FramesAccepted >= 8 })
			if n := r.e.counters().FramesRefused; n != 1 {
				t.Errorf("%d frames are refused, and one was broken", n)
			}
			flow.Send([]byte("again"))
			expectFrame(service, "again")
			flow.Close()
			flow.Close()
			flow.Send([]byte("after its end")) // goes nowhere
		})
	}
}

// FuzzRefusal feeds ICMP messages to what looks for a flow in them.
func FuzzRefusal(f *testing.F) {
	for _, service := range []netip.AddrPort{port80("127.0.0.1"), port80("::1")} {
		client := netip.AddrPortFrom(worldIPv4, 5555)
		size := header.IPv4MinimumSize
		if service.Addr().Is6() {
			client, size = netip.AddrPortFrom(worldIPv6, 5555), header.IPv6MinimumSize
		}
		f.Add(unreachableFrame(client, service)[ethernetSize+size:], service.Addr().Is6())
	}
	f.Fuzz(func(t *testing.T, message []byte, ipv6 bool) {
		u := &inboundUDP{flows: map[inboundKey]*inboundFlow{}}
		refused := 0
		client, service := netip.AddrPortFrom(worldIPv4, 5555), port80("127.0.0.1")
		if ipv6 {
			client, service = netip.AddrPortFrom(worldIPv6, 5555), port80("::1")
		}
		key := inboundKey{service, client}
		u.flows[key] = &inboundFlow{key: key, alias: key, refused: func([]byte) { refused++ }}
		u.open.Store(1)
		if len(message) >= header.ICMPv4MinimumSize {
			putICMPChecksum(&outgoing{src: service.Addr(), dst: client.Addr(), proto: icmpProtocol(client.Addr())}, message, nil)
		}
		q, ok := parseError(message, service.Addr(), client.Addr())
		var r refusal
		if ok {
			r, ok = q.refusal()
		}
		if (ok && u.refuse(&r)) != (refused == 1) {
			t.Errorf("refused %d times", refused)
		}
	})
}

// Who waits for a connection is told when the engine ends, also who asks at that moment.
func TestConnectionsThatAreOpenedEndWithTheEngine(t *testing.T) {
	r := newInboundRig(t, false) // of which the guest says nothing
	r.silent.Store(true)
	const n = 32
	failed := make(chan error, n)
	for port := range uint16(n) {
		_, fd := hostPair(t)
		defer unix.Close(fd)
		go func() {
			if port >= n/2 {
				<-r.ctx.Done()
			}
			_, err := r.net.Connect(context.Background(), netip.AddrPortFrom(worldIPv4, 5000+port), netip.AddrPortFrom(childIPv4, 80), fd, func() {})
			failed <- err
		}()
	}
	testenv.Until(t, "half of the connections to be asked for", func() bool { return len(r.relays()) == n/2 })
	r.stop()
	for range n {
		select {
		case err := <-failed:
			if !errors.Is(err, errStopped) {
				t.Errorf("Connect ends with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("nobody tells who waits")
		}
	}
}
