package hostnic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// DefaultBridge is the bridge that packages of LXC make.
const DefaultBridge = "lxcbr0"

// helperPaths are where distributions have lxc-user-nic(1).
var helperPaths = []string{
	"/usr/libexec/lxc/lxc-user-nic",
	"/usr/lib/*/lxc/lxc-user-nic",
	"/usr/lib/lxc/lxc-user-nic",
}

// helperPatience is how long lxc-user-nic may take.
const helperPatience = 30 * time.Second

// BridgeOptions configure NewBridge.
type BridgeOptions struct {
	// Bridge is the host's bridge. Empty is DefaultBridge.
	Bridge string

	// Helper is the path of lxc-user-nic(1). Empty is where distributions have it.
	Helper string

	// Logger takes what goes wrong with a lease. Nil discards it.
	Logger *slog.Logger
}

// Bridge is the driver for one end of a veth pair whose other end is in a bridge of
// the host's: lxc-user-nic(1), which is set-user-ID root, makes it for users whom the
// administrator has allowed it (lxc-usernet(5)). The namespaces are the gate's own,
// the address comes by DHCP, and the interface goes with the gate. It implements
// network.Driver and network.Attacher.
type Bridge struct {
	*driver
	bridge string
	helper string // empty until Check, where none was named
}

// NewBridge returns the driver. Nothing is looked at before Check.
func NewBridge(o BridgeOptions) *Bridge {
	if o.Bridge == "" {
		o.Bridge = DefaultBridge
	}
	b := &Bridge{driver: newDriver(o.Logger), bridge: o.Bridge, helper: o.Helper}
	b.onlyUse = true
	b.set(&state{DHCP: true, Card: card{Name: "eth0"}})
	return b
}

// Check finds the helper, and what would keep it from its work.
func (b *Bridge) Check() error {
	if b.helper == "" {
		b.helper = findHelper()
	}
	if b.helper == "" {
		return errors.New("lxc-user-nic is not installed: install it with: sudo apt-get install liblxc-common (Fedora, Alpine, Arch: lxc)")
	}
	info, err := os.Stat(b.helper)
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSetuid == 0 && os.Geteuid() != 0 {
		return fmt.Errorf("%s is not set-user-ID root, so it cannot add to a bridge: mend it with: sudo chmod u+s %s", b.helper, b.helper)
	}
	if _, err := os.Stat("/sys/class/net/" + b.bridge + "/bridge"); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("there is no bridge called %s on this host: name one in hostnic.BridgeOptions.Bridge", b.bridge)
	}
	return nil
}

// findHelper is where a distribution has the helper; empty where none has.
func findHelper() string {
	for _, pattern := range helperPaths {
		if found, _ := filepath.Glob(pattern); len(found) > 0 { // the patterns are good
			return found[0]
		}
	}
	return ""
}

// Attach has the interface made in the network namespace of the child.
func (b *Bridge) Attach(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, helperPatience)
	defer cancel()
	var stderr bytes.Buffer
	// The first two arguments name a container, of which there is none.
	cmd := exec.CommandContext(ctx, b.helper, "create", "/dev/null", "gatekit", strconv.Itoa(pid), "veth", b.bridge, b.Plan().Interface.Name)
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return nil
	}
	// It says "Quota reached" whatever the cause, last.
	said := strings.Join(strings.Fields(stderr.String()), " ")
	return fmt.Errorf("%s: %w: %s: is this user allowed to? /etc/lxc/lxc-usernet wants a line such as: USER veth %s 10", b.helper, err, said, b.bridge)
}
