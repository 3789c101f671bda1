package test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/gatekit/gatekit/internal/testenv"
)

// Queries as bytes: what comes to an upstream, and what comes back from it.

// ask NETWORK ADDR HEX sends a DNS message and prints the answer, both in hex.
var _ = testenv.Probe("ask", func(args []string) int {
	msg, err := hex.DecodeString(args[2])
	if err != nil {
		return report(err)
	}
	conn, err := dialer.Dial(args[0], args[1])
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
		return report(err)
	}
	if args[0] == "tcp" {
		msg = append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
	}
	if _, err := conn.Write(msg); err != nil {
		return report(err)
	}
	answer := make([]byte, 65535)
	n := 0
	if args[0] == "tcp" {
		answer, err = readStreamMessage(conn)
		n = len(answer)
	} else {
		n, err = conn.Read(answer)
	}
	if err != nil {
		return report(err)
	}
	fmt.Println(hex.EncodeToString(answer[:n]))
	return 0
})

// readStreamMessage reads a DNS message from a connection (RFC 1035, 4.2.2).
func readStreamMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

// upstream answers each query at port 53 of the machine outside, over UDP and TCP,
// with what answer makes of it, and tells of the query.
func (s site) upstream(t *testing.T, answer func(query []byte) []byte) (queries <-chan []byte) {
	t.Helper()
	seen := make(chan []byte, 64)
	addr := at(s.outside.Addr4, 53)
	serveUDP(t, s.outside, addr, func(c *net.UDPConn, payload []byte, from netip.AddrPort) {
		seen <- slices.Clone(payload)
		_, _ = c.WriteToUDPAddrPort(answer(payload), from)
	})
	serveTCP(t, s.outside, addr, func(conn *net.TCPConn) {
		for {
			msg, err := readStreamMessage(conn)
			if err != nil {
				return
			}
			seen <- msg
			msg = answer(msg)
			_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
		}
	})
	s.resolvConf(t, "nameserver "+s.outside.Addr4.String())
	return seen
}

// dnsQuery is a query of any type and class, with more bytes after it.
func dnsQuery(t *testing.T, kind dnsmessage.Type, class dnsmessage.Class, edns ...byte) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("MiXed.Example.test."), Type: kind, Class: class}},
	}
	q, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if len(edns) > 0 {
		q[11]++ // one additional record
	}
	return append(q, edns...)
}

func TestQueriesAndAnswersPassByteForByte(t *testing.T) {
	s := newSite(t)
	// The answer has the query's bytes, and some that no parser knows; where the
	// query came with a certain id, it is truncated.
	answer := func(query []byte) []byte {
		a := append(slices.Clone(query), 0xc0, 0x0c, 0xff, 0x00, 0, 1, 0, 0, 0, 0, 0, 2, 0xde, 0xad)
		a[2] |= 0x84
		a[7]++
		if query[1] == 0x12 {
			a[2] |= 2
		}
		return a
	}
	seen := s.upstream(t, answer)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	truncated := dnsQuery(t, dnsmessage.TypeTXT, dnsmessage.ClassINET)
	truncated[1] = 0x12
	notify := dnsQuery(t, dnsmessage.TypeSOA, dnsmessage.ClassINET)
	notify[2] = 4 << 3
	// OPT: 4096 bytes, DO, with a cookie, the client's subnet and an option that is
	// for private use (RFC 6891, 6.1.2).
	options := slices.Concat([]byte{0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8}, []byte{0, 8, 0, 7, 0, 1, 24, 0, 198, 51, 100}, []byte{0xfd, 0xe9, 0, 1, 0xaa})
	opt := append([]byte{0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, byte(len(options))}, options...)
	for name, query := range map[string][]byte{
		"an address":             dnsQuery(t, dnsmessage.TypeA, dnsmessage.ClassINET),
		"a type of no name":      dnsQuery(t, 65280, dnsmessage.ClassINET),
		"HTTPS":                  dnsQuery(t, 65, dnsmessage.ClassINET),
		"all types":              dnsQuery(t, dnsmessage.TypeALL, dnsmessage.ClassINET),
		"another class":          dnsQuery(t, dnsmessage.TypeTXT, dnsmessage.ClassCHAOS),
		"EDNS with options":      dnsQuery(t, dnsmessage.TypeMX, dnsmessage.ClassINET, opt...),
		"a truncated answer":     truncated,
		"a notification":         notify,
		"more than the question": append(dnsQuery(t, dnsmessage.TypeA, dnsmessage.ClassINET), "garbage"...),
	} {
		t.Run(name, func(t *testing.T) {
			for _, network := range []string{"udp", "tcp"} {
				for _, dns := range []string{dns4, dns6} {
					got := strings.TrimSpace(g.run(t, "probe", "ask", network, net.JoinHostPort(dns, "53"), hex.EncodeToString(query)))
					if asked := receive(t, seen, "the query"); !bytes.Equal(asked, query) {
						t.Errorf("%s at %s: the upstream saw\n%x, want\n%x", network, dns, asked, query)
					}
					if want := hex.EncodeToString(answer(query)); got != want {
						t.Errorf("%s at %s: the answer is\n%s, want\n%s", network, dns, got, want)
					}
				}
			}
		})
	}
	if len(seen) > 0 {
		t.Errorf("the upstream saw %d queries more", len(seen))
	}
	g.stop(t)
}

// queries ADDR COUNT HEX sends queries, each once, at most 5 000 a second, and prints
// how many were answered. No more wait for their answers than the buffers on the way
// hold, where those behind them do not run.
var _ = testenv.Probe("queries", func(args []string) int {
	const perSecond, atOnce, waiting = 5000, 10, 50
	count, _ := strconv.Atoi(args[1])
	conn, err := net.Dial("udp", args[0])
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	room := make(chan struct{}, waiting)
	answered := make(chan int, 1)
	go func() {
		seen := map[uint16]bool{}
		for buf := make([]byte, 512); len(seen) < count; {
			err := conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			var n int
			if err == nil {
				n, err = conn.Read(buf)
			}
			if err != nil {
				break
			}
			if id := binary.BigEndian.Uint16(buf); n > 12 && buf[2]&0x80 != 0 && buf[3]&0x0f == 0 && !seen[id] {
				seen[id] = true
				<-room
			}
		}
		answered <- len(seen)
	}()
	msg, err := hex.DecodeString(args[2])
	if err != nil {
		return report(err)
	}
	tick := time.NewTicker(time.Second * atOnce / perSecond)
	defer tick.Stop()
	for id := range count {
		if id%atOnce == 0 {
			<-tick.C
		}
		select {
		case room <- struct{}{}:
		case n := <-answered: // nothing comes any more
			fmt.Println(n)
			return 0
		}
		binary.BigEndian.PutUint16(msg, uint16(id))
		if _, err := conn.Write(msg); err != nil {
			return report(err)
		}
	}
	fmt.Println(<-answered)
	return 0
})

// A second of 5 000 queries, each once: none is lost.
func TestManyQueriesASecondAreAllAnswered(t *testing.T) {
	const count = 5000
	s := newSite(t)
	server := serveUDP(t, s.outside, at(s.outside.Addr4, 53), func(c *net.UDPConn, payload []byte, from netip.AddrPort) {
		payload[2] |= 0x80
		_, _ = c.WriteToUDPAddrPort(payload, from)
	})
	if err := server.SetReadBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	s.resolvConf(t, "nameserver "+s.outside.Addr4.String())
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	query := hex.EncodeToString(dnsQuery(t, dnsmessage.TypeA, dnsmessage.ClassINET))
	if got := g.run(t, "probe", "queries", net.JoinHostPort(dns4, "53"), strconv.Itoa(count), query); got != strconv.Itoa(count)+"\n" {
		t.Errorf("%s of %d queries are answered", strings.TrimSpace(got), count)
	}
	g.stop(t)
}
