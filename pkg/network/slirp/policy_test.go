package slirp

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/network"
)

// hostPolicy opens the host's loopback, where the servers of tests are, and has a
// policy.
func hostPolicy(p network.Policy) Options {
	o := all
	o.Policy = p
	return o
}

func TestWhatThePolicyDeniesIsReset(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			server := listen(t, addr, echoTCP)
			r := newRig(t, rigOptions{Options: hostPolicy(network.Policy{Default: "deny", Allow: []string{"udp://*"}})})
			if c, err := r.dial(r.gateway(server)); err == nil {
				c.Close()
				t.Fatal("connected")
			}
			if err := r.net.SetPolicy(network.Policy{Default: "deny", Allow: []string{"tcp://10.0.2.2", "tcp://[fd67:6174:656b::2]"}}); err != nil {
				t.Fatal(err)
			}
			c, err := r.dial(r.gateway(server))
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
}

func TestFlowsEndWithThePolicyThatLetThemOut(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			server, udpServer := listen(t, addr, echoTCP), listenUDP(t, addr, echoUDP)
			kept := listen(t, addr, echoTCP)
			r := newRig(t, rigOptions{Options: hostPolicy(network.Policy{})})
			r.net.engine.Store(r.e)
			exchange := func(c net.Conn) error {
				c.SetDeadline(time.Now().Add(patience))
				if _, err := c.Write([]byte("x")); err != nil {
					return err
				}
				_, err := io.ReadFull(c, make([]byte, 1))
				return err
			}
			var conns []net.Conn
			for _, to := range []netip.AddrPort{server, kept} {
				c, err := r.dial(r.gateway(to))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				conns = append(conns, c)
			}
			conns = append(conns, r.dialUDP(r.gateway(udpServer)))
			for _, c := range conns {
				if err := exchange(c); err != nil {
					t.Fatal(err)
				}
			}
			var allowed []string
			for _, s := range r.net.subnets {
				allowed = append(allowed, "tcp://["+s.gateway.String()+"]:"+portOf(kept))
				if s.gateway.Is4() {
					allowed[0] = "tcp://" + s.gateway.String() + ":" + portOf(kept)
				}
			}
			if err := r.net.SetPolicy(network.Policy{Default: "deny", Allow: allowed}); err != nil {
				t.Fatal(err)
			}
			if err := exchange(conns[0]); err == nil || err == io.EOF {
				t.Errorf("the connection goes on, or ends without a reset: %v", err)
			}
			if err := exchange(conns[1]); err != nil {
				t.Errorf("the connection that is still allowed: %v", err)
			}
			r.e.udp.mu.Lock()
			flows := len(r.e.udp.flows)
			r.e.udp.mu.Unlock()
			if flows != 0 {
				t.Errorf("%d UDP flows are left", flows)
			}
		})
	}
}

func TestADialEndsWithThePolicyThatLetItOut(t *testing.T) {
	r := newRig(t, rigOptions{Options: hostPolicy(network.Policy{}), bare: true})
	r.net.engine.Store(r.e)
	r.introduce()
	to := r.gateway(deafListener(t))
	r.send(synFrame(netip.AddrPortFrom(childIPv4, 4000), to), vnetHeader{})
	testenv.Until(t, "the dial", func() bool { return dialsOf(r) == 1 })
	if err := r.net.SetPolicy(network.Policy{Default: "deny"}); err != nil {
		t.Fatal(err)
	}
	r.next(isReset(to))
	if !r.isTrue(func() bool { return len(r.e.tcp.relays) == 0 && r.e.tcp.dials == 0 }) || relaysOf(r) > 0 {
		t.Error("the dial goes on")
	}
}

func portOf(a netip.AddrPort) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

func TestNamesOpenWhatOurDNSAnswered(t *testing.T) {
	server := listen(t, "127.0.0.1:0", echoTCP)
	r := newRig(t, rigOptions{Options: hostPolicy(network.Policy{Default: "deny", Allow: []string{"tcp://" + ownName}})})
	if c, err := r.dial(r.gateway(server)); err == nil {
		c.Close()
		t.Fatal("connected before the name was looked up")
	}
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(ownName), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	q, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	d := r.dialUDP(netip.AddrPortFrom(r.net.subnets[0].dns, dnsPort))
	d.Write(q)
	if _, err := d.Read(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatalf("after the name was looked up: %v", err)
	}
	c.Close()
}
