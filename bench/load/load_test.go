package load

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const short = 20 * time.Millisecond

func serve(t *testing.T) *Server {
	t.Helper()
	s, err := Listen(ServerOptions{Addr: netip.MustParseAddr("127.0.0.1"), TCP: []uint16{0, 0}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestRoundTripsAreCountedAndTimed(t *testing.T) {
	s := serve(t)
	for name, trips := range map[string]func() (Trips, error){
		"TCP": func() (Trips, error) { return TCPTrips(s.TCP()[0], short) },
		"UDP": func() (Trips, error) { return UDPTrips(s.UDP(), short) },
	} {
		t.Run(name, func(t *testing.T) {
			got, err := trips()
			if err != nil {
				t.Fatal(err)
			}
			if got.Count == 0 || got.Lost != 0 || got.Elapsed < short || got.Rate() == 0 {
				t.Errorf("trips: %+v", got)
			}
			if got.P50 <= 0 || got.P99 < got.P50 || got.P99 > got.Elapsed {
				t.Errorf("percentiles: %+v", got)
			}
		})
	}
	if want := netip.MustParseAddr("127.0.0.1"); s.LastPeer() != want {
		t.Errorf("last peer: %v, want %v", s.LastPeer(), want)
	}
}

func TestConnectionsAtOnceDoRoundTrips(t *testing.T) {
	s := serve(t)
	got, err := TCPTripsAtOnce(s.TCP(), 5, short)
	if err != nil {
		t.Fatal(err)
	}
	if got.Count < 5 || got.Lost != 0 || got.Elapsed < short {
		t.Errorf("trips: %+v", got)
	}
}

func TestShortConnectionsAreOpenedUsedAndClosed(t *testing.T) {
	s := serve(t)
	got, err := Connect(s.TCP(), 4, short)
	if err != nil {
		t.Fatal(err)
	}
	if got.Count == 0 || got.Failed != 0 || got.Reason != "" {
		t.Errorf("connections: %+v", got)
	}
}

func TestConnectionsThatFailSayWhy(t *testing.T) {
	s := serve(t)
	to := s.TCP()
	s.Close()
	got, err := Connect(to, 1, short)
	if err != nil {
		t.Fatal(err)
	}
	if got.Count != 0 || got.Failed == 0 || got.Reason == "" {
		t.Errorf("connections to a closed port: %+v", got)
	}
	held, err := Hold("tcp", to, 3, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if held.Open != 0 || held.Reason == "" {
		t.Errorf("held connections to a closed port: %+v", held)
	}
}

func TestAFloodIsCountedAtTheSink(t *testing.T) {
	s := serve(t)
	for _, burst := range []int{1, 16} {
		t.Run(fmt.Sprint("in bursts of ", burst), func(t *testing.T) {
			s.Forget()
			sent, err := Flood(s.Sink(), 100, burst, short)
			if err != nil {
				t.Fatal(err)
			}
			if sent.Sent == 0 || sent.Sent%burst != 0 || sent.Elapsed < short {
				t.Fatalf("flood: %+v", sent)
			}
			// A burst that was not cut would be one datagram; most of them may be lost.
			least := 0
			if burst > 1 {
				least = sent.Sent / burst / 2
			}
			testenv.Until(t, "datagrams", func() bool { return s.Arrivals().Datagrams > least })
			if got := s.Arrivals(); got.Datagrams > sent.Sent || got.Span <= 0 || got.Span > time.Minute {
				t.Errorf("arrived: %+v, sent: %+v", got, sent)
			}
		})
	}
	s.Forget()
	if got := s.Arrivals(); got != (Arrivals{}) {
		t.Errorf("arrived after Forget: %+v", got)
	}
}

func TestConnectionsAndFlowsAreHeldUntilClosed(t *testing.T) {
	s := serve(t)
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			to := s.TCP()
			if network == "udp" {
				to = []netip.AddrPort{s.UDP()}
			}
			held, err := Hold(network, to, 20, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			if held.Open != 20 || held.Reason != "" || held.Elapsed <= 0 {
				t.Errorf("held: %+v", held)
			}
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) > 20 {
		t.Errorf("the server has %d connections, want at most 20", len(s.conns))
	}
}

func TestHoldingStopsAtItsLimitOfTime(t *testing.T) {
	s := serve(t)
	held, err := Hold("tcp", s.TCP(), 1000, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if held.Open == 1000 || held.Reason == "" {
		t.Errorf("held: %+v", held)
	}
}

func TestPercentiles(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[len(hundred)-1-i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		name  string
		times []time.Duration
		p     float64
		want  time.Duration
	}{
		{"none", nil, 0.5, 0},
		{"one", []time.Duration{7}, 0.99, 7},
		{"the median of a hundred", hundred, 0.50, 50},
		{"the 99th of a hundred", hundred, 0.99, 99},
		{"the least", hundred, 0, 1},
		{"the most", hundred, 1, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := percentile(c.times, c.p); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}
