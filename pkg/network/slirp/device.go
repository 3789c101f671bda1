package slirp

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/network/slirp/tcp"
)

// device is the TAP as the engine sees it: frames in and out, each with the
// header that says which of its work is left to the other side. It owns the
// file. One goroutine reads, where a loop says that there is something to read;
// any number write.
//
// A frame has two parts here, the virtio-net header and the rest, because the
// rest of the largest frame (Ethernet header and an MTU of 65520) just fits a
// pooled buffer of 64 KiB.
type device struct {
	file *os.File
	fd   int

	// vnet says whether frames begin with a virtio-net header. Without it the
	// kernel on the other side neither takes nor gives unfinished checksums and
	// segments larger than the MTU.
	vnet bool

	// in is what the reader fills; it is the reader's alone.
	in struct {
		header [vnetHeaderSize]byte
		iovs   [2]unix.Iovec
	}
	out     sync.Pool // of *frameOut
	sent    atomic.Uint64
	dropped atomic.Uint64
}

// frameOut is the memory for one write.
type frameOut struct {
	header  [vnetHeaderSize]byte
	headers [maxFrameHeaders]byte
	iovs    []unix.Iovec
}

// maxFrameHeaders is room for all headers of a frame that we make: the largest are
// those of a TCP segment with all options, and of an ICMPv6 error (Ethernet, IPv6,
// ICMPv6) with the IPv6 and transport headers that it quotes.
const maxFrameHeaders = max(14+40+tcp.MaxHeaderSize, 14+40+8+40+8)

// maxFrame is the size of the largest frame without the virtio-net header.
const maxFrame = 64 << 10

// newDevice takes a TAP or, in tests, one end of a pair of datagram sockets.
func newDevice(file *os.File, vnet bool) (*device, error) {
	d := &device{file: file, vnet: vnet}
	d.out.New = func() any { return &frameOut{iovs: make([]unix.Iovec, 0, 8)} }
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", file.Name(), err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { d.fd, failed = int(fd), unix.SetNonblock(int(fd), true) }); err != nil || failed != nil {
		return nil, fmt.Errorf("use %s: %w", file.Name(), cmp.Or(err, failed))
	}
	return d, nil
}

// read takes a frame, puts it into buf and returns its header and length. The
// error is EAGAIN when there is none, EBADFD when the interface was deleted, and
// io.EOF at a test's end.
func (d *device) read(buf []byte) (vnetHeader, int, error) {
	d.in.iovs[0].Base = &d.in.header[0]
	d.in.iovs[0].SetLen(vnetHeaderSize)
	d.in.iovs[1].Base = &buf[0]
	d.in.iovs[1].SetLen(len(buf))
	iovs := d.in.iovs[:]
	if !d.vnet {
		iovs = iovs[1:]
	}
	n, errno := linux.ReadvNonblock(d.fd, iovs)
	switch {
	case errno != 0:
		return vnetHeader{}, 0, errno
	case n == 0:
		return vnetHeader{}, 0, io.EOF
	case !d.vnet:
		return vnetHeader{}, n, nil
	}
	// A frame shorter than the header comes from no TAP, but from a test.
	return parseVnetHeader(d.in.header), max(0, n-vnetHeaderSize), nil
}

// close closes the TAP, which ends the interface. Nobody may use it any more.
func (d *device) close() error { return d.file.Close() }

// frame returns the memory for one write, to be given to send.
func (d *device) frame() *frameOut { return d.out.Get().(*frameOut) }

// append adds a piece to the frame. The piece is kept until send.
func (f *frameOut) append(p []byte) {
	if len(p) == 0 {
		return
	}
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	f.iovs = append(f.iovs, iov)
}

// begin starts a frame with its header.
func (d *device) begin(f *frameOut, h vnetHeader) {
	if d.vnet {
		h.put(&f.header)
		f.append(f.header[:])
	}
}

// send writes the frame and gives its memory back. A frame that the device does
// not take is lost, as on any wire, and counted.
func (d *device) send(f *frameOut) error {
	_, errno := linux.WritevNonblock(d.fd, f.iovs)
	clear(f.iovs)
	f.iovs = f.iovs[:0]
	d.out.Put(f)
	if errno != 0 {
		d.dropped.Add(1)
		return errno
	}
	d.sent.Add(1)
	return nil
}

// newTAP takes the TAP that Setup has made.
func newTAP(file *os.File) (*device, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", file.Name(), err)
	}
	var vnet bool
	if err := raw.Control(func(fd uintptr) { vnet = linux.TAPHasHeader(int(fd)) }); err != nil {
		return nil, fmt.Errorf("use %s: %w", file.Name(), err)
	}
	return newDevice(file, vnet)
}
