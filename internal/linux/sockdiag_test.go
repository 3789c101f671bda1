package linux

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSockDiagTellsOfListeners(t *testing.T) {
	d, err := OpenSockDiag()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	v6only := func(yes int) net.ListenConfig {
		return net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_V6ONLY, yes) })
			if cerr != nil {
				return cerr
			}
			return err
		}}
	}
	for _, tt := range []struct {
		name, network, address string
		config                 net.ListenConfig
		query                  InetQuery
		v6Only                 bool
	}{
		{"TCP over IPv4", "tcp4", "127.0.0.1:0", net.ListenConfig{},
			InetQuery{Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP, States: StateListen}, false},
		{"TCP over IPv6 alone", "tcp6", "[::1]:0", v6only(1),
			InetQuery{Family: unix.AF_INET6, Protocol: unix.IPPROTO_TCP, States: StateListen}, true},
		{"TCP over both", "tcp", "[::]:0", v6only(0),
			InetQuery{Family: unix.AF_INET6, Protocol: unix.IPPROTO_TCP, States: StateListen}, false},
		{"UDP over IPv4", "udp4", "127.0.0.1:0", net.ListenConfig{},
			InetQuery{Family: unix.AF_INET, Protocol: unix.IPPROTO_UDP, States: StateClose}, false},
		{"UDP over IPv6 alone", "udp6", "[::1]:0", v6only(1),
			InetQuery{Family: unix.AF_INET6, Protocol: unix.IPPROTO_UDP, States: StateClose}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			local, conn := listen(t, tt.config, tt.network, tt.address)
			tt.query.Port = local.Port()
			found, err := d.Inet(tt.query)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range found {
				if s.Local != local {
					continue
				}
				if s.V6Only != tt.v6Only || s.UID != uint32(os.Geteuid()) || s.Inode != inodeOf(t, conn) {
					t.Errorf("got %+v, want inode %d", s, inodeOf(t, conn))
				}
				return
			}
			t.Errorf("%v is not among %v", local, found)
		})
	}
}

func TestSockDiagTellsOfManyAndOfNone(t *testing.T) {
	d, err := OpenSockDiag()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const many = 600 // more than one answer holds
	wanted := map[netip.AddrPort]bool{}
	for range many {
		local, _ := listen(t, net.ListenConfig{}, "udp4", "127.0.0.1:0")
		wanted[local] = true
	}
	found, err := d.Inet(InetQuery{Family: unix.AF_INET, Protocol: unix.IPPROTO_UDP})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range found {
		delete(wanted, s.Local)
	}
	if len(wanted) > 0 {
		t.Errorf("%d of %d sockets are missing", len(wanted), many)
	}
	if found, err := d.Inet(InetQuery{Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP, Port: 1, States: StateListen}); err != nil || len(found) > 0 {
		t.Errorf("on port 1 there is %v, %v", found, err)
	}
	if _, err := d.Inet(InetQuery{Family: unix.AF_INET, Protocol: 250}); err == nil {
		t.Error("there are sockets of an unknown protocol")
	}
}

// listen opens a socket that lives as long as the test.
func listen(t *testing.T, config net.ListenConfig, network, address string) (netip.AddrPort, syscall.Conn) {
	t.Helper()
	if network[:3] == "udp" {
		c, err := config.ListenPacket(context.Background(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return netip.MustParseAddrPort(c.LocalAddr().String()), c.(syscall.Conn)
	}
	l, err := config.Listen(context.Background(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return netip.MustParseAddrPort(l.Addr().String()), l.(syscall.Conn)
}

func inodeOf(t *testing.T, conn syscall.Conn) uint32 {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var link string
	if cerr := raw.Control(func(fd uintptr) { link, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) }); cerr != nil {
		t.Fatal(cerr)
	}
	var inode uint32
	if _, serr := fmt.Sscanf(link, "socket:[%d]", &inode); err != nil || serr != nil {
		t.Fatal(link, err, serr)
	}
	return inode
}

// FuzzSockDiag has the decoder read anything.
func FuzzSockDiag(f *testing.F) {
	f.Add([]byte{})
	f.Add(InetQuery{Family: unix.AF_INET}.encode(1))
	f.Add(append(InetQuery{Family: unix.AF_INET6}.encode(1), 4, 0, 11, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := SockDiag{seq: 1}
		var sockets []InetSocket
		_, _ = d.decode(b, &sockets)
		if len(b) >= diagMessageSize {
			decodeInetSocket(b)
		}
	})
}
