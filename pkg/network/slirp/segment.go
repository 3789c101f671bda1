package slirp

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/pkg/network/slirp/tcp"
)

// envelope is what all segments of a connection to the namespace have in common: the
// device, and the headers of Ethernet and IP but for lengths.
type envelope struct {
	writer   *datagramWriter
	from, to uint16 // ports
	head     [ethernetSize + header.IPv6MinimumSize]byte
	size     uint8  // of head
	sum      uint16 // of the pseudo-header without a length
	ipSum    uint16 // of the IPv4 header without length and number
}

// newEnvelope returns the envelope for what goes to an Ethernet address.
func newEnvelope(w *datagramWriter, mac macAddr, from, to netip.AddrPort) envelope {
	e := envelope{writer: w, from: from.Port(), to: to.Port()}
	out := outgoing{to: mac, src: from.Addr(), dst: to.Addr(), proto: header.TCPProtocolNumber, ttl: ownTTL}
	e.size = uint8(w.putIP(e.head[:], &out, 0, fragment{}))
	e.sum = header.PseudoHeaderChecksum(header.TCPProtocolNumber, toAddress(from.Addr()), toAddress(to.Addr()), 0)
	if !e.isIPv6() {
		ip := e.head[ethernetSize:e.size]
		clear(ip[2:4])
		clear(ip[10:12])
		// A narrower link inside is to say so (complaint), for fragments cost more than
		// smaller segments.
		ip[6] = uint8(header.IPv4FlagDontFragment << 5)
		e.ipSum = checksum.Checksum(ip, 0)
	}
	return e
}

func (e *envelope) isIPv6() bool { return e.size == ethernetSize+header.IPv6MinimumSize }

// send sends a segment. Where the device has a virtio-net header, the kernel on its other
// side cuts the payload and takes its checksum for granted, since it never leaves the
// machine; else both are done here. What is lost is counted by the device.
func (e *envelope) send(h *tcp.Header, payload []byte) {
	dev := e.writer.dev
	if dev.vnet || len(payload) <= int(h.MSS) {
		e.sendFrame(dev, h, payload)
		return
	}
	flags := h.Flags
	for len(payload) > 0 {
		n := min(len(payload), int(h.MSS))
		h.Flags = flags
		if n < len(payload) {
			h.Flags &^= tcp.FIN | tcp.PSH // which are the last's
		}
		e.sendFrame(dev, h, payload[:n])
		h.Seq += uint32(n)
		payload = payload[n:]
	}
}

// sendFrame sends a segment in one frame.
func (e *envelope) sendFrame(dev *device, h *tcp.Header, payload []byte) {
	f := dev.frame()
	n := copy(f.headers[:], e.head[:e.size])
	segment := f.headers[n:]
	segment = segment[:h.Put(segment, e.from, e.to)]
	e.putLength(f.headers[ethernetSize:n], len(segment)+len(payload))
	sum := checksum.Combine(e.sum, uint16(len(segment)+len(payload)))
	if dev.vnet {
		v := vnetHeader{flags: vnetNeedsChecksum, headerLen: uint16(n + len(segment)), checksumStart: uint16(n), checksumOffset: tcp.ChecksumOffset}
		if len(payload) > int(h.MSS) {
			v.segmentSize, v.segmentType = h.MSS, vnetSegmentTCPv4
			if e.isIPv6() {
				v.segmentType = vnetSegmentTCPv6
			}
		}
		dev.begin(f, v)
	} else {
		sum = ^checksum.Checksum(payload, checksum.Checksum(segment, sum))
	}
	binary.BigEndian.PutUint16(segment[tcp.ChecksumOffset:], sum)
	f.append(f.headers[:n+len(segment)])
	f.append(payload)
	_ = dev.send(f)
}

// putLength puts the length of what follows into the IP header, and with IPv4 the
// packet's number and the checksum.
func (e *envelope) putLength(ip []byte, length int) {
	if e.isIPv6() {
		binary.BigEndian.PutUint16(ip[4:], uint16(length))
		return
	}
	total, id := uint16(len(ip)+length), uint16(e.writer.lastID.Add(1))
	binary.BigEndian.PutUint16(ip[2:], total)
	binary.BigEndian.PutUint16(ip[4:], id)
	binary.BigEndian.PutUint16(ip[10:], ^checksum.Combine(e.ipSum, checksum.Combine(total, id)))
}
