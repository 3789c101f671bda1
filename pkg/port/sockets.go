package port

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// Sockets makes sockets inside the network namespace. Of a gate it is the child, who
// is asked over the handshake; SocketsIn needs none.
type Sockets interface {
	// Sockets returns up to n new, unconnected, non-blocking, close-on-exec sockets,
	// and at least one where it returns no error.
	// domain is unix.AF_INET or AF_INET6 with a typ of unix.SOCK_STREAM or
	// SOCK_DGRAM, or unix.AF_NETLINK, which speaks NETLINK_SOCK_DIAG (sock_diag(7)) with
	// SOCK_RAW, and NETLINK_ROUTE (rtnetlink(7)) with SOCK_DGRAM. The network driver may
	// ask for AF_PACKET with SOCK_RAW as well, which writes frames to lo, and for
	// AF_UNSPEC, which are no sockets but files with what the namespace counts. The caller
	// owns them.
	Sockets(ctx context.Context, domain, typ, n int) ([]*os.File, error)
}

// SocketsIn makes sockets in the network namespace that a file is bound to, such as
// /proc/PID/ns/net: for a port driver that is used alone, without a gate. The caller
// has CAP_SYS_ADMIN in its own user namespace and in that which owns the other
// (setns(2)), and keeps the file open while the driver runs. nil is the caller's own
// network namespace, and needs no capability. Those of AF_PACKET and AF_UNSPEC are refused.
func SocketsIn(netns *os.File) Sockets { return namespace{netns} }

type namespace struct{ file *os.File }

func (ns namespace) Sockets(_ context.Context, domain, typ, n int) (files []*os.File, err error) {
	make := func() error {
		for range n {
			f, err := NewSocket(domain, typ)
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		return nil
	}
	if ns.file == nil {
		err = make()
	} else {
		err = linux.InNetwork(ns.file, make)
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("make a socket in the namespace: %w", err)
	}
	return files, nil
}

// NewSocket makes a socket in the network namespace of the calling thread, as Sockets
// describes it, for who implements that. AF_PACKET and AF_UNSPEC are refused: they are a
// network driver's.
func NewSocket(domain, typ int) (*os.File, error) {
	protocol := 0
	switch domain {
	case unix.AF_INET, unix.AF_INET6:
	case unix.AF_NETLINK:
		if protocol = unix.NETLINK_SOCK_DIAG; typ == unix.SOCK_DGRAM {
			protocol = unix.NETLINK_ROUTE
		}
	default:
		return nil, unix.EAFNOSUPPORT
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return os.NewFile(uintptr(fd), "socket"), nil
}
