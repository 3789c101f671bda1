package slirp

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// A table that overflows is told of once, and counted each time.
func TestAnOverflowIsToldOfOnceInAWhile(t *testing.T) {
	var log bytes.Buffer
	var o overflow
	o.add()
	o.tell() // without words
	o.say(slog.New(slog.NewTextHandler(&log, nil)), "too many of them", 7)
	for range 3 {
		o.add()
		o.tell()
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `msg="too many of them" times=2 limit=7`) {
		t.Errorf("logged:\n%s", got)
	}
	o.next.Store(0) // ten minutes later
	o.tell()
	if got := log.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "times=4") {
		t.Errorf("logged ten minutes later:\n%s", got)
	}
	o.next.Store(0)
	o.tell() // nothing is new
	if got := log.String(); strings.Count(got, "\n") != 2 {
		t.Errorf("logged with no news:\n%s", got)
	}
}

// Whatever is sent in vain is in a counter, and the user is told of what was too
// much.
func TestWhatIsLostIsCounted(t *testing.T) {
	var log bytes.Buffer
	o := all
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r := newRig(t, rigOptions{Options: o, bare: true, tweak: func(e *engine) { e.udp.limit = 1 }})
	r.introduce()
	// A frame is counted when it was dealt with, which is after its answer.
	seen := func(n uint64) func() bool {
		return func() bool { c := r.e.counters(); return c.FramesAccepted+c.FramesRefused == n }
	}
	testenv.Until(t, "the two of the introduction to be counted", seen(2))
	before := r.e.counters()
	server := listenUDP(t, "127.0.0.1:0", echoUDP)
	from := netip.AddrPortFrom(childIPv4, 4000)
	for range 3 { // of which two make room
		from = netip.AddrPortFrom(childIPv4, from.Port()+1)
		r.send(udpFrame(from, r.gateway(server), "x"), vnetHeader{})
	}
	r.send(udpFrame(from, netip.AddrPortFrom(r.net.subnets[0].dns, dnsPort), "no query"), vnetHeader{})
	r.send(udpFrame(from, netip.AddrPortFrom(r.net.subnets[0].dns, 9), "nobody"), vnetHeader{})
	r.send([]byte("no frame at all"), vnetHeader{})
	fragment := changed(udpFrame(from, r.gateway(server), "12345678"), func(ip []byte) { ip[6] = 0x20 })
	r.send(changed(fragment, func(ip []byte) { ip[6], ip[7] = 0x3f, 0xff }), vnetHeader{})  // ends beyond 64 KiB
	r.send(withTTL(udpFrame(from, netip.AddrPortFrom(worldIPv4, 9), "x"), 1), vnetHeader{}) // the last, which is answered
	r.next(isICMPv4(11))
	testenv.Until(t, "all to be counted", seen(2+8))
	got := r.e.counters()
	for name, n := range map[string][2]uint64{
		"frames accepted":   {got.FramesAccepted - before.FramesAccepted, 7},
		"frames refused":    {got.FramesRefused - before.FramesRefused, 1},
		"packets refused":   {got.PacketsRefused - before.PacketsRefused, 1},
		"flows evicted":     {got.UDP.Evicted, 2},
		"flows open":        {uint64(got.UDP.Open), 1},
		"datagrams refused": {got.UDP.Refused, 1},
		"queries dropped":   {got.QueriesDropped, 1},
	} {
		if n[0] != n[1] {
			t.Errorf("%s: %d, want %d", name, n[0], n[1])
		}
	}
	r.stop()
	if err := <-r.errs; err != nil {
		t.Error(err)
	}
	r.errs <- nil
	if !strings.Contains(log.String(), "too many UDP flows") {
		t.Errorf("logged:\n%s", log.String())
	}
	text := slog.AnyValue(got).Resolve().String()
	if !strings.Contains(text, "udp=[open=1 evicted=2 refused=1") || strings.Contains(text, "echo") {
		t.Errorf("in a log it is %s", text)
	}
}
