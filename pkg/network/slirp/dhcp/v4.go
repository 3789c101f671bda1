package dhcp

import (
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// Reply is an answer of DHCPv4 and where it goes.
type Reply struct {
	Payload []byte

	// MAC and To are the client, at port 68; or everybody: it may not take
	// datagrams for an address that it does not have yet.
	MAC [6]byte
	To  netip.Addr
}

var (
	broadcastMAC  = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	broadcastIPv4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// question4 is a message of a client.
type question4 struct {
	*dhcpv4.DHCPv4
	mac     [6]byte
	client  string     // who it is
	current netip.Addr // ciaddr, the address that the client has
	wanted  netip.Addr // option 50
	now     time.Time
}

// Answer4 answers a message. It is false where nothing is to be said.
func (s *Server) Answer4(msg []byte) (Reply, bool) {
	q, ok := s.parse4(msg)
	if !ok {
		return Reply{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	forUs := q.ServerIdentifier().Equal(s.config.IPv4.Gateway.AsSlice())
	switch q.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return s.discover(q)
	case dhcpv4.MessageTypeRequest:
		if !forUs && q.ServerIdentifier() != nil {
			return Reply{}, false // it has taken another server's offer
		}
		return s.request(q)
	case dhcpv4.MessageTypeInform:
		if !s.onLink(q.current) {
			return Reply{}, false
		}
		return s.reply(q, dhcpv4.MessageTypeAck, netip.Addr{}, 0), true
	case dhcpv4.MessageTypeRelease:
		if forUs {
			s.v4.release(q.client, q.current, q.now)
		}
	case dhcpv4.MessageTypeDecline:
		if forUs {
			s.v4.decline(q.client, q.wanted, q.now)
		}
	}
	return Reply{}, false
}

// parse4 reads a message of a client on Ethernet that did not come by a relay.
func (s *Server) parse4(msg []byte) (*question4, bool) {
	if !s.config.IPv4.Prefix.IsValid() || len(msg) > maxMessage {
		return nil, false
	}
	m, err := dhcpv4.FromBytes(msg)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootRequest || m.HWType != iana.HWTypeEthernet || len(m.ClientHWAddr) != 6 || !m.GatewayIPAddr.IsUnspecified() {
		return nil, false
	}
	q := &question4{DHCPv4: m, mac: [6]byte(m.ClientHWAddr), now: s.now()}
	if q.mac[0]&1 != 0 || q.mac == [6]byte{} {
		return nil, false
	}
	// The two kinds of names never are the same.
	q.client = "\x00" + string(q.mac[:])
	if id := m.GetOneOption(dhcpv4.OptionClientIdentifier); len(id) > 1 {
		q.client = "\x01" + string(id)
	}
	q.current, q.wanted = address4(m.ClientIPAddr), address4(m.RequestedIPAddress())
	return q, true
}

// address4 is the zero value for an address that is not there.
func address4(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	if a.IsValid() && a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// onLink says whether an address is one that a client can have.
func (s *Server) onLink(a netip.Addr) bool {
	n := s.config.IPv4
	return n.Prefix.Contains(a) && a != n.Gateway && a != n.DNS
}

// discover makes an offer.
func (s *Server) discover(q *question4) (Reply, bool) {
	a, ok := s.config.IPv4.Child, true
	if q.mac != s.config.Child {
		a, ok = s.v4.offer(q.client, q.wanted, q.now)
	}
	if !ok {
		s.config.Full()
		return Reply{}, false
	}
	return s.reply(q, dhcpv4.MessageTypeOffer, a, q.leaseTime()), true
}

// request leases an address, or says that it is not to be had.
//
//	                        option 54   option 50   ciaddr    (RFC 2131, 4.3.2)
//	takes our offer         ours        the offer   -
//	has restarted           -           its own     -
//	renews, or rebinds      -           -           its own
func (s *Server) request(q *question4) (Reply, bool) {
	a := q.wanted
	if !a.IsValid() {
		a = q.current
	}
	if !a.IsValid() || q.current.IsValid() && q.current != a {
		return Reply{}, false
	}
	d := q.leaseTime()
	got := a == s.config.IPv4.Child
	if q.mac != s.config.Child {
		got = s.v4.claim(q.client, a, q.now, d)
	}
	if !got {
		return s.refuse(q), true
	}
	return s.reply(q, dhcpv4.MessageTypeAck, a, d), true
}

// leaseTime is what the client asks for, within our limits.
func (q *question4) leaseTime() time.Duration {
	return max(minLeaseTime, min(leaseTime, q.IPAddressLeaseTime(leaseTime)))
}

// answer4 begins an answer (RFC 2131, table 3).
func (s *Server) answer4(q *question4, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        q.HWType,
		TransactionID: q.TransactionID,
		Flags:         q.Flags,
		GatewayIPAddr: net.IPv4zero,
		ClientHWAddr:  q.ClientHWAddr,
		Options:       dhcpv4.Options{},
	}
	m.UpdateOption(dhcpv4.OptMessageType(kind))
	m.UpdateOption(dhcpv4.OptServerIdentifier(s.config.IPv4.Gateway.AsSlice()))
	if id := q.GetOneOption(dhcpv4.OptionClientIdentifier); id != nil {
		m.UpdateOption(dhcpv4.OptClientIdentifier(id)) // RFC 6842
	}
	return m
}

// refuse has a client begin anew. All hear it, because the client's address may be
// of another network (RFC 2131, 4.1).
func (s *Server) refuse(q *question4) Reply {
	m := s.answer4(q, dhcpv4.MessageTypeNak)
	m.UpdateOption(dhcpv4.OptMessage("not an address for you"))
	return Reply{Payload: m.ToBytes(), MAC: broadcastMAC, To: broadcastIPv4}
}

// reply is an offer or an acknowledgement. d is 0 for one without a lease.
func (s *Server) reply(q *question4, kind dhcpv4.MessageType, a netip.Addr, d time.Duration) Reply {
	n := s.config.IPv4
	m := s.answer4(q, kind)
	r := Reply{MAC: q.mac, To: a}
	if a.IsValid() {
		m.YourIPAddr = a.AsSlice()
	}
	if kind == dhcpv4.MessageTypeAck {
		m.ClientIPAddr = q.ClientIPAddr
	}
	// RFC 2131, 4.1.
	switch {
	case q.current.IsValid() && kind == dhcpv4.MessageTypeAck:
		r.To = q.current
	case q.IsBroadcast():
		r.MAC, r.To = broadcastMAC, broadcastIPv4
	}
	m.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(n.Prefix.Bits(), 32)))
	m.UpdateOption(dhcpv4.OptRouter(n.Gateway.AsSlice()))
	m.UpdateOption(dhcpv4.OptDNS(n.DNS.AsSlice()))
	m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, dhcpv4.Uint16(s.config.MTU).ToBytes()))
	if d > 0 {
		m.UpdateOption(dhcpv4.OptIPAddressLeaseTime(d))
		m.UpdateOption(dhcpv4.OptRenewTimeValue(d / 2))
		m.UpdateOption(dhcpv4.OptRebindingTimeValue(d * 7 / 8))
	}
	if search := s.config.Search(); len(search) > 0 {
		m.UpdateOption(dhcpv4.OptDomainName(search[0]))
		m.UpdateOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: search}))
	}
	r.Payload = m.ToBytes()
	if len(r.Payload) > s.room(q) {
		m.DeleteOption(dhcpv4.OptionDNSDomainSearchList)
		r.Payload = m.ToBytes()
	}
	return r
}

// room is how large the answer to a client may be. Without option 57 it takes an IP
// packet of 576 bytes (RFC 2131, 2).
func (s *Server) room(q *question4) int {
	const least, headers = 576, 20 + 8
	size, err := q.MaxMessageSize()
	if err != nil {
		size = least
	}
	return min(max(int(size), least), s.config.MTU) - headers
}
