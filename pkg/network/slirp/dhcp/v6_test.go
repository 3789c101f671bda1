package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// message6 is one of a client that is named by its Ethernet address.
func message6(mac [6]byte, kind dhcpv6.MessageType, options ...dhcpv6.Option) []byte {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac[:]}))
	for _, o := range options {
		m.AddOption(o)
	}
	return m.ToBytes()
}

func serverID(mac [6]byte) dhcpv6.Option {
	return dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac[:]})
}

// ia is an association, with the addresses that the client has or wants.
func ia(id byte, addrs ...string) dhcpv6.Option {
	o := &dhcpv6.OptIANA{IaId: [4]byte{id}}
	for _, a := range addrs {
		o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)})
	}
	return o
}

// ask6 returns what the server says to a message: "" for nothing, else the kind of its
// answer, and the outcome of the whole and of each association.
func (r *rig) ask6(mac [6]byte, msg []byte) (string, *dhcpv6.Message) {
	r.t.Helper()
	answer := r.Answer6(msg, mac)
	if answer == nil {
		return "", nil
	}
	m, err := dhcpv6.MessageFromBytes(answer)
	if err != nil {
		r.t.Fatal(err)
	}
	if m.TransactionID != (dhcpv6.TransactionID{1, 2, 3}) || m.Options.ServerID().String() != r.duid().String() {
		r.t.Errorf("the answer is %s", m.Summary())
	}
	words := []string{m.MessageType.String()}
	status := func(s *dhcpv6.OptStatusCode) {
		if s != nil {
			words = append(words, s.StatusCode.String())
		}
	}
	status(m.Options.Status())
	for _, ia := range m.Options.IANA() {
		words = append(words, fmt.Sprint(ia.IaId[0]))
		status(ia.Options.Status())
		for _, a := range ia.Options.Addresses() {
			words = append(words, a.IPv6Addr.String())
			if a.ValidLifetime == 0 {
				words = append(words, "over")
			} else if a.ValidLifetime != leaseTime || a.PreferredLifetime != leaseTime || ia.T1 != 12*time.Hour || ia.T2 <= ia.T1 || ia.T2 >= leaseTime {
				r.t.Errorf("times are %v, %v; %v, %v", ia.T1, ia.T2, a.PreferredLifetime, a.ValidLifetime)
			}
		}
	}
	return strings.Join(words, " "), m
}

func (r *rig) expect6(want string, mac [6]byte, msg []byte) {
	r.t.Helper()
	if got, _ := r.ask6(mac, msg); got != want {
		r.t.Errorf("got %q, want %q", got, want)
	}
}

const (
	solicit6 = dhcpv6.MessageTypeSolicit
	request6 = dhcpv6.MessageTypeRequest
)

func TestAGuestGetsTheChildsIPv6Network(t *testing.T) {
	r := newRig(t, nil)
	got, m := r.ask6(guest, message6(guest, solicit6, ia(1)))
	if got != "ADVERTISE 1 fd00::101" || m.GetOneOption(dhcpv6.OptionPreference) == nil {
		t.Errorf("got %s", got)
	}
	got, m = r.ask6(guest, message6(guest, request6, serverID(server), ia(1, "fd00::101")))
	if got != "REPLY 1 fd00::101" {
		t.Errorf("got %s", got)
	}
	if !slices.EqualFunc(m.Options.DNS(), []string{"fd00::3"}, equalIP) || !slices.Equal(m.Options.DomainSearchList().Labels, []string{"corp.example", "example.com"}) {
		t.Errorf("got %s", m.Summary())
	}
	// The rest without an address.
	got, m = r.ask6(other, message6(other, dhcpv6.MessageTypeInformationRequest))
	if got != "REPLY" || len(m.Options.DNS()) != 1 {
		t.Errorf("got %s", got)
	}
	nameless := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeInformationRequest, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	r.expect6("REPLY", other, nameless.ToBytes())
	// In one exchange.
	rapid := &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}
	got, m = r.ask6(other, message6(other, solicit6, ia(1), rapid))
	if got != "REPLY 1 fd00::102" || m.GetOneOption(dhcpv6.OptionRapidCommit) == nil {
		t.Errorf("got %s", got)
	}
	r.expect6("ADVERTISE 1 fd00::103", [6]byte{2, 7}, message6([6]byte{2, 7}, solicit6, ia(1, "fd00::102")))
}

func TestWhoHasTheChildsInterfaceHasItsIPv6Address(t *testing.T) {
	r := newRig(t, nil)
	r.expect6("ADVERTISE 1 fd00::100", child, message6(child, solicit6, ia(1, "fd00::7")))
	r.expect6("REPLY 1 fd00::100 2 fd00::101", child, message6(child, request6, serverID(server), ia(1), ia(2)))
	r.expect6("REPLY 1 fd00::100", child, message6(other, dhcpv6.MessageTypeRenew, serverID(server), ia(1, "fd00::100")))
	r.expect6("REPLY Success", child, message6(child, dhcpv6.MessageTypeRelease, serverID(server), ia(1, "fd00::100")))
	r.expect6("REPLY 1 fd00::102 fd00::100 over", guest, message6(guest, request6, serverID(server), ia(1, "fd00::100")))
}

func TestLeases6(t *testing.T) {
	r := newRig(t, nil)
	r.expect6("REPLY 1 fd00::150 2 fd00::101", guest, message6(guest, request6, serverID(server), ia(1, "fd00::150"), ia(2)))
	r.expect6("REPLY 1 fd00::150", guest, message6(guest, dhcpv6.MessageTypeRenew, serverID(server), ia(1, "fd00::150")))
	r.expect6("REPLY 1 fd00::102 fd00::150 over", other, message6(other, dhcpv6.MessageTypeRebind, ia(1, "fd00::150")))
	r.expect6("REPLY 1 fd00::102 2001:db8::1 over", other, message6(other, dhcpv6.MessageTypeRebind, ia(1, "2001:db8::1")))

	r.expect6("REPLY Success", guest, message6(guest, dhcpv6.MessageTypeConfirm, ia(1, "fd00::150")))
	r.expect6("REPLY NotOnLink", guest, message6(guest, dhcpv6.MessageTypeConfirm, ia(1, "fd00::150"), ia(2, "2001:db8::1")))
	r.expect6("", guest, message6(guest, dhcpv6.MessageTypeConfirm, ia(1)))

	r.expect6("REPLY Success 1 NoBinding", other, message6(other, dhcpv6.MessageTypeRelease, serverID(server), ia(1, "fd00::150")))
	r.expect6("REPLY Success", guest, message6(guest, dhcpv6.MessageTypeRelease, serverID(server), ia(1, "fd00::150")))
	r.expect6("REPLY 1 fd00::150", other, message6(other, request6, serverID(server), ia(1, "fd00::150")))
	r.expect6("REPLY Success", other, message6(other, dhcpv6.MessageTypeDecline, serverID(server), ia(1, "fd00::150")))
	r.expect6("REPLY 1 fd00::102 fd00::150 over", other, message6(other, request6, serverID(server), ia(1, "fd00::150")))

	// Temporary addresses and prefixes are not to be had.
	_, m := r.ask6(guest, message6(guest, solicit6, &dhcpv6.OptIATA{IaId: [4]byte{3}}, &dhcpv6.OptIAPD{IaId: [4]byte{4}}))
	if s := m.Options.OneIATA().Options.Status(); s == nil || s.StatusCode != iana.StatusNoAddrsAvail {
		t.Errorf("a temporary address: %v", s)
	}
	if s := m.Options.OneIAPD().Options.Status(); s == nil || s.StatusCode != iana.StatusNoPrefixAvail {
		t.Errorf("a prefix: %v", s)
	}
}

func TestMessages6ThatAreNotForUs(t *testing.T) {
	r := newRig(t, nil)
	nameless := &dhcpv6.Message{MessageType: solicit6}
	relayed, err := dhcpv6.EncapsulateRelay(&dhcpv6.Message{MessageType: solicit6}, dhcpv6.MessageTypeRelayForward, net.IPv6loopback, net.IPv6loopback)
	if err != nil {
		t.Fatal(err)
	}
	long := &dhcpv6.Message{MessageType: solicit6}
	long.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDOpaque{Type: 99, Data: make([]byte, maxDUID)}))
	for name, msg := range map[string][]byte{
		"nothing":                         nil,
		"half a message":                  message6(guest, solicit6, ia(1))[:9],
		"no client":                       nameless.ToBytes(),
		"a long name":                     long.ToBytes(),
		"a relay's":                       relayed.ToBytes(),
		"an answer":                       message6(guest, dhcpv6.MessageTypeReply, serverID(server)),
		"a solicitation of one server":    message6(guest, solicit6, serverID(server)),
		"a request of no server":          message6(guest, request6, ia(1)),
		"a request of another":            message6(guest, request6, serverID(other), ia(1)),
		"a renewal of another":            message6(guest, dhcpv6.MessageTypeRenew, serverID(other), ia(1)),
		"a rebinding of one server":       message6(guest, dhcpv6.MessageTypeRebind, serverID(server), ia(1)),
		"a release of no server":          message6(guest, dhcpv6.MessageTypeRelease, ia(1)),
		"information for an association":  message6(guest, dhcpv6.MessageTypeInformationRequest, ia(1)),
		"information of another server":   message6(guest, dhcpv6.MessageTypeInformationRequest, serverID(other)),
		"more than the size of one frame": message6(guest, solicit6, ia(1), &dhcpv6.OptionGeneric{OptionCode: 999, OptionData: make([]byte, maxMessage)}),
	} {
		if got, _ := r.ask6(guest, msg); got != "" {
			t.Errorf("%s is answered: %s", name, got)
		}
	}
	off := newRig(t, func(c *Config) { c.IPv6 = Network{} })
	off.expect6("", guest, message6(guest, solicit6, ia(1)))
}

func TestAStormOfClients6IsBounded(t *testing.T) {
	r := newRig(t, nil)
	for i := range uint32(10_000) {
		mac := [6]byte{0x02, 1}
		binary.BigEndian.PutUint32(mac[2:], i)
		r.ask6(mac, message6(mac, request6, serverID(server), ia(1), ia(2)))
	}
	if _, n := r.Leases(); n != maxLeases || len(r.v6.clients) != n {
		t.Errorf("%d leases of %d clients, want %d", n, len(r.v6.clients), maxLeases)
	}
	r.expect6("ADVERTISE 1 NoAddrsAvail", guest, message6(guest, solicit6, ia(1)))
	r.expect6("ADVERTISE 1 fd00::100", child, message6(child, solicit6, ia(1)))
	many := make([]dhcpv6.Option, 50)
	for i := range many {
		many[i] = ia(byte(i))
	}
	r.now = r.now.Add(leaseTime)
	got, _ := r.ask6(guest, message6(guest, solicit6, many...))
	if n := strings.Count(got, "fd00::"); n != maxIAs {
		t.Errorf("one client gets %d addresses: %s", n, got)
	}
}

func FuzzAnswer6(f *testing.F) {
	for _, m := range [][]byte{
		message6(guest, solicit6, ia(1)), message6(child, solicit6, ia(1)), message6(guest, request6, serverID(server), ia(1, "fd00::101")),
		message6(guest, dhcpv6.MessageTypeConfirm, ia(1, "fd00::101")), message6(guest, dhcpv6.MessageTypeRebind, ia(1, "fd00::101")),
		message6(guest, dhcpv6.MessageTypeDecline, serverID(server), ia(1, "fd00::101")), message6(guest, dhcpv6.MessageTypeInformationRequest),
		message6(guest, solicit6, &dhcpv6.OptIATA{}, &dhcpv6.OptIAPD{}),
	} {
		f.Add(m)
	}
	r := newRig(f, nil)
	f.Fuzz(func(t *testing.T, msg []byte) {
		r.now = r.now.Add(time.Second)
		answer := r.Answer6(msg, guest)
		if _, n := r.Leases(); n > r.v6.size || len(r.v6.clients) > n {
			t.Fatalf("%d leases of %d clients", n, len(r.v6.clients))
		}
		if answer == nil {
			return
		}
		if len(answer) > 8*maxMessage {
			t.Fatalf("%d bytes for %d", len(answer), len(msg))
		}
		m, err := dhcpv6.MessageFromBytes(answer)
		if err != nil {
			t.Fatal(err)
		}
		for _, ia := range m.Options.IANA() {
			for _, a := range ia.Options.Addresses() {
				addr := address6(a.IPv6Addr)
				if a.ValidLifetime > 0 && (!r.config.IPv6.Prefix.Contains(addr) || addr.Less(netip.MustParseAddr("fd00::101"))) {
					t.Fatalf("the client gets %v", addr)
				}
			}
		}
	})
}
