package linux

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// aSocket opens a datagram socket that asks for errors.
func aSocket(t *testing.T, ipv6 bool) int {
	t.Helper()
	domain := unix.AF_INET
	if ipv6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := AskForErrors(fd, ipv6); err != nil {
		t.Fatal(err)
	}
	return fd
}

func sendOn(t *testing.T, fd int, to netip.AddrPort, payload []byte) unix.Errno {
	t.Helper()
	iov := unix.Iovec{Base: &payload[0]}
	iov.SetLen(len(payload))
	return SendToNonblock(fd, []unix.Iovec{iov}, to, 0)
}

func TestNoticeTellsOfAClosedPort(t *testing.T) {
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(host, func(t *testing.T) {
			c, err := net.ListenPacket("udp", host)
			if err != nil {
				t.Fatal(err)
			}
			to := c.LocalAddr().(*net.UDPAddr).AddrPort()
			c.Close()
			ipv6 := to.Addr().Is6()
			fd := aSocket(t, ipv6)
			if errno := sendOn(t, fd, to, []byte("payload")); errno != 0 {
				t.Fatal(errno)
			}
			var n Notice
			buf := make([]byte, 100)
			testenv.Until(t, "the notice", func() bool {
				var errno unix.Errno
				n, errno = ReceiveNotice(fd, buf)
				return errno == 0
			})
			want := Notice{Errno: unix.ECONNREFUSED, ICMP: true, Type: 3, Code: 3, TTL: n.TTL, Len: 7}
			if ipv6 {
				want.Type, want.Code = 1, 4
			}
			want.Peer, want.Offender = Endpoint{Addr: to.Addr(), Port: to.Port()}, to.Addr()
			if n != want || n.TTL == 0 {
				t.Errorf("got %+v\nwant %+v", n, want)
			}
			if got := string(buf[:n.Len]); got != "payload" {
				t.Errorf("%q came back", got)
			}
			if _, errno := ReceiveNotice(fd, buf); errno != unix.EAGAIN {
				t.Errorf("on an empty queue: %v, want EAGAIN", errno)
			}
		})
	}
}

func TestPathDecidesOnTimeToLive(t *testing.T) {
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(host, func(t *testing.T) {
			to, err := netip.ParseAddrPort(host)
			if err != nil {
				t.Fatal(err)
			}
			from, at := aSocket(t, to.Addr().Is6()), aSocket(t, to.Addr().Is6())
			sa, err := scopedSockaddr(at, to)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Bind(at, sa); err != nil {
				t.Fatal(err)
			}
			port, err := LocalPort(at)
			if err != nil {
				t.Fatal(err)
			}
			if err := SetPath(from, to.Addr().Is6(), 7, true); err != nil {
				t.Fatal(err)
			}
			if errno := sendOn(t, from, netip.AddrPortFrom(to.Addr(), uint16(port)), []byte("x")); errno != 0 {
				t.Fatal(errno)
			}
			b := NewBatch(1, 10)
			testenv.Until(t, "the datagram", func() bool {
				n, _ := b.Receive(at)
				return n == 1
			})
			if got := b.TTL(0); got != 7 {
				t.Errorf("it came with a time to live of %d, want 7", got)
			}
		})
	}
}
