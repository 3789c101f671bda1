package linux

import (
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below work on non-blocking descriptors and so return at once. They
// are raw: Go's scheduler is not told, which would cost as much as the call
// itself and, for calls of more than 20 µs (a 64 KiB write through the
// loopback's receive path, the connect(2) to a local service), a hand-over of the
// processor to another thread. The scheduler's watcher (sysmon) looks for such
// calls every 20 µs for as long as it finds some.
// They retry EINTR and return the bare errno, because they are called once a
// packet or a few times a connection.

// ReadNonblock reads into p (read(2)).
func ReadNonblock(fd int, p []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// SendNonblock sends p on a connected socket (send(2)), without SIGPIPE.
func SendNonblock(fd int, p []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// WritevNonblock writes iovs as one (writev(2)).
func WritevNonblock(fd int, iovs []unix.Iovec) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iovs))), uintptr(len(iovs)))
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// PeekNonblock says whether a read of a stream socket would give a byte
// (recv(2) with MSG_PEEK): 1, 0 at the end of the stream, or an error.
func PeekNonblock(fd int) (int, unix.Errno) {
	var b [1]byte
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b)), 1, unix.MSG_PEEK, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Readable returns how many bytes a stream socket holds (SIOCINQ in tcp(7)), 0
// where it cannot tell.
func Readable(fd int) int {
	var n int32
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCINQ, uintptr(unsafe.Pointer(&n)))
	if errno != 0 || n < 0 {
		return 0
	}
	return int(n)
}

// ReadvNonblock fills iovs with one read (readv(2)).
func ReadvNonblock(fd int, iovs []unix.Iovec) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iovs))), uintptr(len(iovs)))
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Socket makes a non-blocking socket that no program inherits (socket(2)).
func Socket(domain, typ, proto int) (int, error) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(domain), uintptr(typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC), uintptr(proto))
	if errno != 0 {
		return -1, os.NewSyscallError("socket", errno)
	}
	return int(fd), nil
}

// Close closes a socket that does not linger (close(2)).
func Close(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// EndStream tells the peer of a stream socket that no more comes (shutdown(2)).
func EndStream(fd int) error {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	if errno != 0 {
		return os.NewSyscallError("shutdown", errno)
	}
	return nil
}

// setInt sets an option (setsockopt(2)).
func setInt(fd int, o sockopt) unix.Errno {
	value := int32(o.value)
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(o.level), uintptr(o.name), uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
	return errno
}

// getInt returns an option (getsockopt(2)).
func getInt(fd, level, name int) (int, unix.Errno) {
	var value int32
	size := uint32(unsafe.Sizeof(value))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	return int(value), errno
}

// beginConnect starts to connect (connect(2)).
func beginConnect(fd int, to Endpoint) unix.Errno {
	var name sockaddr
	size := encodeEndpoint(&name, to)
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&name)), uintptr(size))
	return errno
}

// endpoint asks for an end of a socket: SYS_GETSOCKNAME or SYS_GETPEERNAME.
func endpoint(call uintptr, fd int) (Endpoint, unix.Errno) {
	var name sockaddr
	size := uint32(len(name))
	_, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return Endpoint{}, errno
	}
	return decodeEndpoint(&name), 0
}

// epollControl changes a set (epoll_ctl(2)).
func epollControl(epoll, op, fd int, ev *unix.EpollEvent) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0)
	return errno
}

// epollPoll asks what is ready, without waiting (epoll_wait(2)).
func epollPoll(epoll int, events []unix.EpollEvent) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// SendToNonblock sends iovs as one datagram to an address (sendmsg(2)), cut
// into datagrams of segment bytes where segment is not 0 (UDP_SEGMENT in
// udp(7)). The address is IPv4 for an AF_INET socket and IPv6 for an AF_INET6
// one; a zone in it is not looked at.
func SendToNonblock(fd int, iovs []unix.Iovec, to netip.AddrPort, segment uint16) unix.Errno {
	var name sockaddr
	var control struct {
		unix.Cmsghdr
		segment uint16
		_       [6]byte
	}
	msg := unix.Msghdr{
		Name:    &name[0],
		Namelen: encodeEndpoint(&name, Endpoint{Addr: to.Addr(), Port: to.Port()}),
		Iov:     unsafe.SliceData(iovs),
	}
	msg.SetIovlen(len(iovs))
	if segment != 0 {
		control.Level, control.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		control.SetLen(unix.CmsgLen(2))
		control.segment = segment
		msg.Control = (*byte)(unsafe.Pointer(&control))
		msg.SetControllen(unix.CmsgSpace(2))
	}
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
		if errno != unix.EINTR {
			runtime.KeepAlive(iovs)
			return errno
		}
	}
}

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}
