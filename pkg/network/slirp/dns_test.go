package slirp

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// query is a DNS query for name, of the type ANY with an EDNS record, which we
// are to understand no better than any other.
func query(t testing.TB, id uint16, name string) []byte {
	t.Helper()
	var edns dnsmessage.ResourceHeader
	if err := edns.SetEDNS0(4096, dnsmessage.RCodeSuccess, true); err != nil {
		t.Fatal(err)
	}
	m := dnsmessage.Message{
		Header:      dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions:   []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeALL, Class: dnsmessage.ClassINET}},
		Additionals: []dnsmessage.Resource{{Header: edns, Body: &dnsmessage.OPTResource{}}},
	}
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// answered is what test servers make of a query: the same bytes, marked as an
// answer with a code, and a tail.
func answered(msg []byte, code dnsmessage.RCode, tail string) []byte {
	a := slices.Concat(msg, []byte(tail))
	a[2] |= 0x80
	a[3] = a[3]&0xf0 | byte(code)
	return a
}

// answerUDP serves answers with a code and a tail.
func answerUDP(code dnsmessage.RCode, tail string) func(*net.UDPConn, []byte, netip.AddrPort) {
	return func(c *net.UDPConn, msg []byte, from netip.AddrPort) {
		c.WriteToUDPAddrPort(answered(msg, code, tail), from)
	}
}

// nobody is an address of the loopback that answers nothing: an ICMP error for
// UDP and a reset for TCP.
func nobody(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// silent is an address that takes queries and says nothing.
func silent(t testing.TB) netip.AddrPort {
	return listenUDP(t, "127.0.0.1:0", func(*net.UDPConn, []byte, netip.AddrPort) {})
}

func TestDNSOverUDP(t *testing.T) {
	good := func(t testing.TB) netip.AddrPort {
		return listenUDP(t, "127.0.0.1:0", answerUDP(dnsmessage.RCodeSuccess, "good"))
	}
	with := func(code dnsmessage.RCode, tail string) func(testing.TB) netip.AddrPort {
		return func(t testing.TB) netip.AddrPort { return listenUDP(t, "127.0.0.1:0", answerUDP(code, tail)) }
	}
	forger := func(t testing.TB) netip.AddrPort {
		return listenUDP(t, "127.0.0.1:0", func(c *net.UDPConn, msg []byte, from netip.AddrPort) {
			forged := answered(msg, dnsmessage.RCodeSuccess, "forged")
			forged[0]++ // another query's
			c.WriteToUDPAddrPort(forged, from)
			c.WriteToUDPAddrPort(msg, from) // no answer at all
			c.WriteToUDPAddrPort(answered(msg, dnsmessage.RCodeSuccess, "good"), from)
		})
	}
	for _, test := range []struct {
		name      string
		upstreams []func(testing.TB) netip.AddrPort
		code      dnsmessage.RCode
		tail      string
	}{
		{"the first upstream answers", []func(testing.TB) netip.AddrPort{good, nobody}, dnsmessage.RCodeSuccess, "good"},
		{"the first upstream is dead", []func(testing.TB) netip.AddrPort{nobody, good}, dnsmessage.RCodeSuccess, "good"},
		{"the first upstream is silent", []func(testing.TB) netip.AddrPort{silent, good}, dnsmessage.RCodeSuccess, "good"},
		{"the first upstream fails", []func(testing.TB) netip.AddrPort{with(dnsmessage.RCodeServerFailure, "a"), good}, dnsmessage.RCodeSuccess, "good"},
		{"the first upstream refuses and the second fails", []func(testing.TB) netip.AddrPort{with(dnsmessage.RCodeRefused, "a"), with(dnsmessage.RCodeServerFailure, "b")}, dnsmessage.RCodeRefused, "a"},
		{"no such name is an answer", []func(testing.TB) netip.AddrPort{with(dnsmessage.RCodeNameError, "none"), good}, dnsmessage.RCodeNameError, "none"},
		{"all upstreams are dead", []func(testing.TB) netip.AddrPort{nobody, nobody}, dnsmessage.RCodeServerFailure, ""},
		{"forged answers are passed over", []func(testing.TB) netip.AddrPort{forger}, dnsmessage.RCodeSuccess, "good"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var o Options
			for _, u := range test.upstreams {
				o.Upstreams = append(o.Upstreams, u(t))
			}
			r := newRig(t, rigOptions{Options: o})
			for _, s := range r.net.subnets {
				c := r.dialUDP(netip.AddrPortFrom(s.dns, dnsPort))
				q := query(t, 77, "example.com.")
				c.Write(q)
				buf := make([]byte, 1500)
				n, err := c.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				got := buf[:n]
				if test.tail != "" {
					if want := answered(q, test.code, test.tail); !slices.Equal(got, want) {
						t.Errorf("%v: got %q, want %q", s.dns, got, want)
					}
					continue
				}
				var m dnsmessage.Message
				if err := m.Unpack(got); err != nil {
					t.Fatal(err)
				}
				if m.ID != 77 || !m.Response || m.RCode != test.code || len(m.Questions) != 1 || m.Questions[0].Name.String() != "example.com." {
					t.Errorf("%v: got %+v", s.dns, m)
				}
			}
		})
	}
}

func TestDNSOverTCP(t *testing.T) {
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		var length [2]byte
		for {
			if _, err := io.ReadFull(c, length[:]); err != nil {
				return
			}
			msg := make([]byte, binary.BigEndian.Uint16(length[:]))
			if _, err := io.ReadFull(c, msg); err != nil {
				return
			}
			c.Write(append(length[:], answered(msg, dnsmessage.RCodeSuccess, "")...))
		}
	})
	r := newRig(t, rigOptions{Options: Options{Upstreams: []netip.AddrPort{nobody(t), server}}})
	for _, s := range r.net.subnets {
		c, err := r.dial(netip.AddrPortFrom(s.dns, dnsPort))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		q := query(t, 5, "example.com.")
		msg := append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
		for range 2 { // on one connection
			c.Write(msg)
			got := make([]byte, len(msg))
			if _, err := io.ReadFull(c, got); err != nil {
				t.Fatal(err)
			}
			if want := answered(q, dnsmessage.RCodeSuccess, ""); !slices.Equal(got[2:], want) {
				t.Errorf("%v: got %q, want %q", s.dns, got[2:], want)
			}
		}
	}
}

func TestDNSOverTCPFailsInTime(t *testing.T) {
	for name, upstream := range map[string]netip.AddrPort{
		"nobody listens":          nobody(t),
		"it accepts, and is dumb": listen(t, "127.0.0.1:0", func(c *net.TCPConn) { io.Copy(io.Discard, c) }),
		"it hangs up":             listen(t, "127.0.0.1:0", func(c *net.TCPConn) {}),
		"it fails":                listen(t, "127.0.0.1:0", serveStream(dnsmessage.RCodeServerFailure)),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rigOptions{Options: Options{Upstreams: []netip.AddrPort{upstream}, Options: []string{"timeout:1"}}})
			c, err := r.dial(netip.AddrPortFrom(r.net.subnets[0].dns, dnsPort))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			q := query(t, 5, "example.com.")
			if err := writeMessage(c, q); err != nil {
				t.Fatal(err)
			}
			c.CloseWrite() // still wants the answer
			got, err := readMessage(c)
			if err != nil {
				t.Fatal(err)
			}
			if h, _ := parseDNSHeader(got); h.id != 5 || h.code != dnsmessage.RCodeServerFailure || !h.response {
				t.Errorf("got %+v", h)
			}
		})
	}
}

// serveStream answers queries over TCP with a code.
func serveStream(code dnsmessage.RCode) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		for {
			msg, err := readMessage(c)
			if err != nil {
				return
			}
			writeMessage(c, answered(msg, code, ""))
		}
	}
}

func TestDNSOverTCPGoesToTheNextUpstream(t *testing.T) {
	r := newRig(t, rigOptions{Options: Options{Upstreams: []netip.AddrPort{
		nobody(t),
		listen(t, "127.0.0.1:0", serveStream(dnsmessage.RCodeRefused)),
		listen(t, "127.0.0.1:0", serveStream(dnsmessage.RCodeSuccess)),
	}}})
	c, err := r.dial(netip.AddrPortFrom(r.net.subnets[1].dns, dnsPort))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	// Several at once, on one connection.
	asked := map[uint16][]byte{}
	for id := range uint16(10) {
		asked[id] = query(t, id, "example.com.")
		writeMessage(c, asked[id])
	}
	for range len(asked) {
		got, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		h, _ := parseDNSHeader(got)
		if want := answered(asked[h.id], dnsmessage.RCodeSuccess, ""); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		delete(asked, h.id)
	}
}

// The transfer of a zone is one query, and an answer of many messages.
func TestDNSTransfersComeWhole(t *testing.T) {
	const messages = 100
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		msg, err := readMessage(c)
		for range messages {
			if err == nil {
				err = writeMessage(c, answered(msg, dnsmessage.RCodeSuccess, ""))
			}
		}
	})
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("example.com."), Type: 252, Class: dnsmessage.ClassINET}}}
	q, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, rigOptions{Options: Options{Upstreams: []netip.AddrPort{server}}})
	c, err := r.dial(netip.AddrPortFrom(r.net.subnets[0].dns, dnsPort))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	writeMessage(c, q)
	for i := range messages {
		if _, err := readMessage(c); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
}

func TestTheGatewayHasAName(t *testing.T) {
	r := newRig(t, rigOptions{Options: Options{Upstreams: []netip.AddrPort{nobody(t)}}})
	c := r.dialUDP(netip.AddrPortFrom(r.net.subnets[0].dns, dnsPort))
	for _, test := range []struct {
		name  string
		typ   dnsmessage.Type
		code  dnsmessage.RCode
		addrs []string
	}{
		{"host.gatekit.internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, []string{"10.0.2.2"}},
		{"HOST.gatekit.Internal.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, []string{"fd67:6174:656b::2"}},
		{"host.gatekit.internal.", dnsmessage.TypeALL, dnsmessage.RCodeSuccess, []string{"10.0.2.2", "fd67:6174:656b::2"}},
		{"host.gatekit.internal.", dnsmessage.TypeMX, dnsmessage.RCodeSuccess, nil},
		{"other.gatekit.internal.", dnsmessage.TypeA, dnsmessage.RCodeServerFailure, nil}, // the upstream's
	} {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: 9}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(test.name), Type: test.typ, Class: dnsmessage.ClassINET}}}
		var edns dnsmessage.ResourceHeader
		edns.SetEDNS0(4096, dnsmessage.RCodeSuccess, false)
		m.Additionals = []dnsmessage.Resource{{Header: edns, Body: &dnsmessage.OPTResource{}}}
		q, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		c.Write(q)
		buf := make([]byte, 1500)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		var a dnsmessage.Message
		if err := a.Unpack(buf[:n]); err != nil {
			t.Fatal(err)
		}
		var addrs []string
		for _, r := range a.Answers {
			switch b := r.Body.(type) {
			case *dnsmessage.AResource:
				addrs = append(addrs, netip.AddrFrom4(b.A).String())
			case *dnsmessage.AAAAResource:
				addrs = append(addrs, netip.AddrFrom16(b.AAAA).String())
			}
		}
		if a.ID != 9 || a.RCode != test.code || !slices.Equal(addrs, test.addrs) {
			t.Errorf("%s %v: %v %q, want %v %q", test.name, test.typ, a.RCode, addrs, test.code, test.addrs)
		}
		if test.code == dnsmessage.RCodeSuccess && len(a.Additionals) != 1 {
			t.Errorf("%s %v: no EDNS record in the answer", test.name, test.typ)
		}
	}
}

// Messages of our own making are read by the namespace; the queries are its own.
func FuzzOwnAnswers(f *testing.F) {
	f.Add(query(f, 1, ownName))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if _, ok := parseDNSHeader(msg); !ok {
			return
		}
		own := ownNames{[]netip.Addr{netip.MustParseAddr("10.0.2.2")}}
		for _, a := range [][]byte{own.answer(msg), serverFailure(msg)} {
			if h, ok := parseDNSHeader(a); a != nil && (!ok || !h.response || h.id != uint16(msg[0])<<8|uint16(msg[1])) {
				t.Errorf("%q is answered with %q", msg, a)
			}
		}
		isTransfer(msg)
	})
}

// A flood of queries is bounded, and what was asked is answered.
func TestDNSQueriesAreCapped(t *testing.T) {
	d := newDNSForwarder([2]subnet{}, newUpstreamSource(Options{Upstreams: []netip.AddrPort{silent(t)}}, "/nowhere"), nil)
	q := &datagram{payload: query(t, 1, "example.com.")}
	for range maxQueries {
		d.slots <- struct{}{}
	}
	d.query(nil, q)
	if n := d.full.count.Load(); n != 1 {
		t.Errorf("%d queries dropped, want 1", n)
	}
	d.close()
}

// A query without a descriptor is not answered, and so asked again; a failure would be
// an answer.
func TestDNSQueriesWithoutADescriptorAreDropped(t *testing.T) {
	d := newDNSForwarder([2]subnet{}, newUpstreamSource(Options{Upstreams: []netip.AddrPort{nobody(t), silent(t)}}, "/nowhere"), nil)
	defer d.close()
	asked := 0
	answer, more := d.exchange(query(t, 1, "example.com."), func(context.Context, netip.AddrPort, []byte) ([]byte, net.Conn, error) {
		asked++
		return nil, nil, os.NewSyscallError("socket", unix.EMFILE)
	})
	if answer != nil || more != nil || asked != 1 || d.starved.count.Load() != 1 {
		t.Errorf("asked %d times, the answer is %x, %d counted", asked, answer, d.starved.count.Load())
	}
}

// BenchmarkDNS is a query and its answer, 64 at a time. None may be lost.
func BenchmarkDNS(b *testing.B) {
	server := listenUDP(b, "127.0.0.1:0", answerUDP(dnsmessage.RCodeSuccess, "good"))
	r := newRig(b, rigOptions{Options: Options{Upstreams: []netip.AddrPort{server}}})
	q := query(b, 1, "example.com.")
	b.SetParallelism(64 / runtime.GOMAXPROCS(0))
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		addr, proto := fullAddress(netip.AddrPortFrom(r.net.subnets[0].dns, dnsPort))
		c, err := gonet.DialUDP(r.guest, nil, &addr, proto)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		buf := make([]byte, 1500)
		for pb.Next() {
			c.SetDeadline(time.Now().Add(patience))
			c.Write(q)
			if _, err := c.Read(buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}
