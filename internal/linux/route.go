package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Routes asks the kernel by which way packets leave a network namespace, over
// NETLINK_ROUTE (rtnetlink(7)): that of the process which made the netlink socket,
// whoever uses it. It needs no privilege, and may be used concurrently.
type Routes struct {
	file *os.File

	mu  sync.Mutex // guards what is below; held over a question, whose answer is there at once
	seq uint32
	buf [routeAnswer]byte
}

// routeAnswer is more, in bytes, than the kernel says of one route.
const routeAnswer = 4096

// ErrNoRoute is wrapped by the error of NextHop, with the kernel's, where a packet would
// not leave.
var ErrNoRoute = errors.New("no route")

// NewRoutes asks over a non-blocking socket of NETLINK_ROUTE, which it owns from here
// on.
func NewRoutes(file *os.File) *Routes { return &Routes{file: file} }

// Close closes the socket.
func (r *Routes) Close() error { return r.file.Close() }

// NextHop is the router to which a packet is handed that is sent from one of the
// namespace's addresses to dst; the zero Addr where dst is a neighbour, or in the
// namespace. Both are of one family.
func (r *Routes) NextHop(src, dst netip.Addr) (via netip.Addr, err error) {
	raw, err := r.file.SyscallConn()
	if err != nil {
		return netip.Addr{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if cerr := raw.Control(func(fd uintptr) { via, err = r.ask(int(fd), src, dst) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the route from %v to %v: %w", src, dst, err)
	}
	return via, nil
}

// ask sends the question and reads the answer, which the kernel has written by then.
func (r *Routes) ask(fd int, src, dst netip.Addr) (netip.Addr, error) {
	r.seq++
	question := encodeRouteQuestion(r.buf[:0], r.seq, src, dst)
	if err := retry(func() error {
		return unix.Sendto(fd, question, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); err != nil {
		return netip.Addr{}, os.NewSyscallError("sendto", err)
	}
	for {
		var n int
		if err := retry(func() (err error) {
			n, _, err = unix.Recvfrom(fd, r.buf[:], unix.MSG_DONTWAIT)
			return err
		}); err != nil {
			return netip.Addr{}, os.NewSyscallError("recvfrom", err)
		}
		m, _, err := nextNetlinkMessage(r.buf[:n])
		switch {
		case err != nil:
			return netip.Addr{}, err
		case m.seq != r.seq: // of a question that was given up
		case m.kind == unix.NLMSG_ERROR:
			return netip.Addr{}, fmt.Errorf("%w: %w", ErrNoRoute, m.failure())
		case m.kind == unix.RTM_NEWROUTE && len(m.body) >= unix.SizeofRtMsg:
			return decodeNextHop(m.body), nil
		default:
			return netip.Addr{}, unix.EBADMSG
		}
	}
}

// encodeRouteQuestion makes an RTM_GETROUTE (struct rtmsg, RTA_SRC and RTA_DST).
func encodeRouteQuestion(b []byte, seq uint32, src, dst netip.Addr) []byte {
	family, bits := byte(unix.AF_INET), byte(32)
	if dst.Is6() {
		family, bits = unix.AF_INET6, 128
	}
	attribute := uint16(unix.SizeofRtAttr + bits/8)
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+unix.SizeofRtMsg+2*attribute))
	b = binary.NativeEndian.AppendUint16(b, unix.RTM_GETROUTE)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, bits, bits, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	for _, a := range [...]struct {
		kind uint16
		addr netip.Addr
	}{{unix.RTA_SRC, src}, {unix.RTA_DST, dst}} {
		b = binary.NativeEndian.AppendUint16(b, attribute)
		b = binary.NativeEndian.AppendUint16(b, a.kind)
		b = append(b, a.addr.AsSlice()...)
	}
	return b
}

// decodeNextHop reads RTA_GATEWAY of an RTM_NEWROUTE.
func decodeNextHop(b []byte) netip.Addr {
	for kind, value := range netlinkAttributes(b[unix.SizeofRtMsg:]) {
		if kind == unix.RTA_GATEWAY {
			via, _ := netip.AddrFromSlice(value)
			return via
		}
	}
	return netip.Addr{}
}
