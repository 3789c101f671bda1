package site

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the site's two machines.
var (
	HostAddr    = netip.AddrFrom4([4]byte{198, 51, 100, 1})
	OutsideAddr = netip.AddrFrom4([4]byte{198, 51, 100, 2})
)

// connect brings up the loopback interface of this network namespace, the host,
// and links it to a new one, the outside.
func connect() (outside *thread, err error) {
	if err := up("lo"); err != nil {
		return nil, err
	}
	if outside, err = newThread(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			outside.close()
		}
	}()
	if err := addPair("eth0", outside); err != nil {
		return nil, err
	}
	if err := configure(HostAddr, OutsideAddr); err != nil {
		return nil, err
	}
	return outside, outside.do(func() error {
		return errors.Join(up("lo"), configure(OutsideAddr, HostAddr))
	})
}

// addPair makes a veth pair whose ends are called alike: one of this namespace and one
// of a thread's.
func addPair(name string, to *thread) error {
	ns, err := networkOf(to)
	if err != nil {
		return err
	}
	defer ns.Close()
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name},
		PeerName:      name,
		PeerNamespace: netlink.NsFd(int(ns.Fd())),
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	return nil
}

// networkOf opens the network namespace of a thread.
func networkOf(t *thread) (ns *os.File, err error) {
	err = t.do(func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

// addAddr gives an interface an address, and sets it up.
func addAddr(name string, addr netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	own, err := netlink.ParseAddr(netip.PrefixFrom(addr, 24).String())
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, own); err != nil {
		return fmt.Errorf("add %v to %s: %w", addr, name, err)
	}
	return up(name)
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// configure gives eth0 its address and makes the other machine the default route.
func configure(addr, gateway netip.Addr) error {
	if err := addAddr("eth0", addr); err != nil {
		return err
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add a default route by %v: %w", gateway, err)
	}
	return nil
}

// thread is an OS thread in a network namespace of its own. Functions run on it
// one at a time; what they start is born in that namespace.
type thread struct {
	calls chan func()
}

func newThread() (*thread, error) {
	t := &thread{calls: make(chan func())}
	ready := make(chan error)
	go t.run(ready)
	return t, <-ready
}

func (t *thread) run(ready chan<- error) {
	// Never unlocked, so that the thread ends with this goroutine. The main thread
	// cannot end; the goroutine that holds it while another one is found would be
	// needless here, since this process ends with the site.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		ready <- fmt.Errorf("unshare(CLONE_NEWNET): %w", err)
		return
	}
	ready <- nil
	for f := range t.calls {
		f()
	}
}

// do runs f on the thread.
func (t *thread) do(f func() error) error {
	done := make(chan error)
	t.calls <- func() { done <- f() }
	return <-done
}

func (t *thread) close() { close(t.calls) }
