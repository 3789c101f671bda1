package slirp

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestDescriptorsAreLeft(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	all, own := int(limit.Cur), newDescriptors()
	if left := all - own.end; left < 1 || left > all/8 || left > spareDescriptors {
		t.Errorf("of %d, %d are left", all, left)
	}
	fd, err := unix.Open("/dev/null", unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]descriptors{"no bound": {}, "those of this process": own, "a bound behind it": {fd + 1}} {
		if got, err := d.take(fd, nil); got != fd || err != nil {
			t.Errorf("%s: got %d, %v", name, got, err)
		}
	}
	if got, err := (descriptors{fd}).take(fd, nil); got != -1 || !noDescriptors(err) {
		t.Errorf("the last: got %d, %v", got, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("it is open still: %v", err)
	}
	if got, err := own.take(-1, unix.EACCES); got != -1 || err != unix.EACCES {
		t.Errorf("an error: got %d, %v", got, err)
	}
}

// Whatever the namespace opens finds none where only those are left that are not for it,
// and comes again.
func TestNoFlowTakesTheLastDescriptors(t *testing.T) {
	options := all
	options.Upstreams = []netip.AddrPort{listenUDP(t, "127.0.0.1:0", echoUDP)}
	r := newRig(t, rigOptions{Options: options, bare: true, tweak: func(e *engine) { e.egress.descriptors.end = 1 }})
	r.introduce()
	from, dns := netip.AddrPortFrom(childIPv4, 4000), netip.AddrPortFrom(r.net.subnets[0].dns, dnsPort)
	server := r.gateway(listen(t, "127.0.0.1:0", func(*net.TCPConn) { t.Error("connected") }))
	for _, frame := range [][]byte{
		synFrame(from, server),
		synFrame(from, dns),
		udpFrame(from, r.gateway(server), "x"),
		udpFrame(from, dns, string(query(t, 9, "a.example."))),
	} {
		r.send(frame, vnetHeader{})
	}
	testenv.Until(t, "all to be turned away", func() bool {
		c := r.e.counters()
		return c.DialsTurnedAway == 2 && c.UDP.Dropped == 1 && c.QueriesDropped == 1
	})
	r.send(arpRequest(r.net.subnets[0].gateway), vnetHeader{})
	r.next(func(f []byte) bool {
		first := header.Ethernet(f).Type() == header.ARPProtocolNumber
		if !first {
			t.Errorf("something is said: %x", f)
		}
		return first
	})
}
