package hostnic

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// release gives a lease back before its time (RFC 2131, 4.4.6). Interfaces that are
// made for one gate have an Ethernet address for once, by which a server without a
// word holds an address back for each.
type release struct {
	// Address is the one that was leased.
	Address netip.Addr `json:"address"`

	// Server is who has granted it.
	Server netip.Addr `json:"server"`

	// Packet is a DHCPRELEASE.
	Packet []byte `json:"packet"`
}

// release is what gives the lease back; nil where the server has no name.
func (l *lease) release() *release {
	server, ok := netip.AddrFromSlice(l.ACK.ServerIdentifier().To4())
	packet, err := dhcpv4.NewReleaseFromACK(l.ACK)
	if !ok || err != nil {
		return nil
	}
	return &release{Address: l.Address.Addr(), Server: server, Packet: packet.ToBytes()}
}

// releaseSocket makes a socket in the current network namespace for release.send.
func releaseSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return os.NewFile(uintptr(fd), "release"), nil
}

// send sends the release on a socket of releaseSocket's, whose network namespace may
// end as soon as it returns. There is no answer to wait for; but the kernel may have
// to ask for the server's Ethernet address first, and meanwhile keeps the packet in
// the socket's queue.
func (r *release) send(f *os.File) error {
	const patience, pause = time.Second, time.Millisecond
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return err
	}
	defer conn.Close()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.Server, dhcpv4.ServerPort))
	if _, err := conn.WriteTo(r.Packet, to); err != nil {
		return fmt.Errorf("give the lease of %v back: %w", r.Address, err)
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(pause) {
		queued, err := linux.Unsent(int(f.Fd()))
		if queued == 0 || err != nil {
			return err
		}
	}
	return errors.New("give the lease back: the server does not say where it is")
}
