package linux

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// netlinkMessage is a message of netlink(7).
type netlinkMessage struct {
	kind uint16
	seq  uint32
	body []byte
}

// nextNetlinkMessage takes the first message off b.
func nextNetlinkMessage(b []byte) (m netlinkMessage, rest []byte, err error) {
	if len(b) < unix.NLMSG_HDRLEN {
		return m, nil, unix.EBADMSG
	}
	length := int(binary.NativeEndian.Uint32(b))
	if length < unix.NLMSG_HDRLEN || length > len(b) {
		return m, nil, unix.EBADMSG
	}
	m = netlinkMessage{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.NLMSG_HDRLEN:length]}
	return m, b[min(len(b), (length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):], nil
}

// failure is what an NLMSG_ERROR or NLMSG_DONE says; nil for success.
func (m netlinkMessage) failure() error {
	if len(m.body) >= 4 {
		if code := int32(binary.NativeEndian.Uint32(m.body)); code < 0 {
			return unix.Errno(-code)
		}
	}
	return nil
}

// netlinkAttributes are the attributes at the end of a message (rtnetlink(7)), up to
// one that is not whole.
func netlinkAttributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(kind uint16, value []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.SizeofRtAttr || length > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:]), b[unix.SizeofRtAttr:length]) {
				return
			}
			b = b[min(len(b), (length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
		}
	}
}
