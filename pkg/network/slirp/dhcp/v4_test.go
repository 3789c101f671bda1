package dhcp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	child  = [6]byte{0x02, 0, 0, 1, 2, 3}
	guest  = [6]byte{0x52, 0x54, 0, 0, 0, 1}
	other  = [6]byte{0x52, 0x54, 0, 0, 0, 2}
	server = [6]byte{0x52, 0x55, 0, 0, 0, 2}
)

// rig is a server with a clock that stands still.
type rig struct {
	*Server
	t   testing.TB
	now time.Time
}

func newRig(t testing.TB, change func(*Config)) *rig {
	r := &rig{t: t, now: time.Unix(1e9, 0)}
	c := Config{
		IPv4: Network{
			Prefix:  netip.MustParsePrefix("10.0.2.0/24"),
			Gateway: netip.MustParseAddr("10.0.2.2"), DNS: netip.MustParseAddr("10.0.2.3"), Child: netip.MustParseAddr("10.0.2.100"),
		},
		IPv6: Network{
			Prefix:  netip.MustParsePrefix("fd00::/64"),
			Gateway: netip.MustParseAddr("fd00::2"), DNS: netip.MustParseAddr("fd00::3"), Child: netip.MustParseAddr("fd00::100"),
		},
		MTU:    1400,
		Search: func() []string { return []string{"corp.example", "example.com"} },
		Server: server,
		Child:  child,
		Now:    func() time.Time { return r.now },
	}
	if change != nil {
		change(&c)
	}
	r.Server = New(c)
	return r
}

// message is one of a client.
func message(mac [6]byte, kind dhcpv4.MessageType, with ...dhcpv4.Modifier) []byte {
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(mac[:]), dhcpv4.WithMessageType(kind), dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4})}, with...)...)
	if err != nil {
		panic(err)
	}
	return m.ToBytes()
}

func wants(s string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(s)))
}
func has(s string) dhcpv4.Modifier { return dhcpv4.WithClientIP(net.ParseIP(s)) }
func named(s string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte(s)))
}
func to(s string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(s)))
}

// ask returns what the server says to a message: "" for nothing, else the kind of
// its answer, and the address in it.
func (r *rig) ask(msg []byte) (string, *dhcpv4.DHCPv4, Reply) {
	r.t.Helper()
	reply, ok := r.Answer4(msg)
	if !ok {
		return "", nil, reply
	}
	m, err := dhcpv4.FromBytes(reply.Payload)
	if err != nil {
		r.t.Fatal(err)
	}
	if m.OpCode != dhcpv4.OpcodeBootReply || m.TransactionID != (dhcpv4.TransactionID{1, 2, 3, 4}) || !m.ServerIdentifier().Equal(net.IP{10, 0, 2, 2}) {
		r.t.Errorf("the answer is %v", m)
	}
	return fmt.Sprintf("%v %v", m.MessageType(), m.YourIPAddr), m, reply
}

func (r *rig) expect(want string, msg []byte) {
	r.t.Helper()
	if got, _, _ := r.ask(msg); got != want {
		r.t.Errorf("got %q, want %q", got, want)
	}
}

const (
	discover = dhcpv4.MessageTypeDiscover
	request  = dhcpv4.MessageTypeRequest
	ours     = "10.0.2.2"
)

func TestAGuestGetsTheChildsNetwork(t *testing.T) {
	r := newRig(t, nil)
	r.expect("OFFER 10.0.2.101", message(guest, discover))
	got, m, reply := r.ask(message(guest, request, to(ours), wants("10.0.2.101")))
	if got != "ACK 10.0.2.101" {
		t.Fatalf("got %s", got)
	}
	r.expect("NAK 0.0.0.0", message(guest, request, to(ours), wants("10.0.2.101"), named("\x01another")))
	if reply.To != netip.MustParseAddr("10.0.2.101") || reply.MAC != guest {
		t.Errorf("it goes to %v at %x", reply.To, reply.MAC)
	}
	mtu := binary.BigEndian.Uint16(m.GetOneOption(dhcpv4.OptionInterfaceMTU))
	if ones, _ := m.SubnetMask().Size(); ones != 24 || !slices.EqualFunc(m.Router(), []string{"10.0.2.2"}, equalIP) ||
		!slices.EqualFunc(m.DNS(), []string{"10.0.2.3"}, equalIP) || mtu != 1400 || m.DomainName() != "corp.example" ||
		!slices.Equal(m.DomainSearch().Labels, []string{"corp.example", "example.com"}) {
		t.Errorf("got %s", m.Summary())
	}
	if lease, t1, t2 := m.IPAddressLeaseTime(0), m.IPAddressRenewalTime(0), m.IPAddressRebindingTime(0); lease != 24*time.Hour || t1 != 12*time.Hour || t2 != 21*time.Hour {
		t.Errorf("times are %v, %v, %v", lease, t1, t2)
	}
	// As the message says how it wants it.
	_, _, reply = r.ask(message(guest, discover, dhcpv4.WithBroadcast(true)))
	if reply.To != broadcastIPv4 || reply.MAC != broadcastMAC {
		t.Errorf("an offer for one without an address goes to %v at %x", reply.To, reply.MAC)
	}
	_, m, _ = r.ask(message(guest, discover, named("\x01me"), dhcpv4.WithLeaseTime(7200)))
	if id := m.GetOneOption(dhcpv4.OptionClientIdentifier); string(id) != "\x01me" || m.IPAddressLeaseTime(0) != 2*time.Hour {
		t.Errorf("the client is named %q, for %v", id, m.IPAddressLeaseTime(0))
	}
}

func equalIP(ip net.IP, s string) bool { return ip.Equal(net.ParseIP(s)) }

func TestWhoHasTheChildsInterfaceHasItsAddress(t *testing.T) {
	r := newRig(t, nil)
	r.expect("OFFER 10.0.2.100", message(child, discover, wants("10.0.2.7")))
	r.expect("NAK 0.0.0.0", message(child, request, wants("10.0.2.101")))
	r.expect("ACK 10.0.2.100", message(child, request, to(ours), wants("10.0.2.100")))
	r.expect("ACK 10.0.2.100", message(child, request, has("10.0.2.100"), named("\x00another")))
	r.expect("OFFER 10.0.2.101", message(guest, discover, wants("10.0.2.100")))
	r.expect("NAK 0.0.0.0", message(guest, request, to(ours), wants("10.0.2.100")))
}

func TestLeases(t *testing.T) {
	r := newRig(t, nil)
	take := func(mac [6]byte, a string) {
		t.Helper()
		r.expect("ACK "+a, message(mac, request, to(ours), wants(a)))
	}
	r.expect("OFFER 10.0.2.101", message(guest, discover))
	take(guest, "10.0.2.101")
	r.expect("OFFER 10.0.2.101", message(guest, discover, wants("10.0.2.150")))
	r.expect("OFFER 10.0.2.150", message(other, discover, wants("10.0.2.150")))
	take(other, "10.0.2.150")
	r.expect("NAK 0.0.0.0", message(other, request, wants("10.0.2.101")))                // restarts with another's
	r.expect("NAK 0.0.0.0", message(other, request, has("192.168.0.7")))                 // comes from elsewhere
	r.expect("NAK 0.0.0.0", message(other, request, has("10.0.2.255")))                  // has the broadcast
	r.expect("NAK 0.0.0.0", message(other, request, wants("10.0.2.3")))                  // has the DNS server's
	r.expect("", message(other, request, to("10.0.2.9"), wants("10.0.2.200")))           // takes another's offer
	r.expect("", message(other, request))                                                // asks for nothing
	r.expect("", message(other, request, wants("10.0.2.150"), has("8.8.8.8")))           // is of two minds
	r.expect("ACK 10.0.2.150", message(other, request, has("10.0.2.150")))               // renews
	r.expect("ACK 10.0.2.200", message([6]byte{2, 9}, request, has("10.0.2.200")))       // is known from before our time
	r.expect("", message(guest, dhcpv4.MessageTypeRelease, to(ours), has("10.0.2.150"))) // another's
	r.expect("NAK 0.0.0.0", message(guest, request, wants("10.0.2.150")))

	r.expect("", message(other, dhcpv4.MessageTypeRelease, to(ours), has("10.0.2.150")))
	take(guest, "10.0.2.150")                              // which is free now,
	r.expect("OFFER 10.0.2.101", message(other, discover)) // as is what it was taken for
	take(other, "10.0.2.101")
	r.expect("", message(other, dhcpv4.MessageTypeDecline, to(ours), wants("10.0.2.101")))
	r.expect("OFFER 10.0.2.102", message(other, discover, wants("10.0.2.101")))
	r.now = r.now.Add(declineTime)
	r.expect("OFFER 10.0.2.101", message([6]byte{2, 8}, discover, wants("10.0.2.101")))

	r.now = r.now.Add(leaseTime)
	r.expect("OFFER 10.0.2.150", message(guest, discover)) // still remembered
	r.expect("ACK 10.0.2.150", message([6]byte{2, 7}, request, wants("10.0.2.150")))
}

func TestAnAddressThatWasGivenUpIsGivenOutAgain(t *testing.T) {
	r := newRig(t, nil)
	for i, a := range []string{"10.0.2.101", "10.0.2.102", "10.0.2.103"} {
		r.expect("OFFER "+a, message([6]byte{2, byte(i)}, discover))
		r.expect("ACK "+a, message([6]byte{2, byte(i)}, request, wants(a)))
	}
	r.expect("ACK 10.0.2.200", message([6]byte{2, 1}, request, wants("10.0.2.200")))
	r.expect("OFFER 10.0.2.102", message(guest, discover))
	r.expect("OFFER 10.0.2.104", message(other, discover))
}

func TestInform(t *testing.T) {
	r := newRig(t, nil)
	got, m, reply := r.ask(message(guest, dhcpv4.MessageTypeInform, has("10.0.2.50")))
	if got != "ACK 0.0.0.0" || m.GetOneOption(dhcpv4.OptionIPAddressLeaseTime) != nil || reply.To != netip.MustParseAddr("10.0.2.50") || len(m.DNS()) != 1 {
		t.Errorf("got %s to %v: %s", got, reply.To, m.Summary())
	}
	for _, a := range []string{"8.8.8.8", "10.0.2.2", "0.0.0.0"} {
		r.expect("", message(guest, dhcpv4.MessageTypeInform, has(a)))
	}
	if n, _ := r.Leases(); n != 0 {
		t.Errorf("%d leases were made", n)
	}
}

func TestMessagesThatAreNotForUs(t *testing.T) {
	r := newRig(t, nil)
	sound := message(guest, discover)
	changed := func(at int, to ...byte) []byte {
		b := slices.Clone(sound)
		copy(b[at:], to)
		return b
	}
	for name, msg := range map[string][]byte{
		"nothing":                  nil,
		"half a message":           sound[:200],
		"an answer":                changed(0, 2),
		"another kind of link":     changed(1, 6),
		"a longer address":         changed(2, 16),
		"a relay's":                changed(24, 10, 0, 0, 1),
		"a group's address":        changed(28, 1),
		"no address":               changed(28, 0, 0, 0, 0, 0, 0),
		"no cookie":                changed(236, 0),
		"BOOTP":                    message(guest, dhcpv4.MessageTypeNone),
		"more than a frame's size": append(sound, make([]byte, maxMessage)...),
	} {
		if got, _, _ := r.ask(msg); got != "" {
			t.Errorf("%s is answered: %s", name, got)
		}
	}
	r.expect("OFFER 10.0.2.101", sound)
	off := newRig(t, func(c *Config) { c.IPv4, c.IPv6 = Network{}, Network{} })
	off.expect("", sound)
}

func TestAnAnswerFitsTheClient(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Search = func() []string { return slices.Repeat([]string{strings.Repeat("long.", 20) + "example"}, 6) }
	})
	_, m, reply := r.ask(message(guest, discover))
	if len(reply.Payload) > 548 || m.DomainSearch() != nil || m.DomainName() == "" {
		t.Errorf("%d bytes: %s", len(reply.Payload), m.Summary())
	}
	_, m, reply = r.ask(message(guest, discover, dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(1500))))
	if len(reply.Payload) > 1372 || len(m.DomainSearch().Labels) != 6 {
		t.Errorf("%d bytes: %s", len(reply.Payload), m.Summary())
	}
}

func TestAStormOfClientsIsBounded(t *testing.T) {
	for name, c := range map[string]struct {
		prefix string
		most   int
	}{
		"of a usual network": {"10.0.2.0/24", 154},
		"of a large network": {"10.0.0.0/8", maxLeases},
	} {
		t.Run(name, func(t *testing.T) {
			full := 0
			r := newRig(t, func(config *Config) {
				config.IPv4.Prefix = netip.MustParsePrefix(c.prefix)
				config.Full = func() { full++ }
			})
			storm := func(kind dhcpv4.MessageType, with ...dhcpv4.Modifier) (answers int) {
				for i := range uint32(10_000) {
					mac := [6]byte{0x02, 1}
					binary.BigEndian.PutUint32(mac[2:], i)
					if got, _, _ := r.ask(message(mac, kind, with...)); strings.HasPrefix(got, "OFFER") || strings.HasPrefix(got, "ACK") {
						answers++
					}
				}
				return answers
			}
			storm(discover)
			if full != 0 {
				t.Errorf("no address was left for %d of those who did not take theirs", full)
			}
			if n, _ := r.Leases(); n != c.most {
				t.Errorf("%d leases, want %d", n, c.most)
			}
			// Offers to others keep nobody out.
			got, m, _ := r.ask(message(guest, discover))
			if m == nil {
				t.Fatalf("a client gets %q", got)
			}
			r.expect("ACK "+m.YourIPAddr.String(), message(guest, request, to(ours), wants(m.YourIPAddr.String())))
			// Leases do, but for the child.
			for i := range c.most {
				mac, a := [6]byte{0x02, 2, byte(i >> 8), byte(i)}, r.v4.address(i).String()
				r.ask(message(mac, request, wants(a)))
			}
			if n := storm(discover); n != 0 || full != 10_000 {
				t.Errorf("%d offers of nothing, and none for %d", n, full)
			}
			if n, clients := len(r.v4.slots), len(r.v4.clients); n != c.most || clients != c.most {
				t.Errorf("%d leases of %d clients, want %d", n, clients, c.most)
			}
			r.expect("OFFER 10.0.2.100", message(child, discover))
			r.now = r.now.Add(leaseTime)
			if n := storm(discover); n != 10_000 {
				t.Errorf("after all leases %d offers", n)
			}
		})
	}
}

func FuzzAnswer4(f *testing.F) {
	for _, m := range [][]byte{
		message(guest, discover), message(child, discover), message(guest, request, to(ours), wants("10.0.2.101")),
		message(guest, request, has("10.0.2.101"), named("\x01x")), message(guest, dhcpv4.MessageTypeInform, has("10.0.2.50")),
		message(guest, dhcpv4.MessageTypeDecline, to(ours), wants("10.0.2.101")), message(guest, dhcpv4.MessageTypeRelease, to(ours), has("10.0.2.101")),
	} {
		f.Add(m)
	}
	r := newRig(f, nil)
	f.Fuzz(func(t *testing.T, msg []byte) {
		r.now = r.now.Add(time.Second)
		before := slices.Clone(msg)
		reply, ok := r.Answer4(msg)
		if !bytes.Equal(before, msg) {
			t.Fatal("the message was changed")
		}
		if n, _ := r.Leases(); n > r.v4.size || len(r.v4.clients) > n {
			t.Fatalf("%d leases of %d clients", n, len(r.v4.clients))
		}
		if !ok {
			return
		}
		if !reply.To.Is4() || reply.MAC[0]&1 != 0 && reply.MAC != broadcastMAC || len(reply.Payload) > 1400-28 {
			t.Fatalf("%d bytes go to %v at %x", len(reply.Payload), reply.To, reply.MAC)
		}
		if reply.To != broadcastIPv4 && !r.config.IPv4.Prefix.Contains(reply.To) {
			t.Fatalf("an answer leaves the network, to %v", reply.To)
		}
		m, err := dhcpv4.FromBytes(reply.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if a := address4(m.YourIPAddr); a.IsValid() && !r.onLink(a) {
			t.Fatalf("the client gets %v", a)
		}
	})
}
