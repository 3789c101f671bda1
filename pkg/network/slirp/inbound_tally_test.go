package slirp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/port"
)

func TestCountersTellTheFateOfADatagram(t *testing.T) {
	const size = 100
	for name, c := range map[string]struct {
		by   counted // what is counted meanwhile
		want port.Fate
	}{
		"delivered":                       {counted{1, 1, size, 0}, port.FatePassed},
		"refused":                         {counted{1, 1, size, 128}, port.FatePassed},
		"sent on to a container":          {counted{1, 0, size, size}, port.FatePassed},
		"refused by a firewall":           {counted{1, 0, size, 128}, port.FatePassed},
		"dropped":                         {counted{1, 0, size, 0}, port.FateDropped},
		"gone before it was counted":      {counted{}, port.FateUnknown},
		"another in its place":            {counted{1, 0, size + 1, 0}, port.FateUnknown},
		"dropped, and another":            {counted{2, 0, 2 * size, 0}, port.FateUnknown},
		"dropped, while one is delivered": {counted{2, 1, 2 * size, 0}, port.FateUnknown},
		"after another that came before":  {counted{1, 2, size, 0}, port.FatePassed},
	} {
		for _, ipv6 := range []bool{false, true} {
			now, sent := counted{10, 10, 1000, 1000}, 0
			tl := newTally(nil)
			tl.count = func(of bool) (counted, error) {
				if of != ipv6 {
					t.Error("the counters of the other family are asked for")
				}
				return now, nil
			}
			got := tl.watch(ipv6, size, func() {
				sent++
				now = counted{now.received + c.by.received, now.delivered + c.by.delivered, now.in + c.by.in, now.out + c.by.out}
			})
			if got != c.want || sent != 1 {
				t.Errorf("%s: fate %v, want %v; it is sent %d times", name, got, c.want, sent)
			}
		}
	}
}

// What a program was handed and lets go is delivered late, and no drop.
func TestADropIsNotBelievedWhenTheLastWasNone(t *testing.T) {
	var now counted
	tl := newTally(nil)
	tl.count = func(bool) (counted, error) { return now, nil }
	drop := func() { now.received, now.in = now.received+1, now.in+100 }
	for i, c := range []struct {
		before func()
		want   port.Fate
	}{
		{func() {}, port.FateDropped},
		{func() { now.delivered++ }, port.FatePassed},
		{func() { now.received, now.delivered = now.received+5, now.delivered+6 }, port.FatePassed}, // and others' are delivered
		{func() { now.received, now.delivered = now.received+5, now.delivered+5 }, port.FateDropped},
		{func() {}, port.FateDropped},
	} {
		c.before()
		if got := tl.watch(false, 100, drop); got != c.want {
			t.Errorf("datagram %d has fate %v, want %v", i, got, c.want)
		}
	}
	if got := tl.watch(true, 100, drop); got != port.FateDropped {
		t.Errorf("a first one of IPv6 has fate %v: the families are counted apart", got)
	}
}

func TestADatagramIsSentWhateverTheCountersSay(t *testing.T) {
	sent := 0
	for name, fail := range map[string]func(asked int) error{
		"before":    func(int) error { return errTally },
		"afterward": func(asked int) error { return map[bool]error{true: errTally}[asked > 1] },
	} {
		asked := 0
		tl := newTally(nil)
		tl.count = func(bool) (counted, error) { asked++; return counted{}, fail(asked) }
		if got := tl.watch(false, 100, func() { sent++ }); got != port.FateUnknown {
			t.Errorf("when the counters fail %s, the fate is %v", name, got)
		}
	}
	// While one is watched, others are not.
	tl := newTally(nil)
	tl.count = func(bool) (counted, error) { return counted{}, nil }
	tl.watch(false, 100, func() {
		if got := tl.watch(false, 100, func() { sent++ }); got != port.FateUnknown {
			t.Errorf("a second one has fate %v", got)
		}
	})
	if sent != 3 {
		t.Errorf("%d datagrams are sent, want 3", sent)
	}
}

// The kernel's counters, of a namespace in which nothing else goes on.
func TestTheKernelsCountersAreRead(t *testing.T) {
	testenv.UserNS{Flags: unix.CLONE_NEWNET, Inner: func(t *testing.T) {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
		files := make([]*os.File, tallyFiles)
		for i := range files {
			if files[i], err = OpenTally(i); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := OpenTally(tallyFiles); !errors.Is(err, unix.EINVAL) {
			t.Errorf("one file more opens with %v", err)
		}
		tl := newTally(files)
		for _, c := range []struct {
			to   string
			size uint64
		}{{"127.0.0.1:9", 33}, {"[::1]:9", 53}} {
			ipv6 := netip.MustParseAddrPort(c.to).Addr().Is6()
			service, err := net.ListenPacket("udp", c.to)
			if err != nil {
				t.Fatal(err)
			}
			defer service.Close()
			client, err := net.Dial("udp", c.to)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			before, err := tl.read(ipv6)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			after, err := tl.read(ipv6)
			if err != nil {
				t.Fatal(err)
			}
			got := counted{after.received - before.received, after.delivered - before.delivered, after.in - before.in, after.out - before.out}
			if want := (counted{1, 1, c.size, c.size}); got != want {
				t.Errorf("of a datagram to %s is counted %v, want %v", c.to, got, want)
			}
		}
		tl.files = files[:2]
		if _, err := tl.read(true); err == nil {
			t.Error("IPv6 is counted without its file")
		}
		tl.files = []*os.File{files[1], files[0], files[0]}
		for _, ipv6 := range []bool{false, true} {
			if got, err := tl.read(ipv6); err == nil {
				t.Errorf("%v is read in files of something else", got)
			}
		}
		tl.files = files
		if err := tl.close(); err != nil {
			t.Error(err)
		}
		if _, err := tl.read(false); err == nil {
			t.Error("closed files are read")
		}
	}}.Run(t)
}

func TestAFlowTellsTheFateOfADatagram(t *testing.T) {
	for _, c := range []struct {
		client, service netip.AddrPort
		size            uint64
	}{
		{netip.AddrPortFrom(worldIPv4, 5555), port80("127.0.0.1"), 33},
		{netip.AddrPortFrom(worldIPv6, 5555), port80("::1"), 53},
	} {
		r := newInboundRig(t, true)
		flow, err := r.net.OpenDatagrams(c.client, c.service, func([]byte) {}, func([]byte) {})
		if err != nil {
			t.Fatal(err)
		}
		expectFrame := func() {
			t.Helper()
			if frame := r.toLoopback(); !slices.Equal(frame[len(frame)-5:], []byte("hello")) {
				t.Errorf("to lo goes %q", frame)
			}
		}
		if got := flow.Try([]byte("hello")); got != port.FateUnknown {
			t.Errorf("without counters its fate is %v", got)
		}
		expectFrame()
		var now counted
		tl := newTally(nil)
		tl.count = func(bool) (counted, error) {
			now.received, now.in = now.received+1, now.in+c.size
			return now, nil
		}
		r.e.inbound.tally.Store(tl)
		if got := flow.Try([]byte("hello")); got != port.FateDropped {
			t.Errorf("of %v its fate is %v, want that it is dropped", c.client, got)
		}
		expectFrame()
	}
}
