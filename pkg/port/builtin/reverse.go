package builtin

import (
	"context"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/port"
)

// A reverse forward is one whose sides have changed places: it listens on a socket
// that was made in the namespace, and connects to the service with the host's own.
// All between is the same. Its clients are seen by the host's loopback address.
//
//	client inside --> listener of the namespace --> conn <==> service on the host
//
// The kernel lets this process bind the namespace's ports, privileged ones too: its
// user is the owner of the user namespace that they belong to (user_namespaces(7)).
//
// The gateway's addresses are not the namespace's, so there a reverse forward has no
// socket: the network leads its port to the host (port.Lead).

// binder binds the sockets of specs, on the side where each listens.
type binder struct {
	ctx       context.Context // of the one who wants them
	sockets   port.Sockets
	gateway   port.Gateway // may be nil
	keepAlive linux.KeepAlive
}

// open opens a socket that takes connections or datagrams at an address.
func (b binder) open(spec port.Spec, at netip.AddrPort) (fd int, err error) {
	k := kindFor(at.Addr().Is6(), unix.SOCK_STREAM)
	if spec.Transport() == "udp" {
		k.typ = unix.SOCK_DGRAM
	}
	if spec.Reverse {
		fd, err = b.inside(k)
	} else {
		fd, err = linux.Socket(k.domain, k.typ, 0)
	}
	if err != nil {
		return -1, err
	}
	if k.typ == unix.SOCK_STREAM {
		err = linux.ListenTCP(fd, at, backlog, b.keepAlive)
	} else if err = linux.BindUDP(fd, at); err == nil {
		err = prepareUDP(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// atGateway says whether a spec's address is the gateway's.
func (b binder) atGateway(spec port.Spec, addr netip.Addr) bool {
	return spec.Reverse && b.gateway != nil && b.gateway.IsGateway(addr)
}

// inside gets a socket of the namespace.
func (b binder) inside(k kind) (fd int, err error) {
	files, err := b.sockets.Sockets(b.ctx, k.domain, k.typ, 1)
	if err != nil {
		return -1, err
	}
	return detachFile(files[0])
}

// prepare sets what a socket that connects to a service has, on either side.
func (d *Driver) prepare(fd int, k kind) error {
	if k.typ == unix.SOCK_STREAM {
		return linux.TuneTCP(fd, d.keepAlive)
	}
	return prepareUDP(fd)
}

// prepareUDP sets what the exchange's sockets have on both sides.
func prepareUDP(fd int) error {
	if err := linux.JoinDatagrams(fd); err != nil {
		return err
	}
	return linux.SetBuffers(fd, datagramBuffer)
}

// hostSide opens a socket of the host that connects to a service.
func (d *Driver) hostSide(k kind) (fd int, err error) {
	if fd, err = linux.Socket(k.domain, k.typ, 0); err != nil {
		return -1, err
	}
	if err = d.prepare(fd, k); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// serviceSide returns a socket that connects to the service of a forward.
func (d *Driver) serviceSide(ctx context.Context, spec port.Spec, k kind) (*os.File, error) {
	if !spec.Reverse {
		return d.pool.take(ctx, k)
	}
	fd, err := d.hostSide(k)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "service"), nil
}
