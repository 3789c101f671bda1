package slirp

import (
	"cmp"
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/flows"
)

// listed are the flows now, TCP first, without what changes from run to run.
func (r *rig) listed() []flows.Flow {
	list := r.net.Flows()
	for i := range list {
		list[i].Since, list[i].Used = list[i].Since.Truncate(0), list[i].Used.Truncate(0)
		if list[i].Since.IsZero() || list[i].Used.IsZero() || list[i].Used.Before(list[i].Since.Add(-patience)) {
			r.t.Errorf("a flow has no times: %+v", list[i])
		}
		list[i].Since, list[i].Used = flows.Flow{}.Since, flows.Flow{}.Used
	}
	slices.SortFunc(list, func(a, b flows.Flow) int { return cmp.Compare(a.Proto, b.Proto) })
	return list
}

// expectListed waits until the flows are these.
func (r *rig) expectListed(when string, want ...flows.Flow) {
	r.t.Helper()
	var got []flows.Flow
	if !testenv.Eventually(patience, func() bool { got = r.listed(); return slices.Equal(got, want) }) {
		r.t.Errorf("%s: the flows are\n%+v\nwant\n%+v", when, got, want)
	}
}

func addrPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

func TestTheFlowsOfTheNamespaceAreListed(t *testing.T) {
	eachFamily(t, func(t *testing.T, r *rig, local string) {
		if r.net.Flows() != nil {
			t.Error("there are flows before Run")
		}
		r.net.engine.Store(r.e)
		r.expectListed("at first")
		stream := r.gateway(listen(t, local, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 9))
			c.Write([]byte("fine"))
			io.Copy(io.Discard, c)
		}))
		datagrams := r.gateway(listenUDP(t, local, echoUDP))
		conn, err := r.dial(stream)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("how goes?")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		udp := r.dialUDP(datagrams)
		if _, err := udp.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := udp.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		tcpFlow := flows.Flow{
			Proto: "tcp", Direction: flows.Outbound, State: flows.Open,
			Child: addrPort(conn.LocalAddr()), Remote: stream, In: 4, Out: 9, Counted: true,
		}
		udpFlow := flows.Flow{Proto: "udp", Direction: flows.Outbound, State: flows.Open, Child: addrPort(udp.LocalAddr()), Remote: datagrams}
		r.expectListed("with two", tcpFlow, udpFlow)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		// The server ends as well.
		r.expectListed("after the end of one", udpFlow)
	})
}

// fullListener is an address where connections wait for somebody to take the one
// before them.
func fullListener(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return at
}

func TestAConnectionThatIsBeingSetUpIsListed(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	r.net.engine.Store(r.e)
	to := r.gateway(fullListener(t))
	addr, proto := fullAddress(to)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if c, err := gonet.DialContextTCP(ctx, r.guest, addr, proto); err == nil {
			t.Error("it is connected")
			c.Close()
		}
	}()
	testenv.Until(t, "the connection", func() bool { return len(r.net.Flows()) == 1 })
	f := r.net.Flows()[0]
	if f.State != flows.Connecting || f.Remote != to || f.Child.Addr() != r.net.subnets[0].child || f.Counted {
		t.Errorf("it is listed as %+v", f)
	}
	cancel()
	<-ended
}

func TestConnectionsInAClientsNameAreListed(t *testing.T) {
	r := newInboundRig(t, false)
	r.net.engine.Store(r.e)
	service, from := netip.AddrPortFrom(childIPv4, 80), netip.AddrPortFrom(worldIPv4, 5555)
	addr, proto := fullAddress(service)
	l, err := gonet.ListenTCP(r.guest, addr, proto)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, fd := hostPair(t)
	over := make(chan struct{})
	cut, err := r.net.Connect(t.Context(), from, service, fd, func() { close(over) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	want := flows.Flow{Proto: "tcp", Direction: flows.Forward, State: flows.Open, Child: service, Remote: from, Kept: true, In: 5, Counted: true}
	r.expectListed("once it is open", want)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	want.State = flows.HalfClosed
	r.expectListed("when the client sends no more", want)
	cut()
	<-over
	r.expectListed("when it is over")
}
