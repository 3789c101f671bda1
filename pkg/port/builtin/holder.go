package builtin

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/port"
)

// Who holds an address that is taken is told as exactly as this process may see:
// a forward of ours; else the process that has the socket among its descriptors,
// which /proc shows for processes of the same user; else the user who made the
// socket. It is looked for only after the kernel has said no, and what cannot be
// found out is left out: the error is the same without it.

// searchTime limits the search through the descriptors of all processes.
const searchTime = 250 * time.Millisecond

// holder names who has the address of spec, as the end of a sentence; empty
// where that cannot be told. earlier are the specs of the same request that came
// before.
func holder(spec port.Spec, taken []port.Status, earlier []port.Spec) string {
	for _, s := range taken {
		if port.Conflicts(spec, s.Spec) {
			return fmt.Sprintf(" by forward %d (%s)", s.ID, s.Spec)
		}
	}
	for _, s := range earlier {
		if port.Conflicts(spec, s) {
			return fmt.Sprintf(" by %s of the same request", s)
		}
	}
	if spec.Reverse { // the namespace's sockets are not among those that are seen here
		return ""
	}
	s, ok := socketAt(spec)
	if !ok {
		return ""
	}
	if pid := processOf(s.Inode, time.Now().Add(searchTime)); pid != 0 {
		return fmt.Sprintf(" by process %d%s", pid, nameOf(pid))
	}
	return fmt.Sprintf(" by a process of uid %d", s.UID)
}

// socketAt finds a socket of the host that stands in the way of spec, a
// listening one before others.
func socketAt(spec port.Spec) (linux.InetSocket, bool) {
	diag, err := linux.OpenSockDiag()
	if err != nil {
		return linux.InetSocket{}, false
	}
	defer diag.Close()
	query := linux.InetQuery{Protocol: unix.IPPROTO_TCP, Port: uint16(spec.ParentPort)}
	states := []uint32{linux.StateListen, ^uint32(linux.StateListen | linux.StateTimeWait | linux.StateClose)}
	if spec.Transport() == "udp" {
		query.Protocol, states = unix.IPPROTO_UDP, []uint32{0}
	}
	for _, query.States = range states {
		for _, query.Family = range [...]int{unix.AF_INET, unix.AF_INET6} {
			sockets, err := diag.Inet(query)
			if err != nil {
				continue
			}
			for _, s := range sockets {
				if inTheWay(s, spec.Listens()) {
					return s, true
				}
			}
		}
	}
	return linux.InetSocket{}, false
}

// inTheWay reports whether s shares an address with those to listen on.
func inTheWay(s linux.InetSocket, listens []netip.Addr) bool {
	local := s.Local.Addr()
	for _, addr := range listens {
		switch {
		case local.Is4() == addr.Is4():
			if local == addr.WithZone("") || local.IsUnspecified() || addr.IsUnspecified() {
				return true
			}
		case local.Is6() && local.IsUnspecified() && !s.V6Only: // it takes IPv4 too
			return true
		}
	}
	return false
}

// processOf finds a process that has the socket open, and whose descriptors this
// one may see; 0 when there is none, or time is up.
func processOf(inode uint32, until time.Time) int {
	if inode == 0 { // in no process's hands any more
		return 0
	}
	wanted := fmt.Sprintf("socket:[%d]", inode)
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", p.Name(), "fd")
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if link, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && link == wanted {
				return pid
			}
		}
		if time.Now().After(until) {
			break
		}
	}
	return 0
}

// nameOf returns the name of a process, in parentheses; empty when it is gone.
// A process names itself, so what does not print is taken out.
func nameOf(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	name := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, string(comm))
	return " (" + name + ")"
}
