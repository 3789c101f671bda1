package parent

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/flows"
)

// flowTeller is what a driver may implement, of the network or of ports, to tell of
// its flows.
type flowTeller interface{ Flows() []flows.Flow }

// flowsOf are the flows of a driver, where it tells.
func flowsOf(driver any) []flows.Flow {
	if d, ok := driver.(flowTeller); ok {
		return d.Flows()
	}
	return nil
}

func (f facade) Connections() []api.Connection {
	list := joinFlows(flowsOf(f.g.ports), flowsOf(f.g.o.Network))
	slices.SortFunc(list, func(a, b flows.Flow) int {
		return cmp.Or(a.Forward-b.Forward, cmp.Compare(a.Proto, b.Proto), a.Child.Compare(b.Child), a.Remote.Compare(b.Remote))
	})
	now := time.Now()
	out := make([]api.Connection, len(list))
	for i, f := range list {
		out[i] = connection(f, now)
	}
	return out
}

// joinFlows makes one list of the flows of the port driver and of the network. A
// connection that the network has opened in a client's name is in both: the port
// driver knows the forward, and the network what has passed.
func joinFlows(ports, network []flows.Flow) []flows.Flow {
	type key struct{ child, remote netip.AddrPort }
	opened := map[key]flows.Flow{}
	list := make([]flows.Flow, 0, len(ports)+len(network))
	for _, f := range network {
		if f.Direction == flows.Forward {
			opened[key{f.Child, f.Remote}] = f
		} else {
			list = append(list, f)
		}
	}
	for _, f := range ports {
		if same, ok := opened[key{f.Child, f.Remote}]; ok && f.Kept && f.Proto == same.Proto && f.Direction == flows.Forward {
			f.State, f.Used, f.In, f.Out, f.Counted = same.State, same.Used, same.In, same.Out, same.Counted
		}
		list = append(list, f)
	}
	return list
}

// connection is a flow as the API shows it.
func connection(f flows.Flow, now time.Time) api.Connection {
	c := api.Connection{
		Proto: f.Proto, Direction: string(f.Direction), State: string(f.State),
		ChildIP: f.Child.Addr(), ChildPort: int(f.Child.Port()),
		RemoteIP: f.Remote.Addr(), RemotePort: int(f.Remote.Port()),
		Forward: f.Forward,
	}
	if f.Direction == flows.Forward {
		c.SourceIP = "off"
		if f.Kept {
			c.SourceIP = "preserve"
		}
	}
	age := func(t time.Time) int { return max(0, int(now.Sub(t)/time.Second)) }
	if c.AgeSeconds = age(f.Since); !f.Used.IsZero() {
		c.IdleSeconds = min(age(f.Used), c.AgeSeconds)
	} else {
		c.IdleSeconds = c.AgeSeconds
	}
	if f.Counted {
		c.BytesIn, c.BytesOut = &f.In, &f.Out
	}
	return c
}
