package builtin

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/port"
)

// The kernel is asked for addresses before a forward is listed: what it refuses
// is told to the caller, and what it has given cannot be taken by another.

const (
	// backlog is the length of a listener's queue; the kernel's
	// net.core.somaxconn bounds it.
	backlog = 4096

	// datagramBuffer is asked for, in bytes, for the queues of UDP sockets.
	datagramBuffer = 1 << 20

	// freePortTries is how many free ports of one family are tried until one is
	// free in the other family too.
	freePortTries = 64
)

// bound is a spec with its sockets, and port 0 filled in.
type bound struct {
	spec    port.Spec
	sockets []boundSocket
}

type boundSocket struct {
	fd     int
	family port.Families
}

func (b bound) close() {
	for _, s := range b.sockets {
		unix.Close(s.fd)
	}
}

// bindAll binds the sockets of all specs, or none. Free ports are picked last,
// so that they are not those of another spec.
func bindAll(specs []port.Spec, taken func() []port.Status, keepAlive linux.KeepAlive) (_ []bound, err error) {
	bounds := make([]bound, len(specs))
	defer func() {
		if err != nil {
			for _, b := range bounds {
				b.close()
			}
		}
	}()
	for _, free := range [...]bool{false, true} {
		for i, spec := range specs {
			if free != (spec.ParentPort == 0) {
				continue
			}
			if bounds[i], err = bind(spec, keepAlive); err != nil {
				return nil, explain(spec, err, taken(), specs[:i])
			}
		}
	}
	return bounds, nil
}

// bind binds the sockets of one spec.
func bind(spec port.Spec, keepAlive linux.KeepAlive) (bound, error) {
	if spec.ParentPort != 0 {
		return bindPort(spec, spec.ParentPort, keepAlive)
	}
	for try := 1; ; try++ {
		b, err := bindPort(spec, 0, keepAlive)
		if err == nil || try == freePortTries || !errors.Is(err, unix.EADDRINUSE) {
			return b, err
		}
	}
}

// bindPort binds the same port on all addresses of spec. A host without IPv6 is
// no error where IPv4 is asked for too.
func bindPort(spec port.Spec, number int, keepAlive linux.KeepAlive) (_ bound, err error) {
	b := bound{spec: spec}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	for _, addr := range spec.Listens() {
		fd, err := openSocket(spec.Transport(), netip.AddrPortFrom(addr, uint16(number)), keepAlive)
		if err != nil && len(b.sockets) > 0 && noIPv6(err) {
			continue
		}
		if err != nil {
			return bound{}, err
		}
		b.sockets = append(b.sockets, boundSocket{fd, familyOf(addr)})
		if number == 0 {
			if number, err = linux.LocalPort(fd); err != nil {
				return bound{}, err
			}
		}
	}
	b.spec.ParentPort = number
	return b, nil
}

// openSocket opens a socket that takes connections or datagrams at an address.
func openSocket(transport string, at netip.AddrPort, keepAlive linux.KeepAlive) (int, error) {
	if transport == "tcp" {
		return linux.ListenTCP(at, backlog, keepAlive)
	}
	fd, err := linux.BindUDP(at)
	if err != nil {
		return -1, err
	}
	if err := linux.SetBuffers(fd, datagramBuffer); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func familyOf(addr netip.Addr) port.Families {
	if addr.Is6() {
		return port.IPv6
	}
	return port.IPv4
}

// noIPv6 tells how a host without IPv6 refuses [::].
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// explain makes the error for a spec whose sockets could not be bound: what was
// asked for, what the kernel said, who is in the way, and the remedy. earlier are
// the specs of the same batch that came before.
func explain(spec port.Spec, err error, taken []port.Status, earlier []port.Spec) error {
	listen := fmt.Sprintf("listen %s %s", spec.Proto, listenAddress(spec))
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		// Whichever call found out, clients look for "bind:".
		return fmt.Errorf("%w: %s: %w%s", port.ErrConflict, listen, os.NewSyscallError("bind", unix.EADDRINUSE),
			holder(spec, taken, earlier))
	case errors.Is(err, unix.EACCES) && spec.ParentPort < firstUnprivileged():
		return fmt.Errorf("%s: %w: %s", listen, err, privilegedRemedy(spec.ParentPort))
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%s: %w: the host does not have the address %s", listen, err, spec.ParentIP)
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%s: %w: the host does not have IPv6", listen, err)
	default:
		return fmt.Errorf("%s: %w", listen, err)
	}
}

// firstUnprivileged returns the lowest port that every user may bind.
func firstUnprivileged() int {
	const usual = 1024
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return usual
	}
	first, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return usual
	}
	return first
}

// privilegedRemedy says how to let users bind a port.
func privilegedRemedy(number int) string {
	exe, err := os.Executable()
	if err != nil {
		exe = "PROGRAM"
	}
	return fmt.Sprintf("the port is privileged; allow it with \"sudo sysctl -w net.ipv4.ip_unprivileged_port_start=%d\" "+
		"or \"sudo setcap cap_net_bind_service=ep %s\"", number, exe)
}

// listenAddress formats the parent's side of spec.
func listenAddress(spec port.Spec) string {
	if strings.Contains(spec.ParentIP, ":") {
		return fmt.Sprintf("[%s]:%d", spec.ParentIP, spec.ParentPort)
	}
	return fmt.Sprintf("%s:%d", spec.ParentIP, spec.ParentPort)
}
