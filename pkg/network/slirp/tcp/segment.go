package tcp

import "encoding/binary"

// Flags of a segment (RFC 9293, 3.1).
const (
	FIN uint8 = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// HeaderSize is the size of a header without options, MaxHeaderSize with all of them.
const (
	HeaderSize    = 20
	MaxHeaderSize = 60
)

// ChecksumOffset is where the checksum lies in a header.
const ChecksumOffset = 16

// Kinds of options (RFC 9293, 3.2; RFC 7323; RFC 2018).
const (
	optionEnd       = 0
	optionNone      = 1
	optionMSS       = 2
	optionScale     = 3
	optionSACKWell  = 4
	optionSACK      = 5
	maxSACKBlocks   = 4
	sizeMSS         = 4
	sizeScale       = 3
	sizeSACKWell    = 2
	optionStamps    = 8
	sizeStamps      = 10
	roomForStamps   = 12 // with what aligns them
	sizeOfSACKBlock = 8
	maxScale        = 14 // RFC 7323, 2.3
)

// Segment is a segment of the peer.
type Segment struct {
	Seq, Ack uint32
	Flags    uint8
	Window   uint16
	Options  []byte
	Payload  []byte
}

// Parse reads a segment, which has a whole header.
func (s *Segment) Parse(p []byte) {
	size := int(p[12]>>4) * 4
	s.Seq, s.Ack = binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint32(p[8:])
	s.Flags = p[13]
	s.Window = binary.BigEndian.Uint16(p[14:])
	s.Options, s.Payload = p[HeaderSize:size], p[size:]
}

// Opens says whether a segment asks for a connection.
func (s *Segment) Opens() bool { return s.Flags&(SYN|ACK|RST) == SYN }

// length is how many sequence numbers a segment takes.
func (s *Segment) length() uint32 {
	n := uint32(len(s.Payload))
	if s.Flags&SYN != 0 {
		n++
	}
	if s.Flags&FIN != 0 {
		n++
	}
	return n
}

// offer is what a SYN says of its sender.
type offer struct {
	mss   uint16 // 0 is not said
	scale int8   // -1 is not said
	sack  bool

	stamps bool
	stamp  uint32 // the sender's clock
	echo   uint32 // what it has of the other's
}

// option is the value of an option; nil is none. What is broken ends them.
func (s *Segment) option(kind uint8) []byte {
	for p := s.Options; len(p) > 0 && p[0] != optionEnd; {
		if p[0] == optionNone {
			p = p[1:]
			continue
		}
		if len(p) < 2 || p[1] < 2 || int(p[1]) > len(p) {
			break
		}
		if p[0] == kind {
			return p[2:p[1]]
		}
		p = p[p[1]:]
	}
	return nil
}

// offer reads the options of a SYN.
func (s *Segment) offer() offer {
	o := offer{scale: -1}
	if v := s.option(optionMSS); len(v) == sizeMSS-2 {
		o.mss = binary.BigEndian.Uint16(v)
	}
	if v := s.option(optionScale); len(v) == sizeScale-2 {
		o.scale = int8(min(v[0], maxScale))
	}
	if v := s.option(optionSACKWell); v != nil && len(v) == sizeSACKWell-2 {
		o.sack = true
	}
	o.stamp, o.echo, o.stamps = s.stamp()
	return o
}

// stamp is the peer's clock in a segment of an open connection, and what it has of ours.
func (s *Segment) stamp() (value, echo uint32, ok bool) {
	v := s.Options
	if len(v) >= roomForStamps && v[0] == optionNone && v[1] == optionNone && v[2] == optionStamps && v[3] == sizeStamps {
		v = v[4:roomForStamps] // as all kernels write it (RFC 7323, appendix A)
	} else {
		v = s.option(optionStamps)
	}
	if len(v) != sizeStamps-2 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(v), binary.BigEndian.Uint32(v[4:]), true
}

// Header is that of a segment of ours, but for the ports.
type Header struct {
	Seq, Ack uint32
	Flags    uint8
	Window   uint16

	// MSS is how many bytes of the payload the peer takes in one piece.
	MSS uint16

	options [MaxHeaderSize - HeaderSize]byte
	size    int // of options
}

// Put writes the header, without a checksum, to b, which has room for MaxHeaderSize
// bytes, and returns its size.
func (h *Header) Put(b []byte, source, destination uint16) int {
	size := HeaderSize + h.size
	binary.BigEndian.PutUint16(b, source)
	binary.BigEndian.PutUint16(b[2:], destination)
	binary.BigEndian.PutUint32(b[4:], h.Seq)
	binary.BigEndian.PutUint32(b[8:], h.Ack)
	b[12], b[13] = uint8(size/4)<<4, h.Flags
	binary.BigEndian.PutUint16(b[14:], h.Window)
	clear(b[ChecksumOffset:HeaderSize]) // and the urgent pointer
	copy(b[HeaderSize:], h.options[:h.size])
	return size
}

// add appends an option, after what aligns its numbers.
func (h *Header) add(option ...byte) {
	for (h.size+len(option))%4 != 0 {
		h.options[h.size] = optionNone
		h.size++
	}
	h.size += copy(h.options[h.size:], option)
}

// offer appends the options of a SYN.
func (h *Header) offer(o offer) {
	h.add(optionMSS, sizeMSS, uint8(o.mss>>8), uint8(o.mss))
	if o.sack {
		h.add(optionSACKWell, sizeSACKWell)
	}
	if o.stamps {
		h.addStamps(o.stamp, o.echo)
	}
	if o.scale >= 0 {
		h.add(optionScale, sizeScale, uint8(o.scale))
	}
}

// addStamps appends our clock, and what we have of the peer's.
func (h *Header) addStamps(stamp, echo uint32) {
	b := [sizeStamps]byte{optionStamps, sizeStamps}
	binary.BigEndian.PutUint32(b[2:], stamp)
	binary.BigEndian.PutUint32(b[6:], echo)
	h.add(b[:]...)
}

// span is a range of sequence numbers, to the one before to.
type span struct{ from, to uint32 }

// holds says whether a number is within.
func (s span) holds(seq uint32) bool { return seq-s.from < s.to-s.from }

// grow makes it reach as far as another that begins in it or right behind it.
func (s *span) grow(other span) {
	if int32(other.to-s.to) > 0 {
		s.to = other.to
	}
}

// addSACK appends what has come before its turn.
func (h *Header) addSACK(blocks []span) {
	var option [2 + maxSACKBlocks*sizeOfSACKBlock]byte
	b := option[:2]
	for _, s := range blocks {
		b = binary.BigEndian.AppendUint32(b, s.from)
		b = binary.BigEndian.AppendUint32(b, s.to)
	}
	b[0], b[1] = optionSACK, uint8(len(b))
	h.add(b...)
}

// Refusal is the answer to a segment that belongs to no connection (RFC 9293, 3.10.7.1).
// It is false for a reset, which has none.
func Refusal(s *Segment) (Header, bool) {
	switch {
	case s.Flags&RST != 0:
		return Header{}, false
	case s.Flags&ACK != 0:
		return Header{Seq: s.Ack, Flags: RST}, true
	}
	return Header{Ack: s.Seq + s.length(), Flags: RST | ACK}, true
}
