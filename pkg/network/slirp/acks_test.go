package slirp

import (
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// segment is a segment of the stack, of a connection to port 4000.
func segment(from uint16, ack uint32, flags header.TCPFlags, options int, payload string) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.TCPMinimumSize + options,
		Payload:            buffer.MakeWithData([]byte(payload)),
	})
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	pkt.EgressRoute.LocalAddress, pkt.EgressRoute.RemoteAddress = toAddress(worldIPv4), toAddress(childIPv4)
	tcp := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize + options))
	tcp.Encode(&header.TCPFields{SrcPort: from, DstPort: 4000, AckNum: ack, DataOffset: uint8(header.TCPMinimumSize + options), Flags: flags})
	return pkt
}

func TestAcknowledgementsWaitForWhatTheyCanGoWith(t *testing.T) {
	const ack, push = header.TCPFlagAck, header.TCPFlagAck | header.TCPFlagPsh
	type wrote struct {
		from uint16
		ack  uint32
		data int
	}
	for _, test := range []struct {
		name string
		do   func(h *heldACKs, pass func(*stack.PacketBuffer))
		want []wrote
	}{
		{"an answer takes it along", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			pass(segment(1, 10, ack, 12, ""))
			pass(segment(1, 10, push, 12, "answer"))
			h.sleep()
		}, []wrote{{1, 10, 6}}},
		{"so does the end of the stream", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			pass(segment(1, 10, ack, 0, ""))
			pass(segment(1, 11, ack|header.TCPFlagFin, 0, ""))
			h.sleep()
		}, []wrote{{1, 11, 0}}},
		{"a later one says more", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			pass(segment(1, 10, ack, 0, ""))
			pass(segment(1, 20, ack, 0, ""))
			h.sleep()
		}, []wrote{{1, 20, 0}}},
		{"the same twice goes twice", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			pass(segment(1, 10, ack, 0, ""))
			pass(segment(1, 10, ack, 0, ""))
			h.sleep()
		}, []wrote{{1, 10, 0}, {1, 10, 0}}},
		{"another connection's answer does not", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			pass(segment(1, 10, ack, 0, ""))
			pass(segment(2, 10, push, 0, "answer"))
			h.sleep()
		}, []wrote{{2, 10, 6}, {1, 10, 0}}},
		{"one with SACK blocks does not wait", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			pass(segment(1, 10, ack, 24, ""))
		}, []wrote{{1, 10, 0}}},
		{"nor one after a large segment", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			h.came(smallFrame + 1)
			pass(segment(1, 10, ack, 0, ""))
		}, []wrote{{1, 10, 0}}},
		{"which counts for its round", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			h.came(smallFrame + 1)
			h.round()
			pass(segment(1, 10, ack, 0, ""))
		}, nil},
		{"nor while the loop sleeps", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			h.sleep()
			pass(segment(1, 10, ack, 0, ""))
			h.awake()
			pass(segment(1, 20, ack, 0, ""))
		}, []wrote{{1, 10, 0}}},
		{"nor for longer than a few rounds", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			pass(segment(1, 10, ack, 0, ""))
			for range maxHeldRounds {
				h.round()
			}
		}, []wrote{{1, 10, 0}}},
		{"a reset without one takes none along", func(h *heldACKs, pass func(*stack.PacketBuffer)) {
			pass(segment(1, 10, ack, 0, ""))
			pass(segment(1, 0, header.TCPFlagRst, 0, ""))
		}, []wrote{{1, 10, 0}, {1, 0, 0}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []wrote
			h := newHeldACKs(func(pkt *stack.PacketBuffer) error {
				tcp := header.TCP(pkt.TransportHeader().Slice())
				got = append(got, wrote{tcp.SourcePort(), tcp.AckNumber(), pkt.Data().Size()})
				return nil
			})
			test.do(h, func(pkt *stack.PacketBuffer) {
				if err := h.pass(pkt); err != nil {
					t.Error(err)
				}
				pkt.DecRef()
			})
			if !slices.Equal(got, test.want) {
				t.Errorf("wrote %v, want %v", got, test.want)
			}
		})
	}
}
