package test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

// allowPings lets everybody on the Host have ping sockets, which is what a Host
// begins with.
func (s site) allowPings(t *testing.T) {
	t.Helper()
	s.set(t, "/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
}

// forbidPings lets nobody have them.
func (s site) forbidPings(t *testing.T) {
	t.Helper()
	s.set(t, "/proc/sys/net/ipv4/ping_group_range", "1 0")
}

// set writes a value of the Host's kernel.
func (s site) set(t *testing.T, path, value string) {
	t.Helper()
	s.Do(t, func() error { return os.WriteFile(path, []byte(value), 0o644) })
}

func TestPingsGoOutAndComeBackWithWhatWasSent(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		for _, size := range []string{"16", "56", "1472", "4000"} {
			out := g.run(t, "ping", "-c", "3", "-i", "0.01", "-W", "10", "-s", size, "-p", "c0ffee", outside.String())
			if !strings.Contains(out, "3 packets transmitted, 3 received, 0% packet loss") || strings.Contains(out, "wrong data") {
				t.Errorf("%s bytes: %s", size, out)
			}
			// One hop less than it had on the wire.
			if ttl := regexp.MustCompile(`ttl=63\b`).FindAllString(out, -1); len(ttl) != 3 {
				t.Errorf("%s bytes: %s\nwant a time to live of 63", size, out)
			}
		}
	})
	g.stop(t)
}

// What a reply has, and when it comes, is the other end's to say: here it is late,
// and not what was sent.
func TestPingsAreAnsweredByTheOtherEnd(t *testing.T) {
	const late = 300 * time.Millisecond
	s := newSite(t)
	for _, path := range []string{"/proc/sys/net/ipv4/icmp_echo_ignore_all", "/proc/sys/net/ipv6/icmp/echo_ignore_all"} {
		s.outside.Do(t, func() error { return os.WriteFile(path, []byte("1"), 0o644) })
	}
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		network, request, reply := "ip4:icmp", byte(8), byte(0)
		if outside.Is6() {
			network, request, reply = "ip6:ipv6-icmp", 128, 129
		}
		var conn *net.IPConn
		s.outside.Do(t, func() (err error) {
			conn, err = net.ListenIP(network, &net.IPAddr{IP: outside.AsSlice()})
			return err
		})
		var answering sync.WaitGroup
		answering.Go(func() {
			for buf := make([]byte, 1500); ; {
				n, from, err := conn.ReadFromIP(buf)
				if err != nil {
					return
				}
				if n > 0 && buf[0] == request {
					<-time.After(late) // which is what is measured inside
					_, _ = conn.WriteToIP(changedReply(buf[:n], reply), from)
				}
			}
		})
		defer answering.Wait()
		defer conn.Close()
		// The time stamp is in the first bytes, the pattern in those after it.
		out := g.run(t, "ping", "-c", "1", "-W", "10", "-s", "56", "-p", "11", outside.String())
		if !strings.Contains(out, "wrong data byte #55 should be 0x11 but was 0x12") {
			t.Errorf("%s\nwant the last byte as it came", out)
		}
		took := regexp.MustCompile(`time=([0-9.]+) ms`).FindStringSubmatch(out)
		if took == nil {
			t.Fatalf("%s\nwant a time", out)
		}
		if ms, err := strconv.ParseFloat(took[1], 64); err != nil || ms < float64(late.Milliseconds()) {
			t.Errorf("%s\nwant it to have taken at least %v", out, late)
		}
	})
	g.stop(t)
}

// changedReply makes a reply of a request, with another last byte and a right
// checksum. That of ICMPv6 is the kernel's to compute (RFC 3542, 3.1).
func changedReply(request []byte, kind byte) []byte {
	b := bytes.Clone(request)
	b[0] = kind
	b[len(b)-1]++
	b[2], b[3] = 0, 0
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	return b
}

func TestEverybodyInsideHasPingSockets(t *testing.T) {
	h := testenv.NewHost(t)
	ids := fmt.Sprintf("%s:%d:65536\n", h.User.Name, h.User.GID+1_000_000)
	h.SetSubIDs(t, ids, ids)
	const show = "cat /proc/sys/net/ipv4/ping_group_range"
	for name, c := range map[string]struct {
		flags   []string
		command string
		want    string
	}{
		"slirp":     {[]string{"--net=slirp"}, show, "0\t65536\n"},
		"none":      {[]string{"--net=none", "--pidns"}, show, "0\t65536\n"},
		"detached":  {[]string{"--net=slirp", "--detach-netns"}, `nsenter --net="$GATEKIT_STATE_DIR/netns" ` + show, "0\t65536\n"},
		"single id": {[]string{"--net=slirp", "--single-id"}, show, "0\t0\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := output(t, h, append(c.flags, "sh", "-c", c.command)...); got != c.want {
				t.Errorf("the range is %q, want %q", got, c.want)
			}
		})
	}
}

func TestPingsAreNeverForged(t *testing.T) {
	s := newSite(t)
	s.forbidPings(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	part := func(t *testing.T, to netip.Addr, answered bool) {
		wait := "1"
		if answered {
			wait = "20" // it comes when the machine has the time
		}
		for _, size := range []string{"56", "4000"} {
			r := s.Run(t, g.in("ping", "-c", "2", "-i", "0.01", "-W", wait, "-s", size, to.String()))
			if got := r.Code == 0; got != answered {
				t.Errorf("%s bytes to %v: %v\nwant answered: %v", size, to, r, answered)
			}
		}
	}
	s.both(t, func(t *testing.T, outside, _ netip.Addr) { part(t, outside, false) })
	part(t, netip.MustParseAddr("10.0.2.2"), true)
	part(t, netip.MustParseAddr("fd67:6174:656b::2"), true)
	g.Signal(signalTerm)
	if r := g.Wait(t); strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "sysctl -w net.ipv4.ping_group_range='0 2147483647'") {
		t.Errorf("the gate says %q, want a line with what to set", r.Stderr)
	}

	s.allowPings(t)
	g = startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for _, hole := range blackholes {
		t.Run(fmt.Sprint(hole), func(t *testing.T) { part(t, hole, false) })
	}
	g.stop(t)
}
