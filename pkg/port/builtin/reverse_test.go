package builtin

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/pkg/port"
)

// containerIP is an address inside.
const containerIP = "198.51.100.9"

// reversed is the specs that are written as text, the other way.
func reversed(t testing.TB, texts ...string) []port.Spec {
	t.Helper()
	var all []port.Spec
	for _, text := range texts {
		parsed, err := port.ParseReverse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, parsed...)
	}
	return all
}

func TestReverseForwardsLeadToTheHost(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		inside := newAway(t)
		var err error
		if inside.do(func() { err = furnish("lo", containerIP+"/32") }); err != nil {
			t.Fatal(err)
		}
		// An opener would take what it can get.
		d := start(t, Options{Sockets: inside, Opener: &teller{}})
		serveTCP(t, "127.0.0.1:80", echo)
		serveUDP(t, "[::1]:80", same)
		serveUDP(t, "127.0.0.1:84", same)
		added, err := d.Add(t.Context(), reversed(t, "80:81/tcp", "80:81/udp", "127.0.0.1:80:0.0.0.0:82/tcp4", "127.0.0.1:84:0.0.0.0:82/udp4"))
		if err != nil {
			t.Fatal(err)
		}
		for _, ip := range []string{"127.0.0.1", "::1"} { // each reaches the service of the other
			var c *net.TCPConn
			var u *net.UDPConn
			inside.do(func() { c, u = dialTCP(t, at(ip, 81)), dialUDP(t, at(ip, 81)) })
			roundTrip(t, c, "hello")
			exchangeUDP(t, u, []byte("hello"))
		}
		// A container inside has an address that is not the host's.
		var c *net.TCPConn
		var u *net.UDPConn
		inside.do(func() { c, u = dialTCP(t, at(containerIP, 82)), dialUDP(t, at(containerIP, 82)) })
		roundTrip(t, c, "hello")
		exchangeUDP(t, u, []byte("hello"))
		if c, err := net.Dial("tcp", "127.0.0.1:81"); err == nil {
			c.Close()
			t.Error("a reverse forward listens on the host")
		}
		for _, s := range d.List() {
			if s.SourceIP != "" {
				t.Errorf("%s is listed with the source address %q", s.Spec, s.SourceIP)
			}
		}
		// What is taken inside, by a forward or by a program, is a conflict, and the
		// host's own ports are none.
		inside.do(func() { serveTCP(t, "127.0.0.1:83", echo) })
		for text, by := range map[string]string{"90:127.0.0.1:81/tcp": " by forward 1 (reverse 80:81/tcp)", "90:83/tcp": ""} {
			_, err := d.Add(t.Context(), append(reversed(t, "90:91/tcp"), reversed(t, text)...))
			if !errors.Is(err, port.ErrConflict) || !strings.HasSuffix(err.Error(), "in the namespace: bind: address already in use"+by) {
				t.Errorf("%s: %v", text, err)
			}
		}
		if _, err := d.Add(t.Context(), append(reversed(t, "90:91/tcp"), specs(t, "81:80/tcp")...)); err != nil {
			t.Errorf("both ways at once: %v", err)
		}
		_, err = d.Add(t.Context(), reversed(t, "90:198.51.100.10:92/tcp"))
		if err == nil || !strings.Contains(err.Error(), "the namespace does not have the address 198.51.100.10") {
			t.Errorf("an address that is not there: %v", err)
		}
		if err := d.Remove(t.Context(), ids(added), 0); err != nil {
			t.Fatal(err)
		}
		inside.do(func() {
			if c, err := net.Dial("tcp", "127.0.0.1:81"); err == nil {
				c.Close()
				t.Error("after it is removed, it listens")
			}
		})
	})
}

func TestAReverseForwardWithoutSocketsIsRefused(t *testing.T) {
	var failure error = unix.EMFILE
	sockets := &home{}
	sockets.fail.Store(&failure)
	d := start(t, Options{Sockets: sockets})
	_, err := d.Add(t.Context(), reversed(t, "80:81/tcp"))
	if !errors.Is(err, unix.EMFILE) || len(d.List()) != 0 {
		t.Errorf("got %v, and %d forwards", err, len(d.List()))
	}
}

// gate is a port.Gateway, whose addresses are those of a host elsewhere.
type gate struct {
	mu    sync.Mutex // guards what is below
	leads map[string]*gateLead
}

type gateLead struct {
	*gate
	key  string
	over chan struct{} // of its connections; nil where it has none
	cut  bool
}

func (g *gate) IsGateway(addr netip.Addr) bool { return addr == netip.MustParseAddr(gatewayIP) }

func (g *gate) Lead(transport string, at, to netip.AddrPort) (port.Lead, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := transport + " " + at.String()
	if g.leads[key] != nil {
		return nil, unix.EADDRINUSE
	}
	if g.leads == nil {
		g.leads = map[string]*gateLead{}
	}
	g.leads[key] = &gateLead{gate: g, key: key + " to " + to.String()}
	return g.leads[key], nil
}

func (l *gateLead) Stop() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, other := range l.leads {
		if other == l {
			delete(l.leads, key)
		}
	}
	return l.over
}

func (l *gateLead) Cut() {
	l.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over != nil && !l.cut {
		close(l.over)
	}
	l.cut = true
}

// has says which leads there are.
func (g *gate) has() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []string
	for _, l := range g.leads {
		all = append(all, l.key)
	}
	slices.Sort(all)
	return all
}

// gatewayIP is an address that nobody has.
const gatewayIP = "198.51.100.2"

func TestReverseForwardsAtTheGatewayAreLeads(t *testing.T) {
	g := &gate{}
	t.Cleanup(func() { // after the driver's end
		if got := g.has(); got != nil {
			t.Errorf("after Run there are %q", got)
		}
	})
	d := start(t, Options{Sockets: &home{}, Gateway: g})
	first, err := d.Add(t.Context(), reversed(t, "127.0.0.1:80:198.51.100.2:81/tcp", "[::1]:82:198.51.100.2:81/udp4", "83:198.51.100.2:84/udp"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"tcp 198.51.100.2:81 to 127.0.0.1:80",
		"udp 198.51.100.2:81 to [::1]:82",
		"udp 198.51.100.2:84 to 127.0.0.1:83",
	}
	if got := g.has(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if list := d.List(); len(list) != 3 || list[1].Spec != reversed(t, "[::1]:82:198.51.100.2:81/udp4")[0] || list[1].SourceIP != "" {
		t.Errorf("listed as %v", list)
	}
	_, err = d.Add(t.Context(), reversed(t, "85:198.51.100.2:85/tcp", "90:198.51.100.2:81/tcp"))
	if !errors.Is(err, port.ErrConflict) || !strings.HasSuffix(err.Error(), "bind: address already in use by forward 1 (reverse 127.0.0.1:80:198.51.100.2:81/tcp)") {
		t.Errorf("at a port that is taken: %v", err)
	}
	if got := g.has(); !slices.Equal(got, want) {
		t.Errorf("after a failure %q, want %q", got, want)
	}
	if _, err := d.Add(t.Context(), specs(t, "198.51.100.2:99:80/tcp")); err == nil {
		t.Error("a forward that is not reversed has the gateway's address")
	}

	// Its connections go on for as long as drain says, or at most until Run ends.
	g.mu.Lock()
	drained := g.leads["tcp 198.51.100.2:81"]
	drained.over = make(chan struct{})
	g.mu.Unlock()
	if err := d.Remove(t.Context(), ids(first[1:]), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(t.Context(), ids(first[:1]), time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := g.has(); got != nil {
		t.Errorf("after Remove there are %q", got)
	}
	if g.mu.Lock(); drained.cut {
		t.Error("its connections were cut at once")
	}
	g.mu.Unlock()
	again, err := d.Add(t.Context(), reversed(t, "127.0.0.1:80:198.51.100.2:81/tcp"))
	if err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	cut := g.leads["tcp 198.51.100.2:81"]
	cut.over = make(chan struct{})
	g.mu.Unlock()
	if err := d.Remove(t.Context(), ids(again), 0); err != nil {
		t.Fatal(err)
	}
	<-cut.over
	if _, err := d.Add(t.Context(), reversed(t, "127.0.0.1:80:198.51.100.2:81/tcp")); err != nil {
		t.Fatal(err)
	}
}
