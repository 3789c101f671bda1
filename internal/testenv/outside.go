package testenv

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxOutsides is how many networks of 16 addresses fit into 198.51.100.0/24.
const maxOutsides = 16

// Outside is another machine, on a network with a Host: a network namespace
// behind a veth pair. Its files are the machine's.
type Outside struct {
	// Addr4 and Addr6 are the addresses of this machine, in 198.51.100.0/24 and
	// 2001:db8::/32.
	Addr4, Addr6 netip.Addr

	// HostAddr4 and HostAddr6 are the Host's addresses on the same network.
	HostAddr4, HostAddr6 netip.Addr

	// Interface is the name of the Host's end.
	Interface string

	thread *thread
}

// Outside makes a machine on a new network with the Host. The first is the
// Host's default route. Each Outside has the Host as its default route.
func (h *Host) Outside(t testing.TB) *Outside {
	t.Helper()
	n := h.outsides
	if n == maxOutsides {
		t.Fatalf("a Host has at most %d Outsides", maxOutsides)
	}
	h.outsides++
	o := &Outside{
		HostAddr4: netip.AddrFrom4([4]byte{198, 51, 100, byte(16*n + 1)}),
		Addr4:     netip.AddrFrom4([4]byte{198, 51, 100, byte(16*n + 2)}),
		HostAddr6: netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::1", n)),
		Addr6:     netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::2", n)),
		Interface: fmt.Sprintf("eth%d", n),
	}
	var err error
	if o.thread, err = newThread(unix.CLONE_NEWNET); err != nil {
		Skip(t, fmt.Sprintf("unshare(CLONE_NEWNET): %v", err))
	}
	t.Cleanup(o.thread.close)
	var ns *os.File
	o.Do(t, func() error {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	defer ns.Close()
	h.Do(t, func() error { return o.connectHost(ns, n == 0) })
	o.Do(t, o.configure)
	return o
}

// connectHost makes the veth pair and configures the Host's end.
func (o *Outside) connectHost(peer *os.File, defaultRoute bool) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: o.Interface},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(int(peer.Fd())),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s: %w", o.Interface, err)
	}
	link, err := addresses(o.Interface, o.HostAddr4, o.HostAddr6)
	if err != nil || !defaultRoute {
		return err
	}
	return routes(link, o.Addr4, o.Addr6)
}

// configure configures the Outside's end.
func (o *Outside) configure() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	link, err := addresses("eth0", o.Addr4, o.Addr6)
	if err != nil {
		return err
	}
	return routes(link, o.HostAddr4, o.HostAddr6)
}

// addresses gives an interface its addresses and sets it up. Duplicate address
// detection is off, so that the addresses work at once.
func addresses(name string, addr4, addr6 netip.Addr) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	for _, prefix := range []netip.Prefix{netip.PrefixFrom(addr4, 28), netip.PrefixFrom(addr6, 64)} {
		addr, err := netlink.ParseAddr(prefix.String())
		if err != nil {
			return nil, err
		}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return nil, fmt.Errorf("add %v to %s: %w", prefix, name, err)
		}
	}
	return link, netlink.LinkSetUp(link)
}

func routes(link netlink.Link, gateways ...netip.Addr) error {
	for _, gw := range gateways {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route by %v: %w", gw, err)
		}
	}
	return nil
}

// Do runs f on the Outside's thread, as Host.Do does on the Host's.
func (o *Outside) Do(t testing.TB, f func() error) {
	t.Helper()
	if err := o.thread.do(f); err != nil {
		t.Fatal(err)
	}
}

// Command is a command on the Outside, run as root with the test's own
// environment.
func (o *Outside) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Start starts a command on the Outside.
func (o *Outside) Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	return start(t, cmd, o.thread.start)
}

// Run runs a command on the Outside and waits for its end.
func (o *Outside) Run(t testing.TB, cmd *exec.Cmd) Result {
	t.Helper()
	return o.Start(t, cmd).Wait(t)
}
