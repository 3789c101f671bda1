package slirp

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// vnetHeaderSize is the size of struct virtio_net_hdr (linux/virtio_net.h), in
// the byte order of the machine.
const vnetHeaderSize = 10

// Values of vnetHeader (Virtual I/O Device 1.2, 5.1.6).
const (
	vnetNeedsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	vnetDataValid     = 2 // VIRTIO_NET_HDR_F_DATA_VALID

	vnetSegmentNone  = 0
	vnetSegmentTCPv4 = 1    // VIRTIO_NET_HDR_GSO_TCPV4
	vnetSegmentTCPv6 = 4    // VIRTIO_NET_HDR_GSO_TCPV6
	vnetSegmentUDP   = 5    // VIRTIO_NET_HDR_GSO_UDP_L4
	vnetSegmentECN   = 0x80 // VIRTIO_NET_HDR_GSO_ECN
)

// vnetHeader says what is left to be done on a frame: a checksum to be finished
// from checksumStart on and put checksumOffset bytes after it, and a payload to
// be cut into segments of segmentSize. Its zero value is a complete frame.
type vnetHeader struct {
	flags          uint8
	segmentType    uint8
	headerLen      uint16
	segmentSize    uint16
	checksumStart  uint16
	checksumOffset uint16
}

// parseVnetHeader reads a header.
func parseVnetHeader(b [vnetHeaderSize]byte) vnetHeader {
	return vnetHeader{
		flags:          b[0],
		segmentType:    b[1],
		headerLen:      binary.NativeEndian.Uint16(b[2:]),
		segmentSize:    binary.NativeEndian.Uint16(b[4:]),
		checksumStart:  binary.NativeEndian.Uint16(b[6:]),
		checksumOffset: binary.NativeEndian.Uint16(b[8:]),
	}
}

// put writes the header.
func (h vnetHeader) put(b *[vnetHeaderSize]byte) {
	b[0], b[1] = h.flags, h.segmentType
	binary.NativeEndian.PutUint16(b[2:], h.headerLen)
	binary.NativeEndian.PutUint16(b[4:], h.segmentSize)
	binary.NativeEndian.PutUint16(b[6:], h.checksumStart)
	binary.NativeEndian.PutUint16(b[8:], h.checksumOffset)
}

// checksumTrusted says whether the kernel vouches for the transport checksum:
// the frame never was on a wire, or it was and the checksum was right.
func (h vnetHeader) checksumTrusted() bool {
	return h.flags&(vnetNeedsChecksum|vnetDataValid) != 0
}

// finishInner finishes a checksum that is left undone inside the payload of an IP
// packet whose transport header is at transport, and then vouches for the outer one
// no more. A tunnel of the namespace, VXLAN for one, leaves the checksums of what it
// carries to an interface that has offloads; the payload
// leaves this machine, and the header that says so does not. It returns false where
// there is no room for a checksum in the packet.
func (h *vnetHeader) finishInner(packet []byte, transport int) bool {
	start := int(h.checksumStart) - ethernetSize
	if h.flags&vnetNeedsChecksum == 0 || start <= transport {
		return true
	}
	at := start + int(h.checksumOffset)
	if at+2 > len(packet) {
		return false
	}
	sum := ^checksum.Checksum(packet[start:], 0) // of the pseudo-header, too, which is there
	if sum == 0 {
		sum = 0xffff // 0 would be none (RFC 768), and the two are the same
	}
	binary.BigEndian.PutUint16(packet[at:], sum)
	h.flags &^= vnetNeedsChecksum
	return true
}
