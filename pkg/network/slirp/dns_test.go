package slirp

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
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

func TestDNSOverTCPIsResetWhenAllUpstreamsAreDead(t *testing.T) {
	r := newRig(t, rigOptions{Options: Options{Upstreams: []netip.AddrPort{nobody(t)}}})
	if c, err := r.dial(netip.AddrPortFrom(r.net.subnets[0].dns, dnsPort)); err == nil {
		c.Close()
		t.Error("connected")
	}
}

func TestDNSFollowsTheHostsResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	u := &upstreamSource{path: path}
	write := func(server string) {
		t.Helper()
		// As resolvconf and systemd do it: a new file in place of the old.
		if err := os.WriteFile(path+".new", []byte("nameserver "+server+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		u.checked = time.Time{} // as if the time between looks had passed
	}
	want := func(servers ...string) {
		t.Helper()
		var addrs []netip.AddrPort
		for _, s := range servers {
			addrs = append(addrs, netip.AddrPortFrom(netip.MustParseAddr(s), dnsPort))
		}
		if got := u.upstreams(); !slices.Equal(got, addrs) {
			t.Errorf("upstreams are %v, want %v", got, addrs)
		}
	}
	want("127.0.0.1") // without a file
	write("192.0.2.1")
	want("192.0.2.1")
	write("127.0.0.53")
	want("127.0.0.53")
	os.Remove(path)
	u.checked = time.Time{}
	want("127.0.0.53") // better than nothing
}

// A flood of queries is bounded, and what was asked is answered.
func TestDNSQueriesAreCapped(t *testing.T) {
	d := newDNSForwarder([2]subnet{}, &upstreamSource{fixed: []netip.AddrPort{silent(t)}})
	q := &datagram{payload: query(t, 1, "example.com.")}
	for range maxQueries {
		d.slots <- struct{}{}
	}
	d.query(nil, q)
	if n := d.dropped.Load(); n != 1 {
		t.Errorf("%d queries dropped, want 1", n)
	}
	d.close()
}
