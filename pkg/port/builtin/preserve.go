package builtin

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/pkg/port"
)

// A client that is not the host itself is seen by the service with its own
// address and port, where an Opener can do that: it opens the connection or flow
// in the client's name, and carries the bytes from there. Nothing of the
// connection is left here then but its entry in the lists, without a goroutine.
//
// The fast path remains for all that cannot be kept: clients on the host's own
// addresses; services at an address that the Opener has no way to, and clients to whom
// it knows that none leads back (a route inside to their network); and services that do
// not answer to what comes that way (a firewall inside). The last is found out of TCP by
// waiting, and of UDP by the Opener's looking at what becomes of datagrams (preserve_try.go),
// so it is remembered for each client for a while. A refusal is tried once more on the fast
// path, which knows of more addresses, and carries it to the client.
//
// The attempts at one time are limited: thousands at once keep the Opener's own loop
// off the processors, so that the interface's queue overflows with the answers.

// Limits of the attempts.
const (
	openTimeout  = 3 * time.Second // one repeated SYN, and patience
	maxOpening   = 512             // at one time
	detourSpan   = time.Minute
	maxDetours   = 256
	hostAddrsAge = time.Second
)

// keep tries to have c's connection, of the client behind fd, opened in the
// client's name. When it is true, fd is not c's any more, and c lasts until it is
// forgotten.
func (c *conn) keep(fd int) bool {
	d := c.driver
	if d.opts.Opener == nil || c.forward.status.Spec.Reverse {
		return false
	}
	client, ok := peerOf(fd)
	if !ok || d.hosts.has(client.Addr()) {
		return false
	}
	c.stranger = true
	target := c.forward.status.Spec.Target(c.family)
	if !d.opts.Opener.Keeps(client.Addr(), target.Addr()) {
		return false
	}
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	if !c.pass(&passage{client: client, service: target, cut: cancel}) {
		return false
	}
	select {
	case d.opening <- struct{}{}:
		defer func() { <-d.opening }()
	case <-ctx.Done():
		return false
	}
	// Who was before may have found out in the meantime.
	return !c.forward.detours.has(client.Addr()) && c.open(ctx, cancel, client, fd)
}

// open is keep's attempt, which ctx and giveUp end.
func (c *conn) open(ctx context.Context, giveUp func(), client netip.AddrPort, fd int) bool {
	d := c.driver
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	for i, target := range c.forward.status.Spec.Targets(c.family) {
		if !c.pass(&passage{client: client, service: target, cut: giveUp}) {
			return false
		}
		if i > 0 && !d.opts.Opener.Keeps(client.Addr(), target.Addr()) { // keep has asked about the first
			return false
		}
		d.wg.Add(1) // run, which is counted, is still here
		cut, err := d.opts.Opener.Connect(ctx, client, target, fd, func() {
			c.forget()
			d.wg.Done()
		})
		if err == nil {
			if !c.pass(&passage{client: client, service: target, cut: cut, open: true}) {
				cut()
			}
			return true
		}
		d.wg.Done()
		if errors.Is(err, unix.ETIMEDOUT) {
			c.detour(client.Addr(), err)
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return false
		}
	}
	return false
}

// detour remembers that a client's address cannot be kept.
func (c *conn) detour(client netip.Addr, err error) {
	c.forward.detours.add(client)
	c.driver.log.warn("the service does not answer to the client's address; it sees the loopback's",
		"forward", c.forward.status.ID, "spec", c.forward.status.Spec, "client", client, "error", err)
}

// passage is a connection in the name of its client, or the attempt at one. It does
// not change.
type passage struct {
	client, service netip.AddrPort

	cut  func() // what conn.cut does beside resetting the ends
	open bool   // the service has taken the connection
}

// pass says how c is taken on in its client's name. It is false when c was cut
// before.
func (c *conn) pass(p *passage) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passage = p
	return !c.done
}

// peerOf is the address of a socket's peer.
func peerOf(fd int) (netip.AddrPort, bool) {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}, false
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), true
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), true
	}
	return netip.AddrPort{}, false
}

// hostAddrs knows the host's own addresses, as they were a moment ago. To take a
// new one for a stranger's does no harm: the service sees it.
type hostAddrs struct {
	mu    sync.Mutex // guards what is below; held while the kernel is asked
	addrs map[netip.Addr]struct{}
	until time.Time
}

// has says whether an address is the host's own, loopback included.
func (h *hostAddrs) has(addr netip.Addr) bool {
	if addr.IsLoopback() {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.After(h.until) {
		h.until = now.Add(hostAddrsAge)
		h.read()
	}
	_, ok := h.addrs[addr]
	return ok
}

// read asks the kernel. When that fails, what was known stands.
func (h *hostAddrs) read() {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return
	}
	h.addrs = make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				h.addrs[addr.Unmap()] = struct{}{}
			}
		}
	}
}

// statuses are those of forwards. They are made without d.mu, because the Opener may
// ask the child.
func (d *Driver) statuses(forwards []*forward) []port.Status {
	list := make([]port.Status, len(forwards))
	for i, fw := range forwards {
		list[i] = d.statusOf(fw)
	}
	return list
}

// statusOf is the status of a forward at this moment, with whose address its
// service sees: what keep and openKept do for the first address of the service, and
// whether they have not for some client lately.
func (d *Driver) statusOf(fw *forward) port.Status {
	status := fw.status
	if status.Spec.Reverse { // all of its clients are in the namespace
		return status
	}
	kept, listens := 0, 0
	for _, l := range fw.listeners {
		kept += d.keeps(status.Spec, l.family)
		listens++
	}
	for _, s := range fw.sockets {
		kept += d.keeps(status.Spec, s.family)
		listens++
	}
	switch {
	case kept == 0:
		status.SourceIP = port.SourceIPOff
	case kept < listens || fw.strays.any():
		status.SourceIP = port.SourceIPPartly
	default:
		status.SourceIP = port.SourceIPPreserve
	}
	return status
}

// keeps is 1 when clients of a family keep their addresses, and else 0. Those who
// come to a loopback address are the host itself, and those who come to a link-local
// one are on a link that the namespace does not have.
func (d *Driver) keeps(spec port.Spec, family port.Families) int {
	var at netip.Addr // every address
	if spec.ParentIP != "" {
		at, _ = netip.ParseAddr(spec.ParentIP) // of a valid spec
	}
	target := spec.Target(family).Addr()
	if d.opts.Opener != nil && !at.IsLoopback() && !at.IsLinkLocalUnicast() &&
		familyOf(target) == family && d.opts.Opener.Reaches(target) {
		return 1
	}
	return 0
}

// detours are the clients of a forward whose address could not be kept lately.
type detours struct {
	mu    sync.Mutex // guards until
	until map[netip.Addr]time.Time
}

// has says whether there is no use in trying.
func (d *detours) has(client netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	until, ok := d.until[client]
	if ok && time.Now().After(until) {
		delete(d.until, client)
		return false
	}
	return ok
}

// add takes note of a client; the notes begin anew when there are too many.
func (d *detours) add(client netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.until == nil || len(d.until) >= maxDetours {
		d.until = map[netip.Addr]time.Time{}
	}
	d.until[client] = time.Now().Add(detourSpan)
}

// strays counts the connections and flows of a forward in which its service does not see
// the address of a client that is not the host itself.
type strays struct {
	mu    sync.Mutex // guards what is below
	now   int
	until time.Time // when the last one is forgotten
}

func (s *strays) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now++
}

func (s *strays) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now--
	s.until = time.Now().Add(detourSpan)
}

// any says whether there is one, or was within a minute.
func (s *strays) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now > 0 || time.Now().Before(s.until)
}
