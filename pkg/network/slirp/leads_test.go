package slirp

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/port"
)

// ledPort is a port of the gateway's, where tests have leads.
const ledPort = 5432

// eachLead runs a test for a lead from the gateway's address of each family to the
// host's loopback of each family.
func eachLead(t *testing.T, o Options, test func(t *testing.T, r *rig, at netip.AddrPort, local string)) {
	for from := range families {
		for to, local := range families {
			t.Run(from+" to "+to, func(t *testing.T) {
				r := newRig(t, rigOptions{Options: o})
				r.net.engine.Store(r.e)
				s := r.net.subnets[0]
				if from == "IPv6" {
					s = r.net.subnets[1]
				}
				test(t, r, netip.AddrPortFrom(s.gateway, ledPort), local)
			})
		}
	}
}

// lead makes one, which the test's cleanup cuts.
func (r *rig) lead(transport string, at, to netip.AddrPort) port.Lead {
	r.t.Helper()
	d, err := r.net.Lead(transport, at, to)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(d.Cut)
	return d
}

// exchange sends a byte and waits for one.
func exchange(c net.Conn) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

// waitOver waits for the last connection of a lead.
func waitOver(t *testing.T, over <-chan struct{}) {
	t.Helper()
	select {
	case <-over:
	case <-time.After(patience):
		t.Fatal("the connections are not over")
	}
}

func TestALeadTakesConnectionsToTheHost(t *testing.T) {
	eachLead(t, Options{}, func(t *testing.T, r *rig, at netip.AddrPort, local string) {
		if !r.net.IsGateway(at.Addr()) || r.net.IsGateway(r.net.subnets[0].dns) || r.net.IsGateway(netip.Addr{}) {
			t.Error("the gateway's addresses are others")
		}
		d := r.lead("tcp", at, listen(t, local, echoTCP))
		if _, err := r.net.Lead("tcp", at, at); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a second one at its port: %v", err)
		}
		r.lead("udp", at, at)
		var conns []*gonet.TCPConn
		for range 2 {
			c, err := r.dial(at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := exchange(c); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		over := d.Stop()
		if c, err := r.dial(at); err == nil {
			c.Close()
			t.Error("after Stop it takes a connection")
		}
		other := r.lead("tcp", at, listen(t, local, echoTCP)) // whose connections are its own
		kept, err := r.dial(at)
		if err != nil {
			t.Fatal(err)
		}
		defer kept.Close()
		conns[0].Close()
		if err := exchange(conns[1]); err != nil {
			t.Errorf("a connection after Stop: %v", err)
		}
		select {
		case <-over:
			t.Error("over, with a connection")
		default:
		}
		d.Cut()
		waitOver(t, over)
		if err := exchange(conns[1]); err == nil || err == io.EOF {
			t.Errorf("after Cut a connection goes on, or ends without a reset: %v", err)
		}
		if err := exchange(kept); err != nil {
			t.Errorf("a connection of another lead: %v", err)
		}
		kept.Close()
		if over := other.Stop(); over != nil {
			waitOver(t, over)
		}
	})
}

// What HostLoopback opens is there again when the lead has gone, in the middle of a
// conversation too.
func TestALeadTakesDatagramsToTheHost(t *testing.T) {
	eachLead(t, Options{HostLoopback: all.HostLoopback, UDPFiltering: FilterNone}, func(t *testing.T, r *rig, at netip.AddrPort, local string) {
		says := func(text string) func(*net.UDPConn, []byte, netip.AddrPort) {
			return func(c *net.UDPConn, _ []byte, from netip.AddrPort) { c.WriteToUDPAddrPort([]byte(text), from) }
		}
		opened, child := families["IPv4"], r.net.subnets[0].child
		if at.Addr().Is6() {
			opened, child = families["IPv6"], r.net.subnets[1].child
		}
		impostor := make(chan *net.UDPConn, 3)
		loopback := listenUDP(t, opened, func(c *net.UDPConn, msg []byte, from netip.AddrPort) {
			impostor <- c
			says("loopback")(c, msg, from)
		})
		at = r.gateway(loopback)
		other := listenUDP(t, opened, func(c *net.UDPConn, msg []byte, from netip.AddrPort) {
			says("impostor")(<-impostor, msg, from) // who is not behind the gateway's port now
			says("other")(c, msg, from)
		})
		stranger, err := net.ListenPacket("udp", local)
		if err != nil {
			t.Fatal(err)
		}
		defer stranger.Close()
		led := listenUDP(t, local, func(c *net.UDPConn, msg []byte, from netip.AddrPort) {
			says("stranger")(stranger.(*net.UDPConn), msg, from)
			says("led")(c, msg, from)
		})
		addr, proto := fullAddress(netip.AddrPortFrom(child, 4000))
		c, err := gonet.DialUDP(r.guest, &addr, nil, proto)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		ask := func(to netip.AddrPort, want string) {
			t.Helper()
			c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(to))
			buf := make([]byte, 20)
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				t.Fatal(err)
			}
			if got := from.(*net.UDPAddr).AddrPort(); got != to || string(buf[:n]) != want {
				t.Errorf("%q from %v, want %q from %v", buf[:n], got, want, to)
			}
		}
		ask(at, "loopback")
		d := r.lead("udp", at, led)
		ask(at, "led")
		ask(r.gateway(other), "other")
		ask(at, "led")
		if over := d.Stop(); over != nil {
			t.Error("datagrams have connections")
		}
		ask(at, "loopback")
	})
}

// A kernel takes an ICMP error of its own family only, from whichever the host's is.
func TestALeadToNobodyIsRefused(t *testing.T) {
	for _, from := range []netip.Addr{childIPv4, childIPv6} {
		for to, local := range families {
			t.Run(from.String()+" to "+to, func(t *testing.T) {
				r := newRig(t, rigOptions{bare: true})
				r.net.engine.Store(r.e)
				r.introduce()
				closed, err := net.ListenPacket("udp", local)
				if err != nil {
					t.Fatal(err)
				}
				closed.Close()
				at := r.gateway(netip.AddrPortFrom(from, ledPort))
				r.lead("udp", at, closed.LocalAddr().(*net.UDPAddr).AddrPort())
				r.send(udpFrame(netip.AddrPortFrom(from, 4000), at, "x"), vnetHeader{flags: vnetNeedsChecksum})
				unreachable, code, size := isICMPv4(header.ICMPv4DstUnreachable), unreachableIPv4.port, header.IPv4MinimumSize
				if from.Is6() {
					unreachable, code, size = isICMPv6(header.ICMPv6DstUnreachable), unreachableIPv6.port, header.IPv6MinimumSize
				}
				message := r.next(unreachable)[ethernetSize+size:]
				if quoted := header.UDP(message[icmpHeaderSize+size:]); message[1] != code || quoted.DestinationPort() != ledPort || quoted.SourcePort() != 4000 {
					t.Errorf("code %d about port %d, from %d", message[1], quoted.DestinationPort(), quoted.SourcePort())
				}
			})
		}
	}
}

func TestADialByALeadEndsWithIt(t *testing.T) {
	r := newRig(t, rigOptions{bare: true})
	r.net.engine.Store(r.e)
	r.introduce()
	at := netip.AddrPortFrom(r.net.subnets[0].gateway, ledPort)
	d := r.lead("tcp", at, deafListener(t))
	syn := synFrame(netip.AddrPortFrom(childIPv4, 4000), at)
	r.send(syn, vnetHeader{})
	testenv.Until(t, "the dial", func() bool { return dialsOf(r) == 1 })
	if over := d.Stop(); over != nil {
		t.Error("a dial is a connection")
	}
	testenv.Until(t, "the dial to be given up", func() bool {
		r.send(syn, vnetHeader{}) // the guest goes on, and would wait for a dial
		return dialsOf(r) == 0
	})
	r.next(isReset(at))
}

func TestCutReachesConnectionsInTheirHandshake(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.net.engine.Store(r.e)
	at := netip.AddrPortFrom(r.net.subnets[0].gateway, ledPort)
	d := r.lead("tcp", at, listen(t, families["IPv4"], echoTCP))
	first, err := r.dial(at) // from here on the guest knows its neighbour
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	conns := func(want int) func() bool {
		return func() bool {
			r.net.leads.mu.Lock()
			defer r.net.leads.mu.Unlock()
			return d.(*lead).conns == want
		}
	}
	testenv.Until(t, "the first connection to end", conns(0))
	r.silent.Store(true)
	connected := make(chan error, 1)
	go func() {
		c, err := r.dial(at)
		if err == nil {
			c.SetDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		connected <- err
	}()
	testenv.Until(t, "the connection", conns(1))
	over := d.Stop()
	d.Cut()
	r.silent.Store(false)
	err = <-connected
	if late, ok := err.(net.Error); err == nil || err == io.EOF || ok && late.Timeout() {
		t.Errorf("the connection: %v, want a reset", err)
	}
	waitOver(t, over)
}

func TestThePolicyCoversLeads(t *testing.T) {
	eachLead(t, Options{Policy: network.Policy{Default: "deny"}}, func(t *testing.T, r *rig, at netip.AddrPort, local string) {
		r.lead("tcp", at, listen(t, local, echoTCP))
		if c, err := r.dial(at); err == nil {
			c.Close()
			t.Error("connected in spite of the policy")
		}
		host := at.Addr().String()
		if at.Addr().Is6() {
			host = "[" + host + "]"
		}
		if err := r.net.SetPolicy(network.Policy{Default: "deny", Allow: []string{"tcp://" + host + ":5432"}}); err != nil {
			t.Fatal(err)
		}
		c, err := r.dial(at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := exchange(c); err != nil {
			t.Error(err)
		}
	})
}

func TestALeadIsThereBeforeTheNetworkAndAfterIt(t *testing.T) {
	n, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(n.subnets[0].gateway, ledPort)
	for _, transport := range []string{"tcp", "udp"} {
		d, err := n.Lead(transport, at, at)
		if err != nil {
			t.Fatal(err)
		}
		if over := d.Stop(); over != nil {
			t.Error("it has connections")
		}
		d.Cut()
		if d.(*lead).enter() {
			t.Error("it takes a connection after Stop")
		}
		if len(n.leads.byID) != 0 {
			t.Error("it is still there")
		}
	}
	if _, err := n.Lead("udp", at, netip.MustParseAddrPort("[fe80::1%lo]:1")); !errors.Is(err, port.ErrInvalid) {
		t.Errorf("to a link-local address: %v", err)
	}
}
