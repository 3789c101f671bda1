package linux

import (
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below work on non-blocking descriptors and so return at once. They
// are raw: Go's scheduler is not told, which would cost as much as the call
// itself and, for calls of more than 20 µs (a 64 KiB write through the
// loopback's receive path), a hand-over of the processor to another thread.
// They retry EINTR and return the bare errno, because they are called once a
// packet.

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

// SendToNonblock sends iovs as one datagram to an address (sendmsg(2)), cut
// into datagrams of segment bytes where segment is not 0 (UDP_SEGMENT in
// udp(7)). The address is IPv4 for an AF_INET socket and IPv6 for an AF_INET6
// one; a zone in it is not looked at.
func SendToNonblock(fd int, iovs []unix.Iovec, to netip.AddrPort, segment uint16) unix.Errno {
	var name [unix.SizeofSockaddrInet6]byte
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
