package builtin

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/port"
)

// away is a network namespace next to the test's, with sockets and services of
// its own, whose lo is up: what the child is to the parent. Its thread ends with the test.
type away struct{ calls chan func() }

func newAway(t *testing.T) *away {
	t.Helper()
	a := &away{calls: make(chan func())}
	ready := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = upLoopback()
		}
		ready <- err
		if err == nil {
			for f := range a.calls {
				f()
			}
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(a.calls); <-ended })
	return a
}

// do runs f in the namespace. Sockets that f makes stay there.
func (a *away) do(f func()) {
	done := make(chan struct{})
	a.calls <- func() { defer close(done); f() }
	<-done
}

func (a *away) Sockets(ctx context.Context, domain, typ, n int) (files []*os.File, err error) {
	a.do(func() { files, err = port.SocketsIn(nil).Sockets(ctx, domain, typ, n) })
	return files, err
}

// upLoopback brings lo of the calling thread's namespace up.
func upLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// inNetwork runs a test in a network namespace of its own, as root there. lo is up.
func inNetwork(t *testing.T, inner func(t *testing.T)) {
	t.Helper()
	testenv.UserNS{Flags: unix.CLONE_NEWNET, Inner: func(t *testing.T) {
		if err := upLoopback(); err != nil {
			t.Fatal(err)
		}
		inner(t)
	}}.Run(t)
}

func TestForwardsLeadIntoTheOtherNamespace(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		a := newAway(t)
		d := start(t, Options{Sockets: a})
		for _, ip := range []string{"127.0.0.1", "::1"} {
			// The same addresses and ports on both sides: only a socket of the
			// other namespace reaches the service.
			var stream, datagrams net.Addr
			a.do(func() {
				stream, _ = serveTCP(t, at(ip, 80), echo)
				datagrams, _ = serveUDP(t, at(ip, 80), same)
			})
			if stream == nil || datagrams == nil {
				t.Fatal("no services")
			}
			bracketed := map[string]string{"127.0.0.1": "127.0.0.1", "::1": "[::1]"}[ip]
			add(t, d, bracketed+":80:80/tcp", bracketed+":80:80/udp")
			roundTrip(t, dialTCP(t, at(ip, 80)), "hello")
			exchangeUDP(t, dialUDP(t, at(ip, 80)), []byte("hello"))
		}
	})
}

func TestADriverAloneForwardsIntoANamespaceThatAFileNames(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		a := newAway(t)
		var netns *os.File
		var err error
		if a.do(func() { netns, err = os.Open("/proc/thread-self/ns/net") }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { netns.Close() }) // after the driver, which makes sockets ahead
		var service net.Addr
		a.do(func() { service, _ = serveTCP(t, "127.0.0.1:80", echo) })
		if service == nil {
			t.Fatal("no service")
		}
		d := start(t, Options{Sockets: port.SocketsIn(netns)})
		add(t, d, "127.0.0.1:80:80/tcp")
		roundTrip(t, dialTCP(t, "127.0.0.1:80"), "hello")
		for _, domain := range []int{unix.AF_PACKET, unix.AF_UNIX} {
			if files, err := port.SocketsIn(netns).Sockets(t.Context(), domain, unix.SOCK_RAW, 1); err == nil {
				t.Errorf("sockets of domain %d are made: %v", domain, files)
			}
		}
	})
}

// TestClientsOfAnotherHostAreAnsweredFromTheAddressThatTheyAsked has a client
// behind a veth pair, and a host with several addresses on it.
func TestClientsOfAnotherHostAreAnsweredFromTheAddressThatTheyAsked(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		outside := newAway(t)
		connectTo(t, outside)
		stream, _ := serveTCP(t, "127.0.0.1:0", echo)
		datagrams, _ := serveUDP(t, "127.0.0.1:0", same)
		d := start(t, Options{})
		statuses := add(t, d,
			fmt.Sprintf("0:%d/tcp", stream.(*net.TCPAddr).Port),
			fmt.Sprintf("0:%d/udp", datagrams.(*net.UDPAddr).Port),
			fmt.Sprintf("[fe80::1%%outside]:0:127.0.0.1:%d/tcp6", stream.(*net.TCPAddr).Port),
			fmt.Sprintf("[fe80::1%%outside]:0:127.0.0.1:%d/udp6", datagrams.(*net.UDPAddr).Port))
		for _, ip := range []string{"198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::2", "fe80::1%inside"} {
			t.Logf("the client asks %s", ip)
			tcpAt, udpAt := at(ip, statuses[0].Spec.ParentPort), at(ip, statuses[1].Spec.ParentPort)
			var c *net.TCPConn
			var u *net.UDPConn
			outside.do(func() { c, u = dialTCP(t, tcpAt), dialUDP(t, udpAt) })
			roundTrip(t, c, ip)
			exchangeUDP(t, u, []byte(ip))
			exchangeUDP(t, u, bytes.Repeat([]byte("x"), 65507))
		}
		var c *net.TCPConn
		var u *net.UDPConn
		outside.do(func() {
			c = dialTCP(t, at("fe80::1%inside", statuses[2].Spec.ParentPort))
			u = dialUDP(t, at("fe80::1%inside", statuses[3].Spec.ParentPort))
		})
		roundTrip(t, c, "a listener on an interface's address")
		exchangeUDP(t, u, []byte("a socket on an interface's address"))
	})
}

// connectTo makes a veth pair, "outside" here with two addresses of each family
// and "inside" there, in the client's namespace.
func connectTo(t *testing.T, client *away) {
	t.Helper()
	var there int
	client.do(func() { there = unix.Gettid() })
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	check(netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "outside"}, PeerName: "inside", PeerNamespace: netlink.NsPid(there),
	}))
	check(furnish("outside", "198.51.100.1/24", "198.51.100.2/24", "2001:db8::1/64", "2001:db8::2/64", "fe80::1/64"))
	var err error
	client.do(func() { err = furnish("inside", "198.51.100.7/24", "2001:db8::7/64", "fe80::7/64") })
	check(err)
}

// furnish gives addresses to an interface and brings it up.
func furnish(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}
