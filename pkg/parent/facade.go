package parent

import (
	"context"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/port"
)

// facade is the gate as the API shows it.
type facade struct{ g *gate }

// errNoPortDriver answers those who want to change forwards of a gate that
// forwards none.
var errNoPortDriver = &api.Error{
	Code:    api.CodeBadRequest,
	Message: "this gate has no port driver: start it with the builtin one, and with a network of its own",
}

func (f facade) Info() api.Info {
	n := f.g.o.Network.Info()
	info := api.Info{
		APIVersion: api.Version,
		Version:    f.g.o.Version,
		Name:       f.g.o.Name,
		PID:        os.Getpid(),
		StateDir:   f.g.dir.Path(),
		ChildPID:   f.g.child.Pid,
		NetworkDriver: api.NetworkDriver{
			Driver:         n.Driver,
			DNS:            n.DNS,
			DynamicChildIP: n.DynamicChildIP,
		},
		PortDriver: api.PortDriver{Driver: "none", Protos: []string{}},
	}
	if info.NetworkDriver.DNS == nil {
		info.NetworkDriver.DNS = []netip.Addr{}
	}
	if n.ChildIP.IsValid() {
		info.NetworkDriver.ChildIP = &n.ChildIP
	}
	if f.g.ports != nil {
		p := f.g.ports.Info()
		info.PortDriver = api.PortDriver{Driver: p.Driver, Protos: p.Protos, DisallowLoopbackChildIP: p.DisallowLoopbackChildIP}
	}
	return info
}

// largeBatch is how many forwards are added at once for what that took to be given
// back to the system. Else it would stay, for a gate that is idle collects no garbage:
// a megabyte for a thousand forwards, which hold half of one.
const largeBatch = 500

func (f facade) ListPorts() []api.PortStatus {
	if f.g.ports == nil {
		return []api.PortStatus{}
	}
	return statuses(f.g.ports.List())
}

func (f facade) AddPorts(ctx context.Context, specs []api.PortSpec) ([]api.PortStatus, error) {
	if f.g.ports == nil {
		return nil, errNoPortDriver
	}
	wanted := make([]port.Spec, len(specs))
	for i, s := range specs {
		wanted[i] = port.Spec(s)
	}
	if err := f.g.auto.Yield(ctx, wanted); err != nil {
		return nil, err
	}
	added, err := f.g.ledger.add(ctx, wanted)
	if err != nil {
		return nil, err
	}
	if len(added) >= largeBatch {
		debug.FreeOSMemory()
	}
	return statuses(added), nil
}

func (f facade) RemovePort(ctx context.Context, id int, drain time.Duration) error {
	if f.g.ports == nil {
		return errNoPortDriver
	}
	return f.g.ledger.remove(ctx, []int{id}, drain)
}

func (f facade) AutoPorts(ctx context.Context, on bool) error {
	if f.g.ports == nil {
		return errNoPortDriver
	}
	return f.g.autoPorts(ctx, on)
}

// policed is what a network driver may implement to be told what the namespace may
// reach.
type policed interface {
	Policy() network.Policy
	SetPolicy(network.Policy) error
}

// errNoPolicy answers those who ask for the policy of a gate whose network has
// none.
var errNoPolicy = &api.Error{
	Code:    api.CodeBadRequest,
	Message: "the network of this gate takes no egress policy: start it with slirp",
}

func (f facade) Policy() (api.Policy, error) {
	n, ok := f.g.o.Network.(policed)
	if !ok {
		return api.Policy{}, errNoPolicy
	}
	return api.Policy(n.Policy()), nil
}

func (f facade) SetPolicy(p api.Policy) error {
	n, ok := f.g.o.Network.(policed)
	if !ok {
		return errNoPolicy
	}
	return n.SetPolicy(network.Policy(p))
}

func statuses(in []port.Status) []api.PortStatus {
	out := make([]api.PortStatus, len(in))
	for i, s := range in {
		out[i] = api.PortStatus{ID: s.ID, Spec: api.PortSpec(s.Spec), SourceIP: string(s.SourceIP)}
	}
	return out
}
