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
	lead    port.Lead // nil where there are sockets
}

type boundSocket struct {
	fd     int
	family port.Families
}

func (b bound) close() {
	for _, s := range b.sockets {
		unix.Close(s.fd)
	}
	if b.lead != nil {
		b.lead.Cut()
	}
}

// bindAll binds the sockets of all specs, or none. Free ports are picked last,
// so that they are not those of another spec.
func (b binder) bindAll(specs []port.Spec, taken func() []port.Status) (_ []bound, err error) {
	bounds := make([]bound, len(specs))
	defer func() {
		if err != nil {
			for _, done := range bounds {
				done.close()
			}
		}
	}()
	for _, free := range [...]bool{false, true} {
		for i, spec := range specs {
			if free != (spec.ListenPort() == 0) {
				continue
			}
			if bounds[i], err = b.bind(spec); err != nil {
				return nil, explain(spec, err, taken(), specs[:i])
			}
		}
	}
	return bounds, nil
}

// bind binds the sockets of one spec.
func (b binder) bind(spec port.Spec) (bound, error) {
	if number := spec.ListenPort(); number != 0 {
		return b.bindPort(spec, number)
	}
	for try := 1; ; try++ {
		done, err := b.bindPort(spec, 0)
		if err == nil || try == freePortTries || !errors.Is(err, unix.EADDRINUSE) {
			return done, err
		}
	}
}

// bindPort binds the same port on all addresses of spec; 0 is a free one of the
// host's. A side without IPv6 is no error where IPv4 is asked for too.
func (b binder) bindPort(spec port.Spec, number int) (_ bound, err error) {
	done := bound{spec: spec}
	defer func() {
		if err != nil {
			done.close()
		}
	}()
	for _, addr := range spec.Listens() {
		if b.atGateway(spec, addr) {
			done.lead, err = b.gateway.Lead(spec.Transport(), netip.AddrPortFrom(addr, uint16(number)), spec.Target(familyOf(addr)))
			return done, err // which has nothing where there is an error
		}
		fd, err := b.open(spec, netip.AddrPortFrom(addr, uint16(number)))
		if err != nil && len(done.sockets) > 0 && noIPv6(err) {
			continue
		}
		if err != nil {
			return bound{}, err
		}
		done.sockets = append(done.sockets, boundSocket{fd, familyOf(addr)})
		if number == 0 {
			if number, err = linux.LocalPort(fd); err != nil {
				return bound{}, err
			}
		}
	}
	if spec.ListenPort() == 0 {
		done.spec.ParentPort = number // a reverse spec has a port
	}
	return done, nil
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
	listen, side := fmt.Sprintf("listen %s %s", spec.Proto, listenAddress(spec)), "host"
	if spec.Reverse {
		listen, side = listen+" in the namespace", "namespace"
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		// Whichever call found out, clients look for "bind:".
		return fmt.Errorf("%w: %s: %w%s", port.ErrConflict, listen, os.NewSyscallError("bind", unix.EADDRINUSE),
			holder(spec, taken, earlier))
	case errors.Is(err, unix.EACCES) && !spec.Reverse && spec.ParentPort < firstUnprivileged():
		return fmt.Errorf("%s: %w: %s", listen, err, privilegedRemedy(spec.ParentPort))
	case errors.Is(err, unix.EADDRNOTAVAIL):
		text := fmt.Sprintf("the %s does not have the address %s", side, spec.ListenIP())
		if spec.Reverse {
			text += ", nor a gateway that has it"
		}
		return fmt.Errorf("%s: %w: %s", listen, err, text)
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%s: %w: the %s does not have IPv6", listen, err, side)
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

// listenAddress formats the side of spec that listens.
func listenAddress(spec port.Spec) string {
	if strings.Contains(spec.ListenIP(), ":") {
		return fmt.Sprintf("[%s]:%d", spec.ListenIP(), spec.ListenPort())
	}
	return fmt.Sprintf("%s:%d", spec.ListenIP(), spec.ListenPort())
}
