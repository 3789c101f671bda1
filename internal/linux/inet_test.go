package linux

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var probing = KeepAlive{Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 5}

// listenTCP listens for the length of the test.
func listenTCP(t *testing.T, address string) (fd int, at netip.AddrPort) {
	t.Helper()
	at = netip.MustParseAddrPort(address)
	fd = newSocket(t, familyOf(at), unix.SOCK_STREAM)
	if err := ListenTCP(fd, at, 8, probing); err != nil {
		t.Fatal(err)
	}
	number, err := LocalPort(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, netip.AddrPortFrom(at.Addr(), uint16(number))
}

func familyOf(at netip.AddrPort) int {
	if at.Addr().Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func newSocket(t *testing.T, domain, typ int) int {
	t.Helper()
	fd, err := Socket(domain, typ, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// connect waits for the outcome of a connection.
func connect(t *testing.T, fd int, to netip.AddrPort) error {
	t.Helper()
	err := Connect(fd, to)
	for errors.Is(err, unix.EINPROGRESS) {
		if _, perr := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 5000); perr != nil {
			t.Fatal(perr)
		}
		err = Connected(fd)
	}
	return err
}

func TestAcceptedConnectionsInheritWhatTheListenerHas(t *testing.T) {
	listener, at := listenTCP(t, "127.0.0.1:0")
	if _, _, err := Accept(listener); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("an empty queue gives %v", err)
	}
	if err := connect(t, newSocket(t, unix.AF_INET, unix.SOCK_STREAM), at); err != nil {
		t.Fatal(err)
	}
	fd, peer, err := Accept(listener)
	if err != nil || peer != at.Addr() {
		t.Fatalf("a connection from %v, %v", peer, err)
	}
	defer unix.Close(fd)
	if err := Unpace(fd); err != nil {
		t.Error(err)
	}
	for _, want := range []sockopt{
		{unix.SOL_TCP, unix.TCP_NODELAY, 1}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, 30}, {unix.SOL_TCP, unix.TCP_KEEPINTVL, 15}, {unix.SOL_TCP, unix.TCP_KEEPCNT, 5},
	} {
		if got, err := unix.GetsockoptInt(fd, want.level, want.name); err != nil || got != want.value {
			t.Errorf("option %d: got %d, %v, want %d", want.name, got, err, want.value)
		}
	}
	if n, err := Unsent(fd); n != 0 || err != nil {
		t.Errorf("%d bytes unsent, %v", n, err)
	}
}

func TestFamiliesDoNotCollide(t *testing.T) {
	for range 20 { // another program may have a port in the other family
		_, four := listenTCP(t, "0.0.0.0:0")
		fd := newSocket(t, unix.AF_INET6, unix.SOCK_STREAM)
		err := ListenTCP(fd, netip.AddrPortFrom(netip.IPv6Unspecified(), four.Port()), 8, probing)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Error("no port could be had in both families")
}

func TestConnectTellsARefusal(t *testing.T) {
	fd := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	_, at := bindUDP(t, "127.0.0.1:0") // a number that no TCP listener has got
	if err := connect(t, fd, at); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("got %v", err)
	}
}

func TestConnectToItselfIsARefusal(t *testing.T) {
	for name, typ := range map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM} {
		for _, local := range []string{"127.0.0.1:0", "[::1]:0"} {
			t.Run(name+" "+local, func(t *testing.T) {
				to := netip.MustParseAddrPort(local)
				domain := unix.AF_INET
				if to.Addr().Is6() {
					domain = unix.AF_INET6
				}
				fd := newSocket(t, domain, typ)
				sa, err := scopedSockaddr(fd, to)
				if err != nil {
					t.Fatal(err)
				}
				if err := unix.Bind(fd, sa); err != nil {
					t.Fatal(err)
				}
				number, err := LocalPort(fd)
				if err != nil {
					t.Fatal(err)
				}
				err = connect(t, fd, netip.AddrPortFrom(to.Addr(), uint16(number)))
				if err == nil {
					err = Connected(fd)
				}
				if !errors.Is(err, unix.ECONNREFUSED) {
					t.Fatalf("got %v", err)
				}
			})
		}
	}
}

func TestZonesAreInterfacesOfTheSocketsNamespace(t *testing.T) {
	fd := newSocket(t, unix.AF_INET6, unix.SOCK_DGRAM)
	for _, tt := range []struct {
		zone string
		want uint32
	}{{"lo", 1}, {"7", 7}} { // lo is 1 in every network namespace
		sa, err := scopedSockaddr(fd, netip.MustParseAddrPort("[fe80::1%"+tt.zone+"]:53"))
		if err != nil {
			t.Fatal(err)
		}
		if got := sa.(*unix.SockaddrInet6).ZoneId; got != tt.want {
			t.Errorf("%s: scope %d, want %d", tt.zone, got, tt.want)
		}
	}
	for _, zone := range []string{"gatekit-no", "a-name-longer-than-the-kernel-takes"} {
		if _, err := scopedSockaddr(fd, netip.MustParseAddrPort("[fe80::1%"+zone+"]:53")); err == nil ||
			!strings.Contains(err.Error(), "interface "+zone) {
			t.Errorf("%s: %v", zone, err)
		}
	}
}

func TestPipeCarriesAStreamAndItsEnd(t *testing.T) {
	listener, at := listenTCP(t, "127.0.0.1:0")
	a := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	if err := connect(t, a, at); err != nil {
		t.Fatal(err)
	}
	b, _, err := Accept(listener)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(b)
	p, err := NewPipe(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Fill(b, 16); err != unix.EAGAIN {
		t.Fatalf("nothing to take gives %v", err)
	}
	if _, err := unix.Write(a, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Fill(b, 16); n != 5 || err != nil {
		t.Fatalf("Fill: %d, %v", n, err)
	}
	if n, err := p.Drain(b, 5); n != 5 || err != nil {
		t.Fatalf("Drain: %d, %v", n, err)
	}
	got := make([]byte, 16)
	if n, err := unix.Read(a, got); err != nil || string(got[:n]) != "hello" {
		t.Fatalf("got %q, %v", got[:n], err)
	}
	if err := unix.Shutdown(a, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Fill(b, 16); n != 0 || err != nil {
		t.Fatalf("the end: %d, %v", n, err)
	}
}
