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

// bindAll binds the sockets of all specs, or none, and gives them to forwards without
// ids. Free ports are picked last, so that they are not those of another spec.
func (b binder) bindAll(specs []port.Spec, taken func() []port.Status) (_ []*forward, err error) {
	fresh := make([]*forward, len(specs))
	defer func() {
		if err != nil {
			for _, fw := range fresh {
				fw.unbind()
			}
		}
	}()
	for _, free := range [...]bool{false, true} {
		for i, spec := range specs {
			if free != (spec.ListenPort() == 0) {
				continue
			}
			if fresh[i], err = b.bind(spec); err != nil {
				return nil, explain(spec, err, taken(), specs[:i])
			}
		}
	}
	return fresh, nil
}

// bind binds the sockets of one spec.
func (b binder) bind(spec port.Spec) (*forward, error) {
	if number := spec.ListenPort(); number != 0 {
		return b.bindPort(spec, number)
	}
	for try := 1; ; try++ {
		fw, err := b.bindPort(spec, 0)
		if err == nil || try == freePortTries || !errors.Is(err, unix.EADDRINUSE) {
			return fw, err
		}
	}
}

// bindPort binds the same port on all addresses of spec; 0 is a free one of the
// host's. A side without IPv6 is no error where IPv4 is asked for too.
func (b binder) bindPort(spec port.Spec, number int) (_ *forward, err error) {
	fw := newForward(spec)
	defer func() {
		if err != nil {
			fw.unbind()
		}
	}()
	for i, addr := range spec.Listens() {
		at := netip.AddrPortFrom(addr, uint16(number))
		if b.atGateway(spec, addr) {
			fw.lead, err = b.gateway.Lead(spec.Transport(), at, spec.Target(familyOf(addr)))
			return fw, err
		}
		fd, err := b.open(spec, at)
		if err != nil && i > 0 && noIPv6(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		fw.hold(fd, familyOf(addr))
		if number == 0 {
			if number, err = linux.LocalPort(fd); err != nil {
				return nil, err
			}
		}
	}
	if spec.ListenPort() == 0 {
		fw.status.Spec.ParentPort = number // a reverse spec has a port
	}
	return fw, nil
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
	case errors.Is(err, unix.EMFILE):
		return fmt.Errorf("%s: %w: a forward takes a descriptor for each family; \"ulimit -Hn\" says how many there may be", listen, err)
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
