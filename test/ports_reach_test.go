package test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/port"
)

// serve starts a service in the gate that echoes on addresses of the
// namespace, and waits until it listens.
func (g *gate) serve(t *testing.T, network string, addrs ...string) *testenv.Process {
	t.Helper()
	return g.startService(t, g.in(append([]string{"probe", "service", network}, addrs...)...))
}

// startService starts a probe in the gate that says when it serves.
func (g *gate) startService(t *testing.T, cmd *exec.Cmd) *testenv.Process {
	t.Helper()
	p := g.host.Start(t, cmd)
	awaitLine(t, p, `serving .*\n`)
	return p
}

// add puts forwards in place over the API, as they are written for gatectl.
func (g *gate) add(t *testing.T, specs ...string) []api.PortStatus {
	t.Helper()
	added, err := g.tryAdd(t, specs...)
	if err != nil {
		t.Fatalf("add %q: %v", specs, err)
	}
	return added
}

func (g *gate) tryAdd(t *testing.T, specs ...string) ([]api.PortStatus, error) {
	t.Helper()
	var wanted []api.PortSpec
	for _, s := range specs {
		parsed, err := port.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range parsed {
			wanted = append(wanted, api.PortSpec(spec))
		}
	}
	return g.client(t).AddPorts(t.Context(), wanted)
}

// dialTCP connects from a machine.
func dialTCP(t *testing.T, m machine, addr string) (*net.TCPConn, error) {
	t.Helper()
	var conn net.Conn
	var err error
	m.Do(t, func() error {
		conn, err = dialer.Dial("tcp", addr)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// tryTCP exchanges bytes with a service from a machine.
func tryTCP(t *testing.T, m machine, addr string, size int) error {
	t.Helper()
	conn, err := dialTCP(t, m, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	return exchange(conn, size)
}

// dialUDP connects a socket on a machine, which then takes datagrams from
// nowhere but addr.
func dialUDP(t *testing.T, m machine, addr string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	m.Do(t, func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		return err
	})
	return conn
}

// tryUDP exchanges datagrams of all sizes with a service from a machine.
func tryUDP(t *testing.T, m machine, addr string) error {
	t.Helper()
	conn := dialUDP(t, m, addr)
	defer conn.Close()
	for _, size := range payloads {
		if err := echoConnected(conn, pattern(size)); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	return nil
}

// reach exchanges something with a service, by tcp or udp.
func reach(t *testing.T, network string, m machine, addr string) error {
	t.Helper()
	if network == "udp" {
		return tryUDP(t, m, addr)
	}
	return tryTCP(t, m, addr, 100_000)
}

// refused says whether nobody listens at an address; a datagram is refused by
// an ICMP error.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// ends are addresses of the Host by their names here, with the machine that
// connects to each.
func (s site) ends() map[string]end {
	return map[string]end{
		"127.0.0.1": {s.Host, netip.MustParseAddr("127.0.0.1")},
		"::1":       {s.Host, netip.IPv6Loopback()},
		"outside4":  {s.outside, s.outside.HostAddr4},
		"outside6":  {s.outside, s.outside.HostAddr6},
	}
}

type end struct {
	from machine
	addr netip.Addr
}

// unlimitedICMP has the Host refuse each datagram. The kernel stops after some,
// for a while.
func (s site) unlimitedICMP(t *testing.T) {
	t.Helper()
	s.Do(t, func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0),
			os.WriteFile("/proc/sys/net/ipv6/icmp/ratelimit", []byte("0"), 0),
		)
	})
}

func TestAForwardListensWhereItIsAskedTo(t *testing.T) {
	s := newSite(t)
	s.unlimitedICMP(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for _, network := range []string{"tcp", "udp"} {
		g.serve(t, network, "127.0.0.1:80", "[::1]:80")
	}
	outside4, outside6 := s.outside.HostAddr4.String()+":", "["+s.outside.HostAddr6.String()+"]:"
	all := []string{"127.0.0.1", "::1", "outside4", "outside6"}
	for i, c := range []struct {
		ip, family string
		reached    []string
	}{
		{"", "", all},
		{"", "4", []string{"127.0.0.1", "outside4"}},
		{"", "6", []string{"::1", "outside6"}},
		{"0.0.0.0:", "", all},
		{"[::]:", "", all},
		{"0.0.0.0:", "4", []string{"127.0.0.1", "outside4"}},
		{"[::]:", "6", []string{"::1", "outside6"}},
		{"127.0.0.1:", "", []string{"127.0.0.1"}},
		{"127.0.0.1:", "4", []string{"127.0.0.1"}},
		{"[::1]:", "", []string{"::1"}},
		{"[::1]:", "6", []string{"::1"}},
		{outside4, "", []string{"outside4"}},
		{outside6, "", []string{"outside6"}},
	} {
		number := 8000 + i
		for _, network := range []string{"tcp", "udp"} {
			spec := fmt.Sprintf("%s%d:80/%s%s", c.ip, number, network, c.family)
			t.Run(spec, func(t *testing.T) {
				g.add(t, spec)
				for name, e := range s.ends() {
					err := reach(t, network, e.from, at(e.addr, number))
					switch wanted := slices.Contains(c.reached, name); {
					case wanted && err != nil:
						t.Errorf("it is not reached at %s: %v", name, err)
					case !wanted && !refused(err):
						t.Errorf("at %s something answers, or nothing at all: %v", name, err)
					}
				}
			})
		}
	}
}

func TestAForwardReachesServicesWhereverTheyListen(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	child4, child6 := "10.0.2.100", "fd67:6174:656b::100"
	both := []string{"127.0.0.1", "::1"} // of the Host
	for i, c := range []struct {
		service string // addresses that it listens on
		spec    string // child's side of the forward
		clients []string
	}{
		{"127.0.0.1", "%d", both},
		{"::1", "%d", both},
		{"::", "%d", both},
		{"127.0.0.1", "127.0.0.1:%d", both},
		{"::1", "[::1]:%d", both},
		{child4, child4 + ":%d", both},
		{child6, "[" + child6 + "]:%d", both},
		{"::", child4 + ":%d", both},
		{"::", "[" + child6 + "]:%d", both},
	} {
		for _, network := range []string{"tcp", "udp"} {
			child := fmt.Sprintf(c.spec, 7000+i)
			t.Run(network+" to "+child+", service on "+c.service, func(t *testing.T) {
				g.serve(t, network, net.JoinHostPort(c.service, fmt.Sprint(7000+i)))
				g.add(t, fmt.Sprintf("%d:%s/%s", 8000+i, child, network))
				for _, client := range c.clients {
					if err := reach(t, network, s.Host, net.JoinHostPort(client, fmt.Sprint(8000+i))); err != nil {
						t.Errorf("from %s: %v", client, err)
					}
				}
			})
		}
	}
}

// Each side of a spec names an interface of its own: the host's, where it listens,
// and the namespace's, where the service is.
func TestLinkLocalAddressesNameAnInterfaceOfTheirSide(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	_, inside, _ := strings.Cut(g.run(t, "ip", "-6", "-o", "address", "show", "dev", "tap0", "scope", "link"), "inet6 ")
	inside, _, _ = strings.Cut(inside, "/")
	host := "fe80::1"
	s.hasAddress(t, host+"/64", s.outside.Interface)
	for i, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			g.serve(t, network, fmt.Sprintf("[%s%%tap0]:%d", inside, 7000+i))
			g.add(t, fmt.Sprintf("[%s%%%s]:%d:[%s%%tap0]:%d/%s", host, s.outside.Interface, 8000+i, inside, 7000+i, network),
				fmt.Sprintf("127.0.0.1:%d:[%s%%tap0]:%d/%s", 8000+i, inside, 7000+i, network))
			if err := reach(t, network, s.outside, fmt.Sprintf("[%s%%%s]:%d", host, outsideInterface(t, s), 8000+i)); err != nil {
				t.Errorf("at the host's interface: %v", err)
			}
			if err := reach(t, network, s.Host, fmt.Sprintf("127.0.0.1:%d", 8000+i)); err != nil {
				t.Errorf("at the loopback: %v", err)
			}
		})
	}
}

// outsideInterface is the name of the outside's only interface but lo.
func outsideInterface(t *testing.T, s site) string {
	t.Helper()
	var name string
	s.outside.Do(t, func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
				name = i.Name
			}
		}
		return err
	})
	return name
}
