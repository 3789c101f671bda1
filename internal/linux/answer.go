package linux

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AnswerNonblock sends one datagram on fd to where a came from, and from the
// address that it was sent to (sendmsg(2)). Any goroutine may call it; see
// Batch.Answer for many datagrams.
func AnswerNonblock(fd int, payload []byte, a Arrival) unix.Errno {
	var name sockaddr
	var from control
	iov := unix.Iovec{Base: unsafe.SliceData(payload)}
	iov.SetLen(len(payload))
	msg := unix.Msghdr{Name: &name[0], Namelen: encodeEndpoint(&name, a.Peer), Iov: &iov}
	msg.SetIovlen(1)
	if n := from.encode(a.Local); n > 0 {
		msg.Control = (*byte)(unsafe.Pointer(&from))
		msg.SetControllen(n)
	}
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errno != unix.EINTR {
			runtime.KeepAlive(payload)
			return errno
		}
	}
}
