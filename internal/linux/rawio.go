package linux

import (
	"encoding/binary"
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

// epollPoll is epoll_wait(2) with no timeout.
func epollPoll(fd int, events []unix.EpollEvent) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
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
// one.
func SendToNonblock(fd int, iovs []unix.Iovec, to netip.AddrPort, segment uint16) unix.Errno {
	var name rawSockaddr
	var control struct {
		unix.Cmsghdr
		segment uint16
		_       [6]byte
	}
	msg := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&name)), Namelen: name.encode(to), Iov: unsafe.SliceData(iovs)}
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

// Datagrams is the memory for receiving several datagrams with one call
// (recvmmsg(2)). It is not safe for concurrent use.
type Datagrams struct {
	headers []mmsghdr
	iovs    []unix.Iovec
	names   []rawSockaddr
	buffers []byte
	size    int
}

type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// NewDatagrams makes room for count datagrams of up to size bytes.
func NewDatagrams(count, size int) *Datagrams {
	d := &Datagrams{
		headers: make([]mmsghdr, count),
		iovs:    make([]unix.Iovec, count),
		names:   make([]rawSockaddr, count),
		buffers: make([]byte, count*size),
		size:    size,
	}
	for i := range d.headers {
		d.iovs[i].Base = &d.buffers[i*size]
		d.iovs[i].SetLen(size)
		d.headers[i].hdr.Iov = &d.iovs[i]
		d.headers[i].hdr.SetIovlen(1)
		d.headers[i].hdr.Name = (*byte)(unsafe.Pointer(&d.names[i]))
	}
	return d
}

// Receive takes up to as many datagrams as there is room for from a UDP socket,
// and returns how many.
func (d *Datagrams) Receive(fd int) (int, unix.Errno) {
	for i := range d.headers {
		d.headers[i].hdr.Namelen = uint32(unsafe.Sizeof(d.names[i]))
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&d.headers[0])), uintptr(len(d.headers)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Datagram returns the payload and the sender of the datagram i of the last
// Receive. The payload is valid until the next.
func (d *Datagrams) Datagram(i int) ([]byte, netip.AddrPort) {
	start := i * d.size
	return d.buffers[start : start+int(d.headers[i].len)], d.names[i].decode()
}

// Room returns how many datagrams one Receive can take.
func (d *Datagrams) Room() int { return len(d.headers) }

// rawSockaddr holds a sockaddr_in or a sockaddr_in6 (ip(7), ipv6(7)).
type rawSockaddr [unix.SizeofSockaddrInet6]byte

// encode writes an address and returns its length. Scopes are left to the
// kernel.
func (s *rawSockaddr) encode(a netip.AddrPort) uint32 {
	*s = rawSockaddr{}
	s[2], s[3] = byte(a.Port()>>8), byte(a.Port())
	if a.Addr().Is4() {
		binary.NativeEndian.PutUint16(s[:], unix.AF_INET)
		ip := a.Addr().As4()
		copy(s[4:], ip[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(s[:], unix.AF_INET6)
	ip := a.Addr().As16()
	copy(s[8:], ip[:])
	return unix.SizeofSockaddrInet6
}

// decode reads an address; it is invalid for any other family.
func (s *rawSockaddr) decode() netip.AddrPort {
	port := uint16(s[2])<<8 | uint16(s[3])
	switch binary.NativeEndian.Uint16(s[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s[8:24])), port)
	}
	return netip.AddrPort{}
}
