package linux

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Notice is an error about a datagram that was sent: an ICMP message that came
// back, or a reason of the kernel's own (IP_RECVERR in ip(7)). It is comparable.
type Notice struct {
	Errno unix.Errno // what the kernel makes of it

	// ICMP says that it came as an ICMP message of Type and Code, in the family of
	// the socket; otherwise it is the kernel's own.
	ICMP       bool
	Type, Code uint8

	// Info is the path MTU in bytes where Errno is EMSGSIZE, and the message's
	// fourth to seventh byte or what the kernel makes of them otherwise.
	Info uint32

	Peer     Endpoint   // where the datagram was sent to
	Offender netip.Addr // who sent the ICMP message; invalid for the kernel's own
	TTL      uint8      // of the ICMP message; 0 where the socket does not ask for it

	// Len is how many bytes of the datagram came back.
	Len int
}

// noticeControl is room for the control messages of a notice: the error with its
// offender, and the time to live.
type noticeControl struct {
	_    [0]uint64 // aligns as struct cmsghdr
	data [256]byte
}

// ReceiveNotice takes an entry off a socket's error queue, without waiting, and
// puts what came back of the datagram into buf. EAGAIN says that there is none.
func ReceiveNotice(fd int, buf []byte) (Notice, unix.Errno) {
	var name sockaddr
	var control noticeControl
	var iov unix.Iovec
	if len(buf) > 0 {
		iov.Base = &buf[0]
		iov.SetLen(len(buf))
	}
	msg := unix.Msghdr{Name: &name[0], Namelen: uint32(len(name)), Iov: &iov, Control: &control.data[0]}
	msg.SetIovlen(1)
	msg.SetControllen(len(control.data))
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		switch errno {
		case 0:
			runtime.KeepAlive(buf)
			notice := Notice{Peer: decodeEndpoint(&name), Len: int(n)}
			notice.decode(control.data[:min(int(msg.Controllen), len(control.data))])
			return notice, 0
		case unix.EINTR:
		default:
			return Notice{}, errno
		}
	}
}

// decode reads control messages (cmsg(3)).
func (n *Notice) decode(b []byte) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		length := int(h.Len)
		if length < unix.CmsgLen(0) || length > len(b) {
			return
		}
		n.decodeOne(h.Level, h.Type, b[unix.CmsgLen(0):length])
		b = b[min(len(b), unix.CmsgSpace(length-unix.CmsgLen(0))):]
	}
}

func (n *Notice) decodeOne(level, kind int32, data []byte) {
	switch {
	case level == unix.SOL_IP && kind == unix.IP_RECVERR, level == unix.SOL_IPV6 && kind == unix.IPV6_RECVERR:
		n.decodeError(data)
	case isTTL(level, kind) && len(data) >= 4:
		n.TTL = uint8(binary.NativeEndian.Uint32(data))
	}
}

// decodeError reads a struct sock_extended_err and the address after it.
func (n *Notice) decodeError(data []byte) {
	const size = int(unsafe.Sizeof(unix.SockExtendedErr{}))
	if len(data) < size {
		return
	}
	e := (*unix.SockExtendedErr)(unsafe.Pointer(&data[0]))
	n.Errno, n.Type, n.Code, n.Info = unix.Errno(e.Errno), e.Type, e.Code, e.Info
	n.ICMP = e.Origin == unix.SO_EE_ORIGIN_ICMP || e.Origin == unix.SO_EE_ORIGIN_ICMP6
	if !n.ICMP {
		return
	}
	var offender sockaddr
	copy(offender[:], data[size:])
	switch binary.NativeEndian.Uint16(offender[:]) {
	case unix.AF_INET, unix.AF_INET6:
		n.Offender = decodeEndpoint(&offender).Addr
	}
}

// isTTL says whether a control message is the time to live or hop limit of what
// was received.
func isTTL(level, kind int32) bool {
	return level == unix.SOL_IP && kind == unix.IP_TTL || level == unix.SOL_IPV6 && kind == unix.IPV6_HOPLIMIT
}

// SetTTL sets the time to live, or hop limit, of what a socket sends; -1 is what the
// host is set to (IP_TTL in ip(7), IPV6_UNICAST_HOPS in ipv6(7)).
func SetTTL(fd int, ipv6 bool, ttl int) error {
	if ipv6 {
		return setInts(fd, sockopt{unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, ttl})
	}
	return setInts(fd, sockopt{unix.SOL_IP, unix.IP_TTL, ttl})
}

// AskForErrors makes a datagram socket, or one that connects, queue the errors about what
// it sends, for ReceiveNotice, and tell the time to live of all that it receives (IP_RECVERR
// and IP_RECVTTL in ip(7), IPV6_RECVERR in ipv6(7)).
func AskForErrors(fd int, ipv6 bool) error {
	if ipv6 {
		return setInts(fd,
			sockopt{unix.SOL_IPV6, unix.IPV6_RECVERR, 1},
			sockopt{unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1})
	}
	return setInts(fd,
		sockopt{unix.SOL_IP, unix.IP_RECVERR, 1},
		sockopt{unix.SOL_IP, unix.IP_RECVTTL, 1})
}

// NoErrors ends the queue of errors that AskForErrors begins, and drops what is in it.
func NoErrors(fd int, ipv6 bool) error {
	if ipv6 {
		return setInts(fd, sockopt{unix.SOL_IPV6, unix.IPV6_RECVERR, 0})
	}
	return setInts(fd, sockopt{unix.SOL_IP, unix.IP_RECVERR, 0})
}

// SetPath sets the time to live, or hop limit, of what a datagram socket sends,
// and whether it is to arrive in one piece: with whole set, a datagram that is
// larger than the path's MTU is not sent, which gives EMSGSIZE (IP_MTU_DISCOVER
// in ip(7)).
func SetPath(fd int, ipv6 bool, ttl uint8, whole bool) error {
	if ipv6 {
		discover := unix.IPV6_PMTUDISC_DONT
		if whole {
			discover = unix.IPV6_PMTUDISC_DO
		}
		return setInts(fd,
			sockopt{unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, int(ttl)},
			sockopt{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, discover})
	}
	discover := unix.IP_PMTUDISC_DONT
	if whole {
		discover = unix.IP_PMTUDISC_DO
	}
	return setInts(fd,
		sockopt{unix.SOL_IP, unix.IP_TTL, int(ttl)},
		sockopt{unix.SOL_IP, unix.IP_MTU_DISCOVER, discover})
}
