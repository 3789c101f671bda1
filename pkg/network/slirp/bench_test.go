package slirp

import (
	"io"
	"net"
	"net/netip"
	"testing"
)

// The steady state of UDP allocates nothing for a datagram: out through a frame
// to the host's socket, and back.
func BenchmarkUDPRoundTrip(b *testing.B) {
	r := newRig(b, rigOptions{Options: all, bare: true})
	server := listenUDP(b, "127.0.0.1:0", echoUDP)
	var head [vnetHeaderSize]byte
	frame := append(head[:], udpFrame(netip.AddrPortFrom(childIPv4, 4000), r.gateway(server), string(make([]byte, 1200)))...)
	buf := make([]byte, maxFrame)
	b.ReportAllocs()
	b.SetBytes(2 * 1200)
	for b.Loop() {
		r.wire.Write(frame)
		if _, err := r.wire.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// The inspector sees each frame of a stream.
func BenchmarkInspect(b *testing.B) {
	in := testInspector(b)
	frame := synFrame(netip.AddrPortFrom(childIPv4, 4000), netip.AddrPortFrom(worldIPv4, 80))
	var f finding
	b.ReportAllocs()
	for b.Loop() {
		if in.inspect(frame, vnetHeader{flags: vnetNeedsChecksum}, &f) != toTCP {
			b.Fatal("dropped")
		}
	}
}

// A stream from the guest's stack to the host and back to another guest: all of
// the engine but the kernel's TAP. Each operation is 64 KiB.
func BenchmarkTCPStream(b *testing.B) {
	r := newRig(b, rigOptions{Options: all})
	server := listen(b, "127.0.0.1:0", func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	c, err := r.dial(r.gateway(server))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	chunk := make([]byte, 64<<10)
	b.ReportAllocs()
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := c.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
}

// A connection from SYN to both ends closed.
func BenchmarkTCPConnect(b *testing.B) {
	r := newRig(b, rigOptions{Options: all})
	server := listen(b, "127.0.0.1:0", echoTCP)
	msg := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		c, err := r.dial(r.gateway(server))
		if err != nil {
			b.Fatal(err)
		}
		c.Write(msg)
		if _, err := io.ReadFull(c, msg); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
