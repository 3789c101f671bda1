package hostnic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// DestroyOptions say what is given back.
type DestroyOptions struct {
	// Dir is the directory of a Create.
	Dir string

	// Force ends the processes that are on the card, and does without what cannot be
	// restored, with a warning. Without it both are in the way.
	Force bool

	// Logger takes warnings, and each step at debug level. Nil discards them.
	Logger *slog.Logger

	// held is the lock of Dir where the caller has it. Destroy closes it.
	held *os.File
}

// Destroy gives a card back to the host as it was, and removes the directory. It can
// be called again after whatever ended a Create or another Destroy, such as ctx.
func Destroy(ctx context.Context, o DestroyOptions) error {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d := destruction{o: &o, lock: o.held}
	defer func() {
		if d.lock != nil {
			d.lock.Close()
		}
	}()
	if err := d.examine(); err != nil {
		return err
	}
	return runSteps(ctx, o.Logger, d.steps())
}

// destruction is a Destroy at work.
type destruction struct {
	o     *DestroyOptions
	lock  *os.File
	state *state // nil where it was not written yet, and so nothing was done
	link  netlink.Link
}

func (d *destruction) path(name string) string { return filepath.Join(d.o.Dir, name) }

// examine refuses what is not ours, or in use.
func (d *destruction) examine() error {
	entries, err := os.ReadDir(d.o.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("there is no %s; gatectl netns list shows what is lent", d.o.Dir)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains([]string{usernsFile, netnsFile, stateFile, stateFile + ".new", lockFile}, e.Name()) {
			return fmt.Errorf("%s was not made by gatectl netns create: it has a file %s", d.o.Dir, e.Name())
		}
	}
	d.state, err = readState(d.o.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if d.state == nil {
		return d.takeLock() // all that there is, or less
	}
	host, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	if host != d.state.HostNetwork && isNamespace(d.path(netnsFile)) {
		return fmt.Errorf("the card is from another network namespace, %s: run this command there", d.state.HostNetwork)
	}
	if d.o.Force {
		return nil
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	return d.checkUnused()
}

// takeLock takes the lock, where there is one already, so that no gate comes. It is
// not there without whoever makes or removes the directory.
func (d *destruction) takeLock() (err error) {
	if d.lock != nil {
		return nil
	}
	switch d.lock, err = lock(d.o.Dir, false); {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, errLocked) && d.state != nil && d.state.Ready:
		return fmt.Errorf("a gate is using %s: end it first, or use hostnic.DestroyOptions.Force, which ends it", d.state.Card.Name)
	case errors.Is(err, errLocked):
		return fmt.Errorf("another command is at work in %s: wait for its end", d.o.Dir)
	}
	return err
}

// checkUnused refuses a card that processes are on: what has left a gate, or came
// without one.
func (d *destruction) checkUnused() error {
	users, err := d.userNamespace()
	if users == nil || err != nil {
		return err
	}
	defer users.Close()
	pids, err := users.Processes()
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return fmt.Errorf("processes are using %s: %s; end them first, or use hostnic.DestroyOptions.Force, which ends them", d.state.Card.Name, strings.Trim(fmt.Sprint(pids), "[]"))
	}
	return nil
}

// userNamespace opens the user namespace; nil where it is not kept any more, or not
// yet.
func (d *destruction) userNamespace() (*linux.UserNamespace, error) {
	if !isNamespace(d.path(usernsFile)) {
		return nil, nil
	}
	return linux.OpenUserNamespaceFile(d.path(usernsFile))
}

func (d *destruction) steps() []step {
	var steps []step
	if d.state != nil {
		steps = append(steps,
			step{"say that it is not ready", func() error {
				d.state.Ready = false
				return d.state.write(d.o.Dir)
			}},
			step{"end the processes", d.endProcesses},
			step{"give its lease back", d.giveLeaseBack})
	}
	if d.state != nil && d.state.Mode == ModeMove {
		steps = append(steps,
			step{"take the card out", d.takeOut},
			step{"find it on the host", d.findOnHost},
			step{"restore the interface", d.restore(func() error { return d.state.Card.restoreLink(d.link) })},
			step{"restore its addresses", d.restore(func() error {
				return d.state.Card.sayAddresses(d.link, time.Since(d.state.Made))
			})},
			step{"restore up or down", d.restore(func() error { return d.state.Card.restoreUp(d.link) })},
			step{"restore its routes", d.restore(d.restoreRoutes)})
	}
	if d.state != nil && d.state.Mode == ModeMacvlan {
		steps = append(steps, step{"remove the macvlan", d.removeMacvlan})
	}
	return append(steps,
		step{"let go of the network namespace", func() error { return unmount(d.path(netnsFile)) }},
		step{"let go of the user namespace", func() error { return unmount(d.path(usernsFile)) }},
		step{"remove the network namespace's file", d.remove(netnsFile)},
		step{"remove the user namespace's file", d.remove(usernsFile)},
		step{"remove the lock", d.remove(lockFile)},
		step{"remove an unfinished state", d.remove(stateFile + ".new")},
		step{"remove the state", d.remove(stateFile)},
		step{"remove the directory", func() error { return os.Remove(d.o.Dir) }},
	)
}

// endProcesses ends what is on the card. Without Force there is nothing.
func (d *destruction) endProcesses() error {
	users, err := d.userNamespace()
	if users == nil || err != nil {
		return err
	}
	defer users.Close()
	return users.Kill()
}

// giveLeaseBack tells the DHCP server that the address is free, where the card still
// has it. A server that does not hear it frees it later.
func (d *destruction) giveLeaseBack() error {
	r := d.state.Release
	if r == nil || !isNamespace(d.path(netnsFile)) {
		return nil
	}
	err := d.inside(func() error {
		local, err := netlink.AddrList(nil, netlink.FAMILY_V4)
		if err != nil || !slices.ContainsFunc(local, func(a netlink.Addr) bool { return a.IP.Equal(r.Address.AsSlice()) }) {
			return err
		}
		socket, err := releaseSocket()
		if err != nil {
			return err
		}
		defer socket.Close()
		return r.send(socket)
	})
	if err != nil {
		d.o.Logger.Debug("the DHCP server holds the address until its lease is over", "error", err)
	}
	return nil
}

// takeOut moves the card to the host. A namespace that is gone holds none: the
// kernel has given a card with hardware back by itself.
func (d *destruction) takeOut() error {
	if !isNamespace(d.path(netnsFile)) {
		return nil
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer host.Close()
	return d.inside(func() error {
		link, err := d.state.Card.findInside(d.state.Inside)
		if link == nil || err != nil {
			return err
		}
		return d.state.Card.takeBack(link, host)
	})
}

// inside runs f in the network namespace of the card.
func (d *destruction) inside(f func() error) error {
	ns, err := os.Open(d.path(netnsFile))
	if err != nil {
		return err
	}
	defer ns.Close()
	return linux.InNetwork(ns, f)
}

// findOnHost finds the card where it belongs. The kernel gives one with hardware
// back only a while after the last process of a namespace below has ended.
func (d *destruction) findOnHost() error {
	const patience, pause = 5 * time.Second, 20 * time.Millisecond
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		var err error
		if d.link, err = d.state.Card.findOnHost(); err != nil || d.link != nil {
			return err
		}
		if d.state.Card.Kind != hardware || time.Now().After(end) {
			break
		}
	}
	d.o.Logger.Warn("the card is gone: nothing to restore", "interface", d.state.Card.Name, "kind", d.state.Card.Kind)
	return nil
}

// restore is a step for a card that is there: a virtual one may have been deleted by
// who had it. The world may have changed, so that a route leads nowhere.
func (d *destruction) restore(do func() error) func() error {
	return func() error {
		if d.link == nil {
			return nil
		}
		err := do()
		if err != nil && d.o.Force {
			d.o.Logger.Warn("not all is as it was", "error", err)
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: mend that and run it again, or use hostnic.DestroyOptions.Force, which does without", err)
		}
		return nil
	}
}

func (d *destruction) restoreRoutes() error {
	var routes []message
	for _, m := range d.state.Card.RouteMessages {
		routes = append(routes, m.by(d.state.Card.Index, d.link.Attrs().Index))
	}
	if err := sayRoutes(routes); err != nil {
		return fmt.Errorf("restore the routes of %s: %w", d.state.Card.Name, err)
	}
	return nil
}

// removeMacvlan removes what Create made. It goes with its namespace, but a mount
// namespace of somebody else's may hold on to that for a while.
func (d *destruction) removeMacvlan() error {
	if !isNamespace(d.path(netnsFile)) {
		return nil
	}
	return d.inside(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Type() == "macvlan" {
				err = errors.Join(err, netlink.LinkDel(l))
			}
		}
		return err
	})
}

func (d *destruction) remove(name string) func() error {
	return func() error {
		if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
}

// isNamespace says whether a namespace is bound to path.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// unmount lets go of the namespace at path, if there is one.
func unmount(path string) error {
	for isNamespace(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return &os.PathError{Op: "umount", Path: path, Err: err}
		}
	}
	return nil
}
