package test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// garbage COUNT puts frames on tap0, as root inside may, and prints how many the
// kernel has taken: noise behind headers that are nearly right, with and without a
// virtio-net header of its own.
var _ = testenv.Probe("garbage", func(args []string) int {
	var count int
	if _, err := fmt.Sscan(args[0], &count); err != nil {
		return report(err)
	}
	link, err := net.InterfaceByName("tap0")
	if err != nil {
		return report(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	taken := 0
	for _, header := range []int{0, 10} {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return report(err)
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, header/10); err != nil {
			return report(err)
		}
		for range count {
			frame := append(make([]byte, header), garbage(random, link)...)
			if header > 0 { // any flags, any kind of segment of any size
				frame[0], frame[1] = byte(random.IntN(4)), []byte{0, 1, 3, 4, 5, 0x81}[random.IntN(6)]
				binary.NativeEndian.PutUint16(frame[2:], uint16(random.IntN(100)))
				binary.NativeEndian.PutUint16(frame[4:], uint16(random.IntN(2000)))
				binary.NativeEndian.PutUint16(frame[6:], uint16(random.IntN(80)))
				binary.NativeEndian.PutUint16(frame[8:], uint16(random.IntN(40)))
			}
			// The kernel refuses some itself.
			if unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index}) == nil {
				taken++
			}
		}
	}
	fmt.Println(taken)
	return 0
})

// garbage is a frame to the gateway or to all. Some of its fields are right.
func garbage(random *rand.Rand, link *net.Interface) []byte {
	noise := make([]byte, 14+random.IntN(1400))
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	copy(noise, [][]byte{{0x52, 0x55, 0x0a, 0, 2, 2}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {0x33, 0x33, 0, 0, 0, 1}}[random.IntN(3)])
	copy(noise[6:], link.HardwareAddr)
	packet := noise[14:]
	gateway := mustAddr(gateway4)
	if random.IntN(2) == 0 {
		gateway = mustAddr(gateway6)
	}
	switch {
	case len(packet) < 60 || random.IntN(8) == 0:
		binary.BigEndian.PutUint16(noise[12:], []uint16{0x0800, 0x86dd, 0x0806}[random.IntN(3)])
	case gateway.Is4():
		binary.BigEndian.PutUint16(noise[12:], 0x0800)
		packet[0] = 0x45 + byte(random.IntN(3))
		size := int(packet[0]&0x0f) * 4
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		if random.IntN(2) == 0 { // no fragment
			packet[6], packet[7] = 0, 0
		}
		packet[9] = []byte{1, 6, 17}[random.IntN(3)]
		copy(packet[12:], netip.MustParseAddr("10.0.2.100").AsSlice())
		copy(packet[16:], gateway.AsSlice())
		packet[10], packet[11] = 0, 0
		sum := uint32(0)
		for i := 0; i < size; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(packet[i:]))
		}
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(packet[10:], ^uint16(sum+sum>>16))
	default:
		binary.BigEndian.PutUint16(noise[12:], 0x86dd)
		packet[0] = 0x60
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
		packet[6] = []byte{0, 6, 17, 43, 44, 58, 60}[random.IntN(7)]
		copy(packet[8:], netip.MustParseAddr("fd67:6174:656b::100").AsSlice())
		copy(packet[24:], gateway.AsSlice())
	}
	return noise
}

// Whatever root inside puts on the interface, the network goes on, and what was
// dropped is counted.
func TestGarbageOnTheInterfaceIsDroppedAndCounted(t *testing.T) {
	s := newSite(t)
	tcp := serveTCP(t, s.outside, "[::]:0", echoTCP).Port()
	udp := addrOf(serveUDP(t, s.outside, at(s.outside.Addr4, 0), echoUDP)).String()
	g := startGate(t, s.Host, "--net=slirp", "--debug", "sleep", "infinity")
	held := g.in("socat", "-", "TCP:"+at(s.outside.Addr4, int(tcp)))
	stdin, keys := newPipe(t)
	held.Stdin = stdin
	p := s.Start(t, held)
	for range 3 {
		taken := strings.TrimSpace(g.run(t, "probe", "garbage", "5000"))
		if len(taken) < 4 {
			t.Errorf("the kernel has taken %s frames of 10 000", taken)
		}
		if !g.Running() {
			t.Fatalf("the gate ended: %v", g.Wait(t))
		}
		g.run(t, "probe", "exchange", at(s.outside.Addr4, int(tcp)), "100000")
		g.run(t, "probe", "exchange", at(s.outside.Addr6, int(tcp)), "100000")
		g.run(t, "probe", "echo", udp)
		g.run(t, "ping", "-c1", "-W20", gateway4)
		g.run(t, "ping", "-c1", "-W20", gateway6)
	}
	if _, err := keys.WriteString("still here\n"); err != nil {
		t.Fatal(err)
	}
	awaitLine(t, p, "still here\n")
	p.Kill()
	p.Wait(t)
	g.Signal(signalTerm)
	r := g.Wait(t)
	refused := 0
	for field := range strings.FieldsSeq(r.Stderr) {
		if _, value, ok := strings.Cut(field, "counters.framesRefused="); ok {
			_, _ = fmt.Sscan(value, &refused)
		}
	}
	if r.Code != 128+int(signalTerm) || refused < 1000 || strings.Contains(r.Stderr, "level=ERROR") {
		t.Errorf("%d frames are counted as refused, and the gate ends with %v", refused, r)
	}
}
