package parent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/flows"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/port"
)

// Drivers that tell of their flows, and do nothing else.
type (
	tellingNetwork struct {
		network.Driver
		flows []flows.Flow
	}
	tellingPorts struct {
		port.Driver
		flows []flows.Flow
	}
)

func (d tellingNetwork) Flows() []flows.Flow { return d.flows }
func (d tellingPorts) Flows() []flows.Flow   { return d.flows }

func TestConnectionsAreJoinedFromBothDrivers(t *testing.T) {
	now := time.Now()
	at := netip.MustParseAddrPort
	child, client := at("10.0.2.100:80"), at("198.51.100.7:5000")
	f := facade{&gate{
		o: &Options{Network: tellingNetwork{flows: []flows.Flow{
			{Proto: "udp", Direction: flows.Outbound, State: flows.Open, Child: at("10.0.2.100:9"), Remote: at("198.51.100.9:53"), Since: now.Add(-time.Minute), Used: now.Add(-90 * time.Second)},
			{Proto: "tcp", Direction: flows.Forward, State: flows.HalfClosed, Child: child, Remote: client, Kept: true, Since: now, Used: now.Add(-4 * time.Second), In: 1, Out: 2, Counted: true},
			{Proto: "tcp", Direction: flows.Forward, State: flows.Open, Child: child, Remote: at("198.51.100.7:5001"), Kept: true, Since: now, Used: now}, // its forward has just forgotten it
		}}},
		ports: tellingPorts{flows: []flows.Flow{
			{Proto: "tcp", Direction: flows.Reverse, State: flows.Connecting, Forward: 3, Child: at("127.0.0.1:6000"), Remote: at("127.0.0.1:5432"), Since: now},
			{Proto: "udp", Direction: flows.Forward, State: flows.Open, Forward: 2, Child: child, Remote: client, Since: now, Used: now},
			{Proto: "tcp", Direction: flows.Forward, State: flows.Open, Forward: 1, Child: child, Remote: client, Kept: true, Since: now.Add(-time.Hour)},
		}},
	}}
	addr := netip.MustParseAddr
	want := []api.Connection{
		{Proto: "udp", Direction: "outbound", State: "open", ChildIP: addr("10.0.2.100"), ChildPort: 9, RemoteIP: addr("198.51.100.9"), RemotePort: 53, AgeSeconds: 60, IdleSeconds: 60},
		{Proto: "tcp", Direction: "forward", State: "half-closed", ChildIP: addr("10.0.2.100"), ChildPort: 80, RemoteIP: addr("198.51.100.7"), RemotePort: 5000,
			Forward: 1, SourceIP: "preserve", AgeSeconds: 3600, IdleSeconds: 4, BytesIn: new(uint64(1)), BytesOut: new(uint64(2))},
		{Proto: "udp", Direction: "forward", State: "open", ChildIP: addr("10.0.2.100"), ChildPort: 80, RemoteIP: addr("198.51.100.7"), RemotePort: 5000, Forward: 2, SourceIP: "off"},
		{Proto: "tcp", Direction: "reverse", State: "connecting", ChildIP: addr("127.0.0.1"), ChildPort: 6000, RemoteIP: addr("127.0.0.1"), RemotePort: 5432, Forward: 3},
	}
	got := f.Connections()
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("connections (-want +got):\n%s", diff)
	}
}

// Drivers need not tell, and there need not be one of ports.
func TestADriverThatDoesNotTellHasNoConnections(t *testing.T) {
	if got := (facade{&gate{o: &Options{Network: network.None()}}}).Connections(); got == nil || len(got) != 0 {
		t.Errorf("got %v", got)
	}
}
