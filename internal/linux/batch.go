package linux

import (
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Endpoint is the other end of a datagram: an address, a port and, for
// link-local IPv6, the interface that the address is on. It is comparable and
// making one allocates nothing.
type Endpoint struct {
	Addr  netip.Addr // without a zone
	Port  uint16
	Scope uint32 // an interface index; 0 for none
}

// Arrival says where a datagram came from and, on a socket that asks for it
// (BindUDP), to which of the host's addresses. It is comparable.
type Arrival struct {
	Peer  Endpoint
	Local Endpoint // no port; no address where the socket does not ask
}

// Batch receives datagrams with one call and sends them on, out of the same
// memory, with another (recvmmsg(2), sendmmsg(2)). It is for one goroutine.
// Nothing is allocated after the first few calls.
//
// A run of datagrams of one size goes through the network stack as one packet,
// which the kernel cuts up where it arrives or leaves the host (UDP_SEGMENT,
// udp(7)). That halves the cost of a run of 1200 bytes each. Where the kernel
// does not take a run so, for one is larger than the route's MTU, it goes as it
// came. A socket that asks for it (JoinDatagrams) is given such runs as they
// are, in one message, and they go on uncut. A Batch tells of datagrams alone.
type Batch struct {
	// Of the messages that are received: each has size bytes of the buffer.
	headers  []mmsghdr
	iovs     []unix.Iovec
	names    []sockaddr
	controls []received
	buffer   []byte
	size     int

	datagrams []datagram // of the last Receive

	// Of the messages that are sent.
	outHeaders []mmsghdr
	outIovs    []unix.Iovec

	// to and from are what all datagrams of one Send have in common. segment is
	// from with the size of the datagrams of a run.
	to      sockaddr
	from    control
	segment [2]control
}

// datagram is one of a message, or all of it: length bytes of the buffer from at.
type datagram struct{ message, at, length int }

// Limits of a run: how many datagrams are worth it, how many the kernel takes
// (UDP_MAX_SEGMENTS), and their size in all, less than any datagram may have.
const (
	minRun      = 4
	maxRun      = 64
	maxRunBytes = 65000
)

// control holds one control message, of which an in6_pktinfo is the largest.
type control struct {
	unix.Cmsghdr
	data [24]byte
}

// received holds the control messages of a message: one to three, of 40 bytes at
// most.
type received [16]uint64

// find is the first control message of length bytes for which match is true, nil
// without one.
func (r *received) find(length int, match func(level, kind int32) bool) *control {
	const last = int(unsafe.Sizeof(*r) - unsafe.Sizeof(control{}))
	for at := 0; at+unix.SizeofCmsghdr <= length && at <= last; {
		c := (*control)(unsafe.Add(unsafe.Pointer(r), at))
		if match(c.Level, c.Type) {
			return c
		}
		if int(c.Len) < unix.SizeofCmsghdr {
			break
		}
		at += unix.CmsgSpace(int(c.Len) - unix.CmsgLen(0))
	}
	return nil
}

// JoinDatagrams has the kernel hand over runs of datagrams of one sender as one
// message (UDP_GRO, udp(7)). It is for sockets that only a Batch reads. Before
// Linux 5.0 it does nothing.
func JoinDatagrams(fd int) error {
	errno := setInt(fd, sockopt{unix.SOL_UDP, unix.UDP_GRO, 1})
	if errno == 0 || errno == unix.ENOPROTOOPT {
		return nil
	}
	return os.NewSyscallError("setsockopt(UDP_GRO)", errno)
}

// NewBatch makes room for n messages of up to size bytes: datagrams or, on a
// socket that joins them, runs of maxRun at most.
func NewBatch(n, size int) *Batch {
	b := &Batch{
		headers:    make([]mmsghdr, n),
		iovs:       make([]unix.Iovec, n),
		names:      make([]sockaddr, n),
		controls:   make([]received, n),
		buffer:     make([]byte, n*size),
		size:       size,
		datagrams:  make([]datagram, 0, n),
		outHeaders: make([]mmsghdr, n),
		outIovs:    make([]unix.Iovec, max(n, maxRun)),
	}
	for i := range b.headers {
		b.iovs[i].Base = &b.buffer[i*size]
		b.headers[i].hdr.Iov = &b.iovs[i]
		b.headers[i].hdr.SetIovlen(1)
	}
	return b
}

// Receive takes as many messages as are queued at fd and there is room for,
// without waiting, and returns how many datagrams they hold.
func (b *Batch) Receive(fd int) (int, error) {
	for i := range b.headers {
		h := &b.headers[i].hdr
		b.iovs[i].SetLen(b.size)
		h.Name, h.Namelen = &b.names[i][0], unix.SizeofSockaddrInet6
		h.Control = (*byte)(unsafe.Pointer(&b.controls[i]))
		h.SetControllen(int(unsafe.Sizeof(received{})))
	}
	b.datagrams = b.datagrams[:0]
	n, err := b.call(unix.SYS_RECVMMSG, fd, b.headers)
	for i := range n {
		b.divide(i)
	}
	return len(b.datagrams), err
}

// divide tells of the datagrams of message i: all of one size, but for the last,
// which may be smaller.
func (b *Batch) divide(i int) {
	d := datagram{i, i * b.size, int(b.headers[i].len)}
	end := d.at + d.length
	if c := b.find(i, isSegmentSize); c != nil {
		if size := int(binary.NativeEndian.Uint32(c.data[:4])); size > 0 && size < d.length {
			d.length = size
		}
	}
	for d.at+d.length < end {
		b.datagrams = append(b.datagrams, d)
		d.at += d.length
	}
	d.length = end - d.at
	b.datagrams = append(b.datagrams, d)
}

// find is a control message of message i.
func (b *Batch) find(i int, match func(level, kind int32) bool) *control {
	return b.controls[i].find(int(b.headers[i].hdr.Controllen), match)
}

func isSegmentSize(level, kind int32) bool { return level == unix.SOL_UDP && kind == unix.UDP_GRO }

func isPacketInfo(level, kind int32) bool {
	return level == unix.SOL_IP && kind == unix.IP_PKTINFO || level == unix.SOL_IPV6 && kind == unix.IPV6_PKTINFO
}

// Data is the payload of datagram i of the last Receive, valid until the next.
func (b *Batch) Data(i int) []byte {
	d := b.datagrams[i]
	return b.buffer[d.at:][:d.length]
}

// Arrival says where datagram i of the last Receive came from.
func (b *Batch) Arrival(i int) Arrival {
	message := b.datagrams[i].message
	a := Arrival{Peer: decodeEndpoint(&b.names[message])}
	c := b.find(message, isPacketInfo)
	switch {
	case c == nil:
	case c.Level == unix.SOL_IP:
		// ipi_spec_dst: the local address to answer from, also where the
		// datagram was sent to a broadcast address.
		a.Local.Addr = netip.AddrFrom4([4]byte(c.data[4:8]))
	default:
		a.Local.Addr = netip.AddrFrom16([16]byte(c.data[:16]))
		if a.Local.Addr.IsMulticast() { // not an address to answer from
			a.Local.Addr = netip.IPv6Unspecified()
		}
		if a.Peer.Addr.IsLinkLocalUnicast() {
			a.Local.Scope = binary.NativeEndian.Uint32(c.data[16:20])
		}
	}
	return a
}

// TTL is the time to live of datagram i of the last Receive, on a socket that
// asks for it (AskForErrors); otherwise 0.
func (b *Batch) TTL(i int) uint8 {
	c := b.find(b.datagrams[i].message, isTTL)
	if c == nil {
		return 0
	}
	return uint8(binary.NativeEndian.Uint32(c.data[:4]))
}

// Send sends the datagrams first to last-1 of the last Receive on fd, which is
// connected, and returns how many went before the error.
func (b *Batch) Send(fd, first, last int) (int, error) {
	return b.send(fd, first, last, unix.Msghdr{})
}

// Answer sends the datagrams first to last-1 of the last Receive on fd to where
// a came from, and from the address that it was sent to.
func (b *Batch) Answer(fd, first, last int, a Arrival) (int, error) {
	h := unix.Msghdr{Name: &b.to[0], Namelen: encodeEndpoint(&b.to, a.Peer)}
	if length := b.from.encode(a.Local); length > 0 {
		h.Control = (*byte)(unsafe.Pointer(&b.from))
		h.SetControllen(length)
	}
	return b.send(fd, first, last, h)
}

// send sends datagrams, with the header that all of them have.
func (b *Batch) send(fd, first, last int, header unix.Msghdr) (int, error) {
	sent := 0
	for first+sent < last {
		n := b.run(first+sent, last)
		if n < minRun {
			break
		}
		if err := b.sendRun(fd, first+sent, n, header); err == unix.ECONNREFUSED {
			return sent, err // the answer to an earlier datagram
		} else if err != nil {
			break
		}
		sent += n
	}
	for first+sent < last {
		count := min(last-first-sent, len(b.outHeaders))
		for i := range count {
			d := b.datagrams[first+sent+i]
			header.Iov = b.out(i, d.at, d.length)
			header.SetIovlen(1)
			b.outHeaders[i] = mmsghdr{hdr: header}
		}
		n, err := b.call(unix.SYS_SENDMMSG, fd, b.outHeaders[:count])
		sent += n
		if err != nil || n < count {
			return sent, err
		}
	}
	return sent, nil
}

// out makes length bytes of the buffer, from at, what vector i is of.
func (b *Batch) out(i, at, length int) *unix.Iovec {
	v := &b.outIovs[i]
	v.Base = unsafe.SliceData(b.buffer[at:])
	v.SetLen(length)
	return v
}

// run is how many datagrams, of those from first on, are one run: all of one
// size, but for the last, which may be smaller.
func (b *Batch) run(first, last int) int {
	size := b.datagrams[first].length
	n, bytes := 0, 0
	for i := first; i < last && n < maxRun; i++ {
		length := b.datagrams[i].length
		if bytes += length; length == 0 || length > size || bytes > maxRunBytes {
			break
		}
		if n++; length < size {
			break
		}
	}
	return n
}

// sendRun sends n datagrams from first on with one message.
func (b *Batch) sendRun(fd, first, n int, message unix.Msghdr) error {
	vectors := 0
	for i := first; i < first+n; {
		d := b.datagrams[i]
		for i++; i < first+n && b.datagrams[i].message == d.message; i++ { // side by side
			d.length += b.datagrams[i].length
		}
		b.out(vectors, d.at, d.length)
		vectors++
	}
	message.Iov = &b.outIovs[0]
	message.SetIovlen(vectors)
	b.segment[0] = b.from
	size := (*control)(unsafe.Add(unsafe.Pointer(&b.segment[0]), message.Controllen))
	size.Level, size.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	size.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(size.data[:], uint16(b.datagrams[first].length))
	message.Control = (*byte)(unsafe.Pointer(&b.segment[0]))
	message.SetControllen(int(message.Controllen) + unix.CmsgSpace(2))
	for {
		_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&message)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		runtime.KeepAlive(b)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

func (b *Batch) call(number uintptr, fd int, headers []mmsghdr) (int, error) {
	for {
		n, _, errno := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(headers))),
			uintptr(len(headers)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		runtime.KeepAlive(b)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// encode makes c the packet information that chooses the source address, and
// returns its length; 0 where there is nothing to choose.
func (c *control) encode(local Endpoint) int {
	c.data = [24]byte{}
	switch {
	case !local.Addr.IsValid():
		return 0
	case local.Addr.Is4():
		c.Level, c.Type = unix.SOL_IP, unix.IP_PKTINFO
		c.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		addr := local.Addr.As4()
		copy(c.data[4:8], addr[:])
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	default:
		c.Level, c.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
		c.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
		addr := local.Addr.As16()
		copy(c.data[:16], addr[:])
		binary.NativeEndian.PutUint32(c.data[16:20], local.Scope)
		return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	}
}

// sockaddr holds a sockaddr_in or sockaddr_in6.
type sockaddr [unix.SizeofSockaddrInet6]byte

// encodeEndpoint writes a sockaddr_in or sockaddr_in6 and returns its length.
func encodeEndpoint(to *sockaddr, e Endpoint) uint32 {
	*to = sockaddr{}
	binary.BigEndian.PutUint16(to[2:], e.Port)
	if e.Addr.Is4() {
		binary.NativeEndian.PutUint16(to[:], unix.AF_INET)
		addr := e.Addr.As4()
		copy(to[4:], addr[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(to[:], unix.AF_INET6)
	addr := e.Addr.As16()
	copy(to[8:], addr[:])
	binary.NativeEndian.PutUint32(to[24:], e.Scope)
	return unix.SizeofSockaddrInet6
}

func decodeEndpoint(from *sockaddr) Endpoint {
	port := binary.BigEndian.Uint16(from[2:])
	if binary.NativeEndian.Uint16(from[:]) == unix.AF_INET {
		return Endpoint{Addr: netip.AddrFrom4([4]byte(from[4:8])), Port: port}
	}
	return Endpoint{
		Addr:  netip.AddrFrom16([16]byte(from[8:24])),
		Port:  port,
		Scope: binary.NativeEndian.Uint32(from[24:]),
	}
}
