package hostnic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	osuser "os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/pkg/network"
)

// AroundOptions configure NewAround.
type AroundOptions struct {
	// Interface is the name of the card.
	Interface string

	// Mode is ModeMove, also for "", or ModeMacvlan, which gets its address by DHCP.
	Mode string

	// Dir is where it is lent meanwhile. Empty is a directory named for the card,
	// below DefaultParent or, for who is not root, below $XDG_RUNTIME_DIR/gatekit.
	Dir string

	// Logger takes warnings, and each step at debug level. Nil discards them.
	Logger *slog.Logger
}

// Around is the driver that lends a card for one gate: it is a Create before it and a
// Destroy after it, by who starts the gate. When the gate is killed, the next one on
// this card gives it back first, or Destroy does. It implements network.Driver and
// network.Joiner.
type Around struct {
	*Card
	o CreateOptions
}

// NewAround returns the driver. Nothing is looked at before Check.
func NewAround(o AroundOptions) (*Around, error) {
	if o.Dir == "" {
		parent := DefaultParent
		if os.Geteuid() != 0 {
			runtime := os.Getenv("XDG_RUNTIME_DIR")
			if runtime == "" {
				return nil, errors.New("XDG_RUNTIME_DIR is not set: name a directory that is to be made for the card with hostnic.AroundOptions.Dir")
			}
			parent = filepath.Join(runtime, "gatekit")
		}
		o.Dir = filepath.Join(parent, "hostnic-"+filepath.Base(o.Interface))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	card, err := New(Options{Dir: o.Dir, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	a := &Around{card, CreateOptions{
		Dir: o.Dir, Interface: o.Interface, Mode: o.Mode, DHCP: o.Mode == ModeMacvlan, once: true, Logger: o.Logger,
		Owner: Owner{UID: os.Geteuid(), GID: os.Getegid(), Name: strconv.Itoa(os.Geteuid())},
	}}
	if u, err := osuser.LookupId(a.o.Owner.Name); err == nil {
		a.o.Owner.Name = u.Username
	}
	return a, nil
}

// MapsIDs is true: the user namespace is new.
func (a *Around) MapsIDs() bool { return true }

// Check gives the card back that an earlier gate did not, and finds what is wrong
// with lending it.
func (a *Around) Check() error {
	if err := checkPrivilege(); err != nil {
		return err
	}
	switch old, err := readState(a.o.Dir); {
	case err == nil && !old.Once:
		return fmt.Errorf("%s is lent to %s in %s: use hostnic.Options.Dir=%s", old.Card.Name, old.User, a.o.Dir, a.o.Dir)
	case err == nil:
		if err := Destroy(context.Background(), DestroyOptions{Dir: a.o.Dir, Logger: a.o.Logger}); err != nil {
			return err
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	_, s, err := survey(&a.o)
	if err != nil {
		return err
	}
	a.set(s)
	return nil
}

// checkPrivilege finds out whether the caller may move interfaces and make mounts.
func checkPrivilege() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	const needed = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_ADMIN
	if caps[0].Effective&needed != needed {
		return errors.New("hostnic.AroundOptions.Interface takes a card from the host: start the gate as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN; or have root lend the card with gatectl netns create, and use hostnic.Options.Dir")
	}
	return nil
}

// Join lends the card, and joins it.
func (a *Around) Join(ctx context.Context, mapIDs func(context.Context, int) error) (*network.Namespaces, error) {
	o := a.o
	o.Owner.MapIDs = mapIDs
	if err := Create(ctx, o); err != nil {
		return nil, err
	}
	giveBack := func() error {
		err := Destroy(context.WithoutCancel(ctx), DestroyOptions{Dir: o.Dir, Force: true, Logger: o.Logger})
		if err != nil {
			err = fmt.Errorf("give %s back: %w; run gatectl netns destroy --ns-dir %s", o.Interface, err, o.Dir)
		}
		return err
	}
	joined, err := a.Card.Join(ctx, mapIDs)
	if err != nil {
		return nil, errors.Join(err, giveBack())
	}
	leave := joined.Leave
	joined.Leave = func() error { return errors.Join(leave(), giveBack()) }
	return joined, nil
}
