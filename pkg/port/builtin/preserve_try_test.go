package builtin

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/port"
)

// fated is a port.Opener of flows alone, to a service that is silent, or answers. Each
// datagram has the fate that it is told.
type fated struct {
	port.Opener

	mu      sync.Mutex // guards what is below
	fate    port.Fate
	answers bool
	sent    []string // also those that were dropped
	tried   int
}

func (o *fated) Keeps(client, service netip.Addr) bool { return true }
func (o *fated) Reaches(service netip.Addr) bool       { return true }

func (o *fated) OpenDatagrams(_, _ netip.AddrPort, receive, _ func([]byte)) (port.Datagrams, error) {
	return &fatedFlow{o, receive}, nil
}

type fatedFlow struct {
	*fated
	receive func([]byte)
}

func (f *fatedFlow) Send(payload []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent = append(f.sent, string(payload))
	if f.answers {
		f.receive([]byte("kept"))
	}
}

func (f *fatedFlow) Try(payload []byte) port.Fate {
	f.Send(payload)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tried++
	return f.fate
}

func (f *fatedFlow) Close() {}

// set has datagrams meet with a fate from here on.
func (o *fated) set(fate port.Fate) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fate = fate
}

// soFar is what was sent, and how much of it was tried.
func (o *fated) soFar() (sent []string, tried int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.sent), o.tried
}

// newFated runs a driver with such an opener and a forward to a service that takes the
// fast path, and returns what that hears, and clients of the forward at one address.
func newFated(t *testing.T) (o *fated, d *Driver, heard chan string, dial func() *net.UDPConn) {
	t.Helper()
	o, d, heard, from := newFatedFrom(t)
	return o, d, heard, func() *net.UDPConn { return from(clientIPv4) }
}

// secondIPv4 is another address of theirs.
const secondIPv4 = "198.51.100.3"

// newFatedFrom does, with clients at either address.
func newFatedFrom(t *testing.T) (o *fated, d *Driver, heard chan string, dial func(from string) *net.UDPConn) {
	t.Helper()
	o, heard = &fated{}, make(chan string, 64)
	service, _ := serveUDP(t, "127.0.0.1:0", func(b []byte) []byte { heard <- string(b); return b })
	d = start(t, Options{Opener: o})
	outside := newClientHost(t)
	var err error
	if outside.do(func() { err = upWith("veth1", secondIPv4) }); err != nil {
		t.Fatal(err)
	}
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(forwardTo(t, d, "udp", hostIPv4, service)))
	return o, d, heard, func(from string) (c *net.UDPConn) {
		outside.do(func() { c, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, to) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

// say sends a datagram as if the last that was tried were long enough ago for another.
func say(t *testing.T, d *Driver, c net.Conn, text string) {
	t.Helper()
	d.udp.loop.do(func() {
		for s := range d.udp.sockets {
			for _, f := range s.flows {
				f.tried = f.tried.Add(-tryPause)
			}
			for client, since := range s.forward.suspects {
				s.forward.suspects[client] = since.Add(-tryPause)
			}
		}
	})
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// expectHeard expects the service to hear these datagrams next.
func expectHeard(t *testing.T, heard chan string, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-heard:
			if got != w {
				t.Errorf("the service hears %q, want %q", got, w)
			}
		case <-time.After(testenv.Patience):
			t.Fatalf("the service hears nothing, want %q", w)
		}
	}
}

func TestWhatIsDroppedTwiceTakesTheFastPath(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		o, d, heard, dial := newFatedFrom(t)
		o.set(port.FatePassed)
		expectListed := func(want port.SourceIP) {
			t.Helper()
			if got := d.List()[0].SourceIP; got != want {
				t.Errorf("the forward is listed with %q, want %q", got, want)
			}
		}
		other, first, second := dial(secondIPv4), dial(clientIPv4), dial(clientIPv4)
		passed := dial(clientIPv4)
		for i, c := range []*net.UDPConn{passed, other, first, second} {
			expectListed(port.SourceIPPreserve)
			say(t, d, c, "one")
			testenv.Until(t, "it to be tried", func() bool { _, tried := o.soFar(); return tried == i+1 })
			o.set(port.FateDropped) // all but what has passed
		}
		// Each flow has had one of its own dropped, and two of them have one client.
		expectHeard(t, heard, "one", "one")
		expectListed(port.SourceIPPartly)
		say(t, d, first, "two")
		expectHeard(t, heard, "two")
		say(t, d, dial(clientIPv4), "at once")
		expectHeard(t, heard, "at once")
		if sent, _ := o.soFar(); !slices.Equal(sent, []string{"one", "one", "one", "one"}) {
			t.Errorf("in the clients' names is sent %q", sent)
		}
		for _, f := range d.Flows() {
			client := f.Remote.String()
			if want := client == other.LocalAddr().String() || client == passed.LocalAddr().String(); f.Kept != want {
				t.Errorf("that the flow is kept is told as %v: %+v", f.Kept, f)
			}
		}
	})
}

// A drop, and then what is no drop, is no reason; and what is not known is none either.
func TestASilentServiceKeepsItsClients(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		o, d, heard, dial := newFated(t)
		c, n := dial(), 0
		for _, fate := range []port.Fate{
			port.FateUnknown, port.FateUnknown, port.FatePassed, port.FateDropped, port.FatePassed, port.FateDropped, port.FatePassed, port.FatePassed,
		} {
			o.set(fate)
			say(t, d, c, "datagram")
			n++
			testenv.Until(t, "it to be sent", func() bool { sent, _ := o.soFar(); return len(sent) == n })
		}
		if _, tried := o.soFar(); tried != n {
			t.Errorf("%d of %d datagrams are tried", tried, n)
		}
		if got := d.List()[0].SourceIP; got != port.SourceIPPreserve || len(heard) > 0 {
			t.Errorf("the forward is listed with %q, and %d datagrams took the fast path", got, len(heard))
		}
	})
}

func TestAnsweredFlowsAreNotTried(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		o, d, _, dial := newFated(t)
		o.answers = true // nobody has asked yet
		c := dial()
		for range 3 {
			say(t, d, c, "datagram")
			_ = c.SetReadDeadline(time.Now().Add(testenv.Patience))
			if _, err := c.Read(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
		if _, tried := o.soFar(); tried != 1 {
			t.Errorf("%d datagrams are tried, want the first", tried)
		}
	})
}

func TestTryingHasItsLimits(t *testing.T) {
	now := time.Now()
	x := &exchange{loop: &loop{now: now}}
	newFlow := func() *flow { return &flow{} }
	expect := func(what string, f *flow, size int, want bool) {
		t.Helper()
		if got := x.mayTry(f, make([]byte, size)); got != want {
			t.Errorf("%s: it may be tried is %v", what, got)
		}
	}
	expect("a first datagram", newFlow(), 100, true)
	expect("one without contents", newFlow(), 0, true)
	expect("a large one", newFlow(), largestTry+1, false)
	expect("an answered flow's", &flow{answered: true}, 100, false)
	expect("one soon after another", &flow{tries: 1, tried: now.Add(1 - tryPause)}, 100, false)
	expect("one after a while", &flow{tries: 1, tried: now.Add(-tryPause)}, 100, true)
	expect("one of a flow that goes on", &flow{tries: maxTries, tried: now.Add(-time.Hour)}, 100, false)
	x.tries = maxTriesAtAll
	expect("one among many", newFlow(), 100, false)
	x.loop.now = now.Add(time.Second)
	expect("one a second later", newFlow(), 100, true)
}

func TestTwoDropsAWhileApartAreEnough(t *testing.T) {
	fw, now := newForward(port.Spec{}), time.Now()
	client, other := netip.MustParseAddr(clientIPv4), netip.MustParseAddr("2001:db8::2")
	for i, c := range []struct {
		client netip.Addr
		after  time.Duration // the beginning
		want   bool
	}{
		{client, 0, false},
		{client, tryPause - 1, false}, // too soon
		{other, tryPause, false},      // the first of it
		{client, tryPause, true},
		{client, tryPause + 1, false}, // begins anew
		{client, 2*tryPause + detourSpan, false},
		{client, 3*tryPause + detourSpan, true},
	} {
		if got := fw.suspect(c.client, now.Add(c.after)); got != c.want {
			t.Errorf("drop %d is enough: %v", i, got)
		}
	}
	for i := range 2 * maxDetours {
		fw.suspect(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), now)
	}
	if len(fw.suspects) > maxDetours {
		t.Errorf("%d are noted", len(fw.suspects))
	}
}

// What is held goes with its flow, and is counted as lost.
func TestWhatWasDroppedIsCounted(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		o, d, _, dial := newFated(t)
		c := dial()
		for i, fate := range []port.Fate{port.FateDropped, port.FatePassed, port.FateDropped} {
			o.set(fate)
			say(t, d, c, "datagram")
			testenv.Until(t, "it to be tried", func() bool { _, tried := o.soFar(); return tried == i+1 })
		}
		testenv.Until(t, "the first to be counted", func() bool { return d.Counters().Dropped == 1 })
		if err := d.Remove(t.Context(), []int{1}, 0); err != nil {
			t.Fatal(err)
		}
		if got := d.Counters().Dropped; got != 2 {
			t.Errorf("%d datagrams are counted as lost, want 2", got)
		}
	})
}
