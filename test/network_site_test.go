package test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api/client"
)

// What the tests of the network and of ports share: a Host with a machine
// outside, servers on either, and commands inside a gate.
//
// Servers of the tests live in the test's process, on sockets that belong to the
// machine: so a test sees what arrives, byte by byte. Clients and services
// inside a gate are programs: curl, socat, dig and others, or probes
// (network_probe_test.go).

// site is a Host with a machine outside, which is its default route.
type site struct {
	*testenv.Host
	outside *testenv.Outside
}

func newSite(t *testing.T) site {
	t.Helper()
	h := testenv.NewHost(t)
	s := site{h, h.Outside(t)}
	s.acquaint(t)
	return s
}

// acquaint tells both machines each other's Ethernet address. On a link that has
// just come up, the kernel loses the first question for an IPv6 neighbour, and
// asks again after a second.
func (s site) acquaint(t *testing.T) {
	t.Helper()
	o := s.outside
	ends := []struct {
		machine
		ifname string
		addr   netip.Addr
	}{{s.Host, o.Interface, o.HostAddr6}, {o, "eth0", o.Addr6}}
	var links [2]netlink.Link
	for i, end := range ends {
		end.Do(t, func() (err error) {
			links[i], err = netlink.LinkByName(end.ifname)
			return err
		})
	}
	for i, end := range ends {
		end.Do(t, func() error {
			return netlink.NeighAdd(&netlink.Neigh{
				LinkIndex:    links[i].Attrs().Index,
				State:        netlink.NUD_PERMANENT,
				IP:           ends[1-i].addr.AsSlice(),
				HardwareAddr: links[1-i].Attrs().HardwareAddr,
			})
		})
	}
}

// blackholes are addresses that the machine outside is sent packets for, and
// drops.
var blackholes = []netip.Addr{netip.MustParseAddr("198.51.100.200"), netip.MustParseAddr("2001:db8:ffff::1")}

// machine is a Host or an Outside.
type machine interface {
	Do(t testing.TB, f func() error)
	Start(t testing.TB, cmd *exec.Cmd) *testenv.Process
}

// in is a command in the gate's user, mount and network namespaces, as root inside.
// With --detach-netns the child is in the host's network, and the gate's own is a file
// of the mount namespace.
func (g *gate) in(command ...string) *exec.Cmd {
	args := []string{"-U", "--preserve-credentials", "-m", "-F", "-t", strconv.Itoa(g.childPID)}
	if g.detached {
		args = append(args, "nsenter", "--net="+g.stateDir+"/netns")
	} else {
		args = append(args, "-n")
	}
	return g.host.Command("nsenter", append(args, command...)...)
}

// run runs such a command, expects it to succeed, and returns what it wrote.
func (g *gate) run(t *testing.T, command ...string) string {
	t.Helper()
	return g.succeed(t, g.in(command...))
}

// succeed runs a command, expects it to succeed, and returns what it wrote.
func (g *gate) succeed(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	r := g.host.Run(t, cmd)
	if r.Code != 0 {
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), r)
	}
	return r.Stdout
}

// stop ends a gate whose command is sleep, and expects that it had nothing to
// complain of.
func (g *gate) stop(t *testing.T) {
	t.Helper()
	g.Signal(signalTerm)
	if r := g.Wait(t); r.Code != 128+int(signalTerm) || r.Stderr != "" {
		t.Errorf("the gate ends with %v\nwant exit code %d, and no line on stderr", r, 128+int(signalTerm))
	}
}

// awaitLine waits until a process has written a line that matches, and returns
// its first group.
func awaitLine(t *testing.T, p *testenv.Process, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	testenv.Until(t, "a line that matches "+pattern, func() bool {
		ended := !p.Running()
		found = re.FindStringSubmatch(p.Stdout() + p.Stderr())
		if found == nil && ended {
			t.Fatalf("the process ended: %v", p.Wait(t))
		}
		return found != nil
	})
	return found[len(found)-1]
}

// receive takes what a server of the test has seen. what completes the sentence
// "waiting for ...".
func receive[T any](t *testing.T, from <-chan T, what string) (value T) {
	t.Helper()
	timer := time.NewTimer(testenv.Patience)
	defer timer.Stop()
	select {
	case value = <-from:
	case <-timer.C:
		t.Fatalf("gave up after %v waiting for %s", testenv.Patience, what)
	}
	return value
}

// serveTCP accepts connections on a machine until the test ends, and returns
// where. The address' port may be 0. handle owns no connection: each is closed
// when handle returns, or when the test ends, and hangs no longer than Patience.
func serveTCP(t *testing.T, m machine, addr string, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	var listener *net.TCPListener
	m.Do(t, func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		return err
	})
	var running sync.WaitGroup
	var mu sync.Mutex // guards open
	open := map[*net.TCPConn]struct{}{}
	running.Go(func() {
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(testenv.Patience))
			mu.Lock()
			open[conn] = struct{}{}
			mu.Unlock()
			running.Go(func() {
				handle(conn)
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
				conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

// serveUDP calls handle for each datagram that comes to an address of a
// machine, until the test ends, and returns the socket.
func serveUDP(t *testing.T, m machine, addr string, handle func(c *net.UDPConn, payload []byte, from netip.AddrPort)) *net.UDPConn {
	t.Helper()
	conn := listenUDP(t, m, addr)
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			handle(conn, buf[:n], from)
		}
	})
	t.Cleanup(func() {
		conn.Close()
		running.Wait()
	})
	return conn
}

// listenUDP opens a socket on a machine; the test owns it.
func listenUDP(t *testing.T, m machine, addr string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	m.Do(t, func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		return err
	})
	return conn
}

// echoTCP sends back what comes, and the end of it.
func echoTCP(conn *net.TCPConn) {
	if _, err := io.Copy(conn, conn); err == nil {
		_ = conn.CloseWrite()
	}
}

// echoUDP sends a datagram back.
func echoUDP(conn *net.UDPConn, payload []byte, from netip.AddrPort) {
	_, _ = conn.WriteToUDPAddrPort(payload, from)
}

// addrOf is where a UDP socket is.
func addrOf(conn *net.UDPConn) netip.AddrPort { return conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// at joins an address and a port.
func at(addr netip.Addr, port int) string { return netip.AddrPortFrom(addr, uint16(port)).String() }

// fileServer runs Python's file server on the machine outside, on both
// families, and returns its port.
func (s site) fileServer(t *testing.T, dir string) int {
	t.Helper()
	p := s.outside.Start(t, s.outside.Command("/usr/bin/python3", "-u", "-m", "http.server", "--bind", "::", "--directory", dir, "0"))
	port, err := strconv.Atoi(awaitLine(t, p, `Serving HTTP on :: port (\d+)`))
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// hasAddress gives an interface of the Host one more address.
func (s site) hasAddress(t *testing.T, prefix, ifname string) {
	t.Helper()
	if r := s.Run(t, s.RootCommand("ip", "address", "add", prefix, "dev", ifname, "nodad")); r.Code != 0 {
		t.Fatal(r)
	}
}

// both runs a part of a test for each family, with the addresses of the machine
// outside and of the Host on their network.
func (s site) both(t *testing.T, part func(t *testing.T, outside, host netip.Addr)) {
	t.Helper()
	t.Run("over IPv4", func(t *testing.T) { part(t, s.outside.Addr4, s.outside.HostAddr4) })
	t.Run("over IPv6", func(t *testing.T) { part(t, s.outside.Addr6, s.outside.HostAddr6) })
}

// randomFile makes a file of the Host and returns its content.
func (s site) randomFile(t *testing.T, path string, size int) string {
	t.Helper()
	content := string(pattern(size))
	s.WriteFile(t, path, content, 0o644)
	return content
}

// url is that of a file on a server.
func url(addr netip.Addr, port int, file string) string {
	return fmt.Sprintf("http://%s/%s", at(addr, port), filepath.Base(file))
}

// newPipe is a pipe for a command's stdin. Both ends are closed at the end of
// the test.
func newPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

// client calls the gate's API, as real root.
func (g *gate) client(t *testing.T) *client.Client {
	t.Helper()
	c := client.New(client.Options{Socket: g.host.Path(g.stateDir + "/api.sock")})
	t.Cleanup(c.CloseIdleConnections)
	return c
}
