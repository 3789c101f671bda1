package child

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/handshake"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/network/hostnic"
	"github.com/gatekit/gatekit/pkg/network/slirp"
	"github.com/gatekit/gatekit/pkg/port"
)

// networks are the child halves of the network drivers. A driver is a folder
// below pkg/network and a line here.
var networks = map[string]NetworkSetup{
	"host":             network.SetupHost,
	"none":             network.SetupNone,
	"slirp":            slirp.Setup,
	hostnic.DriverName: hostnic.Setup,
}

// setUpNetwork runs the child half of the driver in the network namespace, and
// sends its files up. A detached namespace is made, or entered, first.
func (c *child) setUpNetwork() error {
	name := c.setup.Plan.Driver
	set, ok := c.options.Networks[name]
	if !ok {
		set, ok = networks[name]
	}
	if !ok {
		return fmt.Errorf("network driver %q has no child half", name)
	}
	if c.setup.DetachedNetns != "" {
		runner, err := newNetns(c.setup.Network)
		if err != nil {
			return err
		}
		c.netns = runner
		if err := c.conn.Send(handshake.KindDetached, nil); err != nil {
			return errParentGone
		}
	}
	var files []*os.File
	err := c.netns(func() (err error) {
		files, err = set(c.setup.Plan)
		return err
	})
	if err != nil {
		return fmt.Errorf("network %s: %w", name, err)
	}
	err = c.conn.Send(handshake.KindNetwork, nil, files...)
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		return errParentGone
	}
	return nil
}

// allowPings lets all who are inside have ping sockets, which a new network
// namespace has for nobody (icmp(7), ping_group_range): users without
// capabilities, and gates inside this one. Groups are named once they are mapped.
// Where /proc/sys is read-only, as in a container, it stays as it is.
func (c *child) allowPings() {
	if !c.setup.Plan.Namespace {
		return
	}
	maps, err := user.ParseIDMapFile("/proc/self/gid_map")
	if err == nil {
		err = c.netns(func() error {
			return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(pingGroups(maps)), 0)
		})
	}
	if err != nil {
		c.log.Debug("no ping sockets inside", "error", err)
	}
}

// pingGroups is the range from root's group on, which gates inside have, to the last
// group, by their numbers inside. The kernel orders groups as the host numbers them,
// and takes no range that is upside down inside (ipv4_ping_group_range in
// net/ipv4/sysctl_net_ipv4.c): groups below root's on the host are left out.
func pingGroups(maps []user.IDMap) string {
	var last user.IDMap
	for i, m := range maps {
		if i == 0 || m.ParentID > last.ParentID {
			last = m
		}
	}
	return fmt.Sprintf("0 %d", last.ID+last.Count-1)
}

// threadRunner runs a function on some thread and returns what it returned.
type threadRunner func(func() error) error

// here runs a function on the caller's thread.
func here(f func() error) error { return f() }

// newNetns makes a network namespace that one thread is in, and the rest of the
// process is not; or has it enter one that is there, and closes the file of that. The
// thread lasts as long as the process.
func newNetns(existing *os.File) (threadRunner, error) {
	jobs := make(chan job)
	started := make(chan error)
	go serveApart(existing, jobs, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("make a detached network namespace: %w", err)
	}
	return func(do func() error) error {
		j := job{do, make(chan error)}
		jobs <- j
		return <-j.done
	}, nil
}

// job is a function for another thread.
type job struct {
	do   func() error
	done chan error
}

// serveApart does jobs on a thread in another network namespace, a new one or the
// existing. That is not the process's first thread, which stays where the child is,
// for its namespaces are those of /proc/PID/ns: where this goroutine has it, it keeps
// it, and another goroutine finds another thread.
func serveApart(existing *os.File, jobs <-chan job, started chan<- error) {
	runtime.LockOSThread() // never unlocked: no other goroutine may run in this namespace
	if unix.Gettid() == unix.Getpid() {
		go serveApart(existing, jobs, started)
		select {}
	}
	var err error
	if existing == nil {
		err = os.NewSyscallError("unshare(CLONE_NEWNET)", unix.Unshare(unix.CLONE_NEWNET))
	} else {
		err = os.NewSyscallError("setns(CLONE_NEWNET)", unix.Setns(int(existing.Fd()), unix.CLONE_NEWNET))
		existing.Close()
	}
	started <- err
	if err != nil {
		return
	}
	for j := range jobs {
		j.done <- j.do()
	}
}

// makeSockets answers the parent's request for sockets in the network
// namespace.
func (c *child) makeSockets(m handshake.Message) error {
	var request handshake.Request
	if err := m.Decode(&request); err != nil {
		return err
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	reply := handshake.Reply{ID: request.ID}
	err := c.netns(func() error {
		for i := range min(request.N, handshake.MaxFiles) {
			f, err := c.makeSocket(request, i)
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		return nil
	})
	// Some sockets are better than none: the parent uses what it gets.
	if err != nil && len(files) == 0 && !errors.As(err, &reply.Errno) {
		reply.Errno = unix.EIO
	}
	return c.conn.Send(handshake.KindSockets, reply, files...)
}

// makeSocket makes the i-th of a request in the network namespace of the calling thread.
func (c *child) makeSocket(request handshake.Request, i int) (*os.File, error) {
	switch request.Domain {
	case unix.AF_PACKET:
		return slirp.OpenLoopback(c.setup.Plan)
	case unix.AF_UNSPEC:
		return slirp.OpenTally(i)
	}
	return port.NewSocket(request.Domain, request.Type)
}
