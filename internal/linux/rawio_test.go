package linux

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// streams returns both ends of a connection, of which the first is a bare
// descriptor.
func streams(t *testing.T) (fd int, peer *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return fd, c.(*net.TCPConn)
}

// waitReadable waits for data or the end of the stream.
func waitReadable(t *testing.T, fd int) {
	t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10000); n != 1 {
		t.Fatalf("poll: %d, %v", n, err)
	}
}

func TestNonblockingStreamCalls(t *testing.T) {
	fd, peer := streams(t)
	buf := make([]byte, 16)
	if _, errno := ReadNonblock(fd, buf); errno != unix.EAGAIN {
		t.Errorf("read of nothing: %v", errno)
	}
	if _, errno := PeekNonblock(fd); errno != unix.EAGAIN {
		t.Errorf("peek at nothing: %v", errno)
	}
	peer.Write([]byte("hello"))
	waitReadable(t, fd)
	if n := Readable(fd); n != 5 {
		t.Errorf("%d bytes are readable, want 5", n)
	}
	if n, errno := PeekNonblock(fd); n != 1 || errno != 0 {
		t.Errorf("peek: %d, %v", n, errno)
	}
	if n, errno := ReadNonblock(fd, buf); string(buf[:n]) != "hello" || errno != 0 {
		t.Errorf("read %q, %v", buf[:n], errno)
	}
	if n, errno := SendNonblock(fd, []byte("abc")); n != 3 || errno != 0 {
		t.Errorf("send: %d, %v", n, errno)
	}
	a, b := []byte("de"), []byte("f")
	iovs := []unix.Iovec{{Base: &a[0]}, {Base: &b[0]}}
	iovs[0].SetLen(2)
	iovs[1].SetLen(1)
	if n, errno := WritevNonblock(fd, iovs); n != 3 || errno != 0 {
		t.Errorf("writev: %d, %v", n, errno)
	}
	got := make([]byte, 6)
	if _, err := peer.Read(got[:3]); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(got[3:]); err != nil || string(got) != "abcdef" {
		t.Errorf("got %q, %v", got, err)
	}
	peer.Write([]byte("xyz"))
	waitReadable(t, fd)
	if n, errno := ReadvNonblock(fd, iovs); n != 3 || errno != 0 || string(a)+string(b) != "xyz" {
		t.Errorf("readv: %d, %v, %q", n, errno, string(a)+string(b))
	}
	peer.Close()
	waitReadable(t, fd)
	if n, errno := PeekNonblock(fd); n != 0 || errno != 0 {
		t.Errorf("peek at the end: %d, %v", n, errno)
	}
	if n := Readable(fd); n != 0 {
		t.Errorf("%d bytes are readable at the end", n)
	}
}

func TestSendToNonblock(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(at, func(t *testing.T) {
			server, err := net.ListenPacket("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			server.SetDeadline(time.Now().Add(10 * time.Second))
			to := server.LocalAddr().(*net.UDPAddr).AddrPort()
			domain := unix.AF_INET
			if to.Addr().Is6() {
				domain = unix.AF_INET6
			}
			fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			send := func(payload string, segment uint16, want ...string) {
				t.Helper()
				b := append([]byte(payload), 0)
				iovs := []unix.Iovec{{Base: &b[0]}}
				iovs[0].SetLen(len(payload))
				if errno := SendToNonblock(fd, iovs, to, segment); errno != 0 {
					t.Fatal(errno)
				}
				for _, w := range want {
					buf := make([]byte, 16)
					if n, _, err := server.ReadFrom(buf); err != nil || string(buf[:n]) != w {
						t.Errorf("got %q, %v, want %q", buf[:n], err, w)
					}
				}
			}
			send("hello", 0, "hello")
			send("", 0, "")
			send("aabbc", 2, "aa", "bb", "c")
		})
	}
	if errno := SendToNonblock(-1, make([]unix.Iovec, 1), netip.MustParseAddrPort("127.0.0.1:1"), 0); errno != unix.EBADF {
		t.Errorf("send on no socket: %v", errno)
	}
}
