package slirp

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/gatekit/gatekit/internal/testenv"
)

// pace is what a socket's peer is probed at, in seconds.
type pace struct{ idle, interval int }

var everySecond = pace{1, 1}

func paceOf(t *testing.T, fd int) (p pace) {
	t.Helper()
	for option, value := range map[int]*int{unix.TCP_KEEPIDLE: &p.idle, unix.TCP_KEEPINTVL: &p.interval} {
		var err error
		if *value, err = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, option); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// relayed is the relay of a connection, which comes into being when the guest has
// it already.
func (p pair) relayed(t *testing.T, r *rig) (found *relay) {
	t.Helper()
	port := p.host.RemoteAddr().(*net.TCPAddr).AddrPort().Port()
	testenv.Until(t, "the relay of a connection", func() bool {
		for _, relay := range r.relays() {
			if localPort(relay.fd) == port {
				found = relay
			}
		}
		return found != nil
	})
	return found
}

// localPort is the port of a socket, or 0.
func localPort(fd int) uint16 {
	switch a, _ := unix.Getsockname(fd); a := a.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}

// probes has the guest probe the peer of a connection of its own when it has been
// idle for a second.
func (r *rig) probes(of net.Conn) {
	r.t.Helper()
	local, remote := of.LocalAddr().(*net.TCPAddr).AddrPort().Port(), of.RemoteAddr().(*net.TCPAddr).AddrPort().Port()
	for _, ep := range r.guest.RegisteredEndpoints() {
		ep := ep.(*tcp.Endpoint)
		here, _ := ep.GetLocalAddress()
		there, err := ep.GetRemoteAddress()
		if err != nil || here.Port != local || there.Port != remote {
			continue
		}
		idle, interval := tcpip.KeepaliveIdleOption(time.Second), tcpip.KeepaliveIntervalOption(time.Second)
		must(r.t, ep.SetSockOpt(&idle))
		must(r.t, ep.SetSockOpt(&interval))
		ep.SocketOptions().SetKeepAlive(true)
		return
	}
	r.t.Fatalf("the guest has no connection from port %d", local)
}

// The host's kernel probes as often as the guest's, whatever has gone over the
// connection before, and not less often for what becomes of it.
func TestProbesOfTheGuestAreCarried(t *testing.T) {
	before := []func(p pair){
		func(pair) {},
		func(p pair) { goes(t, p.guest, p.host) },
		func(p pair) { goes(t, p.host, p.guest) },
		func(p pair) { goes(t, p.guest, p.host); goes(t, p.host, p.guest); goes(t, p.guest, p.host) },
		func(p pair) { p.guest.CloseWrite(); p.host.Read(make([]byte, 1)) },
	}
	r := newRig(t, rigOptions{Options: all})
	var silent, probing []pair
	for _, local := range families {
		for _, f := range before {
			s, p := r.connect(local), r.connect(local)
			r.probes(p.guest)
			f(s)
			f(p)
			silent, probing = append(silent, s), append(probing, p)
		}
	}
	usual := paceOf(t, silent[0].relayed(t, r).fd)
	testenv.Until(t, "the host's sockets to be set", func() bool {
		return !slices.ContainsFunc(probing, func(p pair) bool { return paceOf(t, p.relayed(t, r).fd) != everySecond })
	})
	for i, p := range silent {
		if got := paceOf(t, p.relayed(t, r).fd); got != usual {
			t.Errorf("connection %d has no probes and is set to %v, want %v", i, got, usual)
		}
	}
	// What has been idle before its first probe is probed at the pace of those that follow.
	late := silent[1]
	r.probes(late.guest)
	testenv.Until(t, "the pace of the probes", func() bool { return paceOf(t, late.relayed(t, r).fd) == everySecond })
	// The end of the host's half has it probed as well, and not so often.
	p := probing[0]
	p.host.CloseWrite()
	p.guest.SetDeadline(time.Now().Add(patience))
	if n, err := p.guest.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	goes(t, p.guest, p.host)
	if got := paceOf(t, p.relayed(t, r).fd); got != everySecond {
		t.Errorf("after the end of the host's half it is set to %v, want %v", got, everySecond)
	}
}

// What looks like a probe may be a segment that came twice, while data flows.
func TestOnlyOfAnIdleConnectionAProbeIsCarried(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	p := r.connect("127.0.0.1:0")
	relay := p.relayed(t, r)
	usual := paceOf(t, relay.fd)
	goes(t, p.guest, p.host)
	r.isTrue(func() bool { relay.carryProbe(); return true })
	goes(t, p.guest, p.host) // with this, or before it
	goes(t, p.guest, p.host)
	if got := paceOf(t, relay.fd); got != usual {
		t.Errorf("after data it is set to %v, want %v", got, usual)
	}
}

// A service's probes of its client are carried as well.
func TestProbesOfAServiceAreCarried(t *testing.T) {
	r := newInboundRig(t, false)
	service, from := netip.AddrPortFrom(childIPv4, 80), netip.AddrPortFrom(worldIPv4, 5555)
	addr, proto := fullAddress(service)
	l, err := gonet.ListenTCP(r.guest, addr, proto)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, fd := hostPair(t)
	over := make(chan struct{})
	cut, err := r.net.Connect(t.Context(), from, service, fd, func() { close(over) })
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r.probes(conn)
	testenv.Until(t, "the client's socket to be set", func() bool { return paceOf(t, fd) == everySecond })
	cut()
	<-over
}
