package linux

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// SockDiag asks the kernel for the sockets of a network namespace over
// NETLINK_SOCK_DIAG (sock_diag(7)): that of the process which made the netlink
// socket, whoever uses it. It needs no privilege. It is for one goroutine.
type SockDiag struct {
	file *os.File
	seq  uint32
	buf  []byte
}

// InetQuery chooses sockets. The zero values of Port and States choose all.
type InetQuery struct {
	Family   int    // unix.AF_INET or AF_INET6
	Protocol int    // unix.IPPROTO_TCP or IPPROTO_UDP
	Port     uint16 // the local port; 0 means any
	States   uint32 // a set of 1<<state, as StateListen; 0 means any
}

// States of sockets for InetQuery (include/net/tcp_states.h). An unconnected UDP
// socket is in StateClose.
const (
	StateTimeWait = 1 << 6
	StateClose    = 1 << 7
	StateListen   = 1 << 10
)

// InetSocket is a socket as sock_diag(7) tells of it.
type InetSocket struct {
	Local  netip.AddrPort // IPv4 in IPv6 is told as IPv4
	State  uint8          // a number, see the set InetQuery.States
	V6Only bool           // takes no IPv4; told of sockets that have no peer
	Scope  uint32         // the interface that it is bound to; 0 for none
	UID    uint32         // its owner, as the reader sees it
	Inode  uint32         // as in /proc/PID/fd: "socket:[INODE]"
}

// Sizes of linux/inet_diag.h's structs, in bytes, and of their common header.
const (
	diagRequestSize = 56
	diagMessageSize = 72
	diagBuffer      = 64 << 10

	skV6Only = 11 // INET_DIAG_SKV6ONLY
)

// OpenSockDiag asks about the network namespace of the calling thread.
func OpenSockDiag() (*SockDiag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return NewSockDiag(os.NewFile(uintptr(fd), "sock_diag")), nil
}

// NewSockDiag asks over a non-blocking socket of NETLINK_SOCK_DIAG, which it
// owns from here on.
func NewSockDiag(file *os.File) *SockDiag {
	return &SockDiag{file: file, buf: make([]byte, diagBuffer)}
}

// Close closes the socket.
func (d *SockDiag) Close() error { return d.file.Close() }

// Inet returns the sockets of a query. Where the kernel cannot tell, for it has
// no inet_diag, the error is ENOENT or EOPNOTSUPP.
func (d *SockDiag) Inet(q InetQuery) (sockets []InetSocket, err error) {
	raw, err := d.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := raw.Control(func(fd uintptr) { sockets, err = d.dump(int(fd), q) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	return sockets, nil
}

// dump sends the request and reads the answers. The kernel writes them as they
// are read, so there is nothing to wait for.
func (d *SockDiag) dump(fd int, q InetQuery) ([]InetSocket, error) {
	d.seq++
	request := q.encode(d.seq)
	if err := retry(func() error {
		return unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	var sockets []InetSocket
	for {
		var n int
		if err := retry(func() (err error) {
			n, _, err = unix.Recvfrom(fd, d.buf, 0)
			return err
		}); err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		done, err := d.decode(d.buf[:n], &sockets)
		if done || err != nil {
			return sockets, err
		}
	}
}

// encode makes a request to dump (inet_diag_req_v2).
func (q InetQuery) encode(seq uint32) []byte {
	const size = unix.NLMSG_HDRLEN + diagRequestSize
	b := make([]byte, 0, size)
	b = binary.NativeEndian.AppendUint32(b, size)
	b = binary.NativeEndian.AppendUint16(b, unix.SOCK_DIAG_BY_FAMILY)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, byte(q.Family), byte(q.Protocol), 0, 0)
	states := q.States
	if states == 0 {
		states = ^uint32(0)
	}
	b = binary.NativeEndian.AppendUint32(b, states)
	b = binary.BigEndian.AppendUint16(b, q.Port)
	return b[:size]
}

// decode reads the messages of one answer. It reports whether they are the last.
func (d *SockDiag) decode(b []byte, sockets *[]InetSocket) (done bool, err error) {
	for len(b) > 0 {
		var m netlinkMessage
		if m, b, err = nextNetlinkMessage(b); err != nil {
			return true, err
		}
		switch {
		case m.seq != d.seq: // of a request that was given up
		case m.kind == unix.NLMSG_DONE, m.kind == unix.NLMSG_ERROR:
			return true, m.failure()
		case m.kind == unix.SOCK_DIAG_BY_FAMILY && len(m.body) >= diagMessageSize:
			*sockets = append(*sockets, decodeInetSocket(m.body))
		}
	}
	return false, nil
}

// decodeInetSocket reads an inet_diag_msg and its attributes.
func decodeInetSocket(b []byte) InetSocket {
	addr := netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	if b[0] == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(b[8:12]))
	}
	s := InetSocket{
		Local: netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[4:])),
		State: b[1],
		Scope: binary.NativeEndian.Uint32(b[40:]),
		UID:   binary.NativeEndian.Uint32(b[64:]),
		Inode: binary.NativeEndian.Uint32(b[68:]),
	}
	for kind, value := range netlinkAttributes(b[diagMessageSize:]) {
		if kind == skV6Only && len(value) > 0 {
			s.V6Only = value[0] != 0
		}
	}
	return s
}
