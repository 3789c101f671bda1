package linux

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Sockets of the internet families, for code that multiplexes many of them
// with Epoll and so cannot use package net. Descriptors made here are
// non-blocking and closed on exec; the caller owns them.

// KeepAlive is when a silent TCP connection is probed and given up (tcp(7)). The
// zero value is what the host is set to (net.ipv4.tcp_keepalive_time ...).
type KeepAlive struct {
	Idle     time.Duration // silence before the first probe, in whole seconds
	Interval time.Duration // between probes, in whole seconds
	Count    int           // unanswered probes before the connection is reset
}

// ListenTCP has fd, a fresh socket of at's family, listen on at, in the network
// namespace that the socket is of. Accepted connections inherit what TuneTCP sets,
// which saves the calls for each. An IPv6 listener takes no IPv4. The call that
// failed, "bind" or "listen", is in the error.
func ListenTCP(fd int, at netip.AddrPort, backlog int, keepAlive KeepAlive) error {
	if err := setInts(fd, sockopt{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}); err != nil {
		return err
	}
	if err := TuneTCP(fd, keepAlive); err != nil {
		return err
	}
	if err := bindTo(fd, at); err != nil {
		return err
	}
	return os.NewSyscallError("listen", unix.Listen(fd, backlog))
}

// BindUDP binds fd, a fresh datagram socket of at's family, to at, in the network
// namespace that the socket is of. On an unspecified address it asks for the address
// that each datagram was sent to (IP_PKTINFO, ip(7); IPV6_RECVPKTINFO, RFC 3542). An
// IPv6 socket takes no IPv4.
func BindUDP(fd int, at netip.AddrPort) error {
	if at.Addr().IsUnspecified() {
		pktinfo := sockopt{unix.SOL_IP, unix.IP_PKTINFO, 1}
		if at.Addr().Is6() {
			pktinfo = sockopt{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1}
		}
		if err := setInts(fd, pktinfo); err != nil {
			return err
		}
	}
	return bindTo(fd, at)
}

// bindTo binds a socket to at alone: one of IPv6 takes no IPv4.
func bindTo(fd int, at netip.AddrPort) error {
	if at.Addr().Is6() {
		if err := setInts(fd, sockopt{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1}); err != nil {
			return err
		}
	}
	sa, err := scopedSockaddr(fd, at)
	if err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}

// TuneTCP sets TCP_NODELAY and keepAlive on a TCP socket, and has urgent data
// stay in the stream (SO_OOBINLINE, socket(7)), where AtMark finds it.
func TuneTCP(fd int, keepAlive KeepAlive) error {
	err := setInts(fd,
		sockopt{unix.SOL_TCP, unix.TCP_NODELAY, 1},
		sockopt{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
		sockopt{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1})
	if err != nil || keepAlive == (KeepAlive{}) {
		return err
	}
	return setInts(fd,
		sockopt{unix.SOL_TCP, unix.TCP_KEEPIDLE, seconds(keepAlive.Idle)},
		sockopt{unix.SOL_TCP, unix.TCP_KEEPINTVL, seconds(keepAlive.Interval)},
		sockopt{unix.SOL_TCP, unix.TCP_KEEPCNT, keepAlive.Count})
}

func seconds(d time.Duration) int { return max(1, int(d/time.Second)) }

// SetBuffers asks for size bytes of send and receive buffer. The kernel grants
// less where net.core.rmem_max or wmem_max say so, which is no error.
func SetBuffers(fd, size int) error {
	return setInts(fd,
		sockopt{unix.SOL_SOCKET, unix.SO_RCVBUF, size},
		sockopt{unix.SOL_SOCKET, unix.SO_SNDBUF, size})
}

type sockopt struct{ level, name, value int }

func setInts(fd int, options ...sockopt) error {
	for _, o := range options {
		if errno := setInt(fd, o); errno != 0 {
			return os.NewSyscallError("setsockopt", errno)
		}
	}
	return nil
}

// Accept takes a connection off a listener's queue, and tells its peer's address.
// It does not wait: EAGAIN says that there is none.
func Accept(fd int) (conn int, peer netip.Addr, err error) {
	var sa unix.Sockaddr
	err = retry(func() (err error) {
		conn, sa, err = unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return err
	})
	if err != nil {
		return -1, netip.Addr{}, os.NewSyscallError("accept4", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		peer = netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		peer = netip.AddrFrom16(sa.Addr)
	}
	return conn, peer, nil
}

// Pacing says whether TCP sockets pace what they send unless told otherwise:
// whether the host's congestion control is a kind of BBR, which needs that.
func Pacing() bool {
	name, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	return err == nil && bytes.HasPrefix(name, []byte("bbr"))
}

// Unpace has a TCP socket send as fast as its peer takes it, by Reno, which every
// kernel has and every user may choose (tcp(7)). It is for peers on this host,
// where there is nothing to probe and pacing costs a timer for each burst.
func Unpace(fd int) error {
	return os.NewSyscallError("setsockopt TCP_CONGESTION", unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_CONGESTION, "reno"))
}

// Connect starts to connect fd. It does not wait: EINPROGRESS says that the
// outcome is told by Connected once fd is writable.
func Connect(fd int, to netip.AddrPort) error {
	scope, err := scopeOf(fd, to.Addr())
	if err != nil {
		return err
	}
	errno := beginConnect(fd, Endpoint{Addr: to.Addr(), Port: to.Port(), Scope: scope})
	switch errno {
	case 0:
		return nil
	case unix.EINTR: // it goes on by itself
		errno = unix.EINPROGRESS
	}
	return os.NewSyscallError("connect", errno)
}

// Connected tells what came of Connect: nil, the error, or EINPROGRESS while
// there is no outcome yet.
//
// A socket can connect to itself, where nothing listens on a local port and the
// kernel picks just that port for the socket. That is told as ECONNREFUSED.
func Connected(fd int) error {
	if err := SocketError(fd); err != nil {
		return os.NewSyscallError("connect", err)
	}
	peer, errno := endpoint(unix.SYS_GETPEERNAME, fd)
	if errno != 0 {
		return os.NewSyscallError("connect", unix.EINPROGRESS)
	}
	local, errno := endpoint(unix.SYS_GETSOCKNAME, fd)
	if errno == 0 && local == peer {
		errno = unix.ECONNREFUSED
	}
	if errno != 0 {
		return os.NewSyscallError("connect", errno)
	}
	return nil
}

// SocketError takes the pending error off a socket; nil means there was none.
func SocketError(fd int) error {
	code, errno := getInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if errno != 0 {
		return os.NewSyscallError("getsockopt", errno)
	}
	if code != 0 {
		return unix.Errno(code)
	}
	return nil
}

// Unsent is how many bytes of a TCP socket's send queue the peer has not
// acknowledged yet; of a UDP socket's, how much memory packets take that have not
// left (SIOCOUTQ, tcp(7), udp(7)).
func Unsent(fd int) (int, error) {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	return n, os.NewSyscallError("ioctl SIOCOUTQ", err)
}

// AtMark says whether the next byte of a TCP socket is urgent data, which has come
// or is announced (SIOCATMARK, sockatmark(3)). splice(2) takes nothing from there
// on, not even the end of the stream, until the byte was read.
func AtMark(fd int) bool {
	at, err := unix.IoctlGetInt(fd, unix.SIOCATMARK)
	return err == nil && at != 0
}

// ResetOnClose makes the close of a TCP socket send a reset, and drop what has
// not been sent.
func ResetOnClose(fd int) error {
	err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return os.NewSyscallError("setsockopt SO_LINGER", err)
}

// LocalPort returns the port that a socket is bound to.
func LocalPort(fd int) (int, error) {
	sa, err := unix.Getsockname(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return sa.Port, nil
	case *unix.SockaddrInet6:
		return sa.Port, nil
	}
	if err == nil {
		err = unix.EAFNOSUPPORT
	}
	return 0, os.NewSyscallError("getsockname", err)
}

// scopedSockaddr converts to for fd, in whose network namespace the interface that a
// zone names is looked up.
func scopedSockaddr(fd int, to netip.AddrPort) (unix.Sockaddr, error) {
	addr := to.Addr()
	if addr.Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: addr.As4()}, nil
	}
	scope, err := scopeOf(fd, addr)
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: addr.As16(), ZoneId: scope}, nil
}

// scopeOf is the index of the interface that an address names, 0 where it names
// none.
func scopeOf(fd int, addr netip.Addr) (uint32, error) {
	zone := addr.Zone()
	if zone == "" {
		return 0, nil
	}
	if index, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(index), nil
	}
	ifr, err := unix.NewIfreq(zone)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr)
	}
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", zone, os.NewSyscallError("ioctl SIOCGIFINDEX", err))
	}
	return ifr.Uint32(), nil
}

// BindSource binds a socket of addr's family to addr, and leaves the port to the
// time when it is connected, or sends (IP_BIND_ADDRESS_NO_PORT, ip(7)): two
// connections to different hosts may share one.
func BindSource(fd int, addr netip.Addr) error {
	if err := setInts(fd, sockopt{unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1}); err != nil {
		return err
	}
	sa, err := scopedSockaddr(fd, netip.AddrPortFrom(addr, 0))
	if err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}
