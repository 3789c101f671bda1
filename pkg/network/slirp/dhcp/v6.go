package dhcp

import (
	"bytes"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// maxDUID is the size of the largest identifier (RFC 8415, 11.1), and maxIAs is how
// many addresses a message may ask for.
const (
	maxDUID = 130
	maxIAs  = 8
)

// question6 is a message of a client.
type question6 struct {
	*dhcpv6.Message
	mac    [6]byte
	client []byte // DUID
	now    time.Time
}

// Answer6 answers a message that came to Servers6 in a frame from mac. The answer goes
// to port 546 of the address that has sent it. It is nil where nothing is to be said.
func (s *Server) Answer6(msg []byte, mac [6]byte) []byte {
	q, ok := s.parse6(msg, mac)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := dhcpv6.MessageTypeReply
	var body []dhcpv6.Option
	switch q.MessageType {
	case dhcpv6.MessageTypeSolicit:
		rapid := q.GetOneOption(dhcpv6.OptionRapidCommit)
		if rapid == nil {
			kind = dhcpv6.MessageTypeAdvertise
			body = append(body, dhcpv6.OptPreference(255)) // there is nobody else to wait for
		} else {
			body = append(body, rapid)
		}
		body = append(body, s.assign(q, rapid != nil)...)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		body = s.assign(q, true)
	case dhcpv6.MessageTypeConfirm:
		if body = s.confirm(q); body == nil {
			return nil
		}
	case dhcpv6.MessageTypeRelease:
		body = s.giveBack(q, s.v6.release)
	case dhcpv6.MessageTypeDecline:
		body = s.giveBack(q, s.v6.decline)
	case dhcpv6.MessageTypeInformationRequest:
	default:
		return nil
	}
	return s.answer6(q, kind, body)
}

// parse6 reads a message and checks that it has the identifiers that it must have,
// and none that it must not (RFC 8415, 16).
func (s *Server) parse6(msg []byte, mac [6]byte) (*question6, bool) {
	if !s.config.IPv6.Prefix.IsValid() || len(msg) > maxMessage {
		return nil, false
	}
	m, err := dhcpv6.MessageFromBytes(msg)
	if err != nil {
		return nil, false
	}
	q := &question6{Message: m, mac: mac, now: s.now()}
	if id := m.Options.ClientID(); id != nil {
		q.client = id.ToBytes()
	}
	if len(q.client) > maxDUID {
		return nil, false
	}
	server := m.Options.ServerID()
	ours := server != nil && bytes.Equal(server.ToBytes(), s.duid().ToBytes())
	switch m.MessageType {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		return q, len(q.client) > 0 && server == nil
	case dhcpv6.MessageTypeInformationRequest:
		return q, (server == nil || ours) && len(m.Options.IANA()) == 0
	}
	return q, len(q.client) > 0 && ours
}

// duid is the server's identifier.
func (s *Server) duid() dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: s.config.Server[:]}
}

// answer6 completes an answer.
func (s *Server) answer6(q *question6, kind dhcpv6.MessageType, body []dhcpv6.Option) []byte {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: q.TransactionID}
	m.AddOption(dhcpv6.OptServerID(s.duid()))
	if id := q.Options.ClientID(); id != nil {
		m.AddOption(dhcpv6.OptClientID(id))
	}
	for _, o := range body {
		m.AddOption(o)
	}
	m.AddOption(dhcpv6.OptDNS(s.config.IPv6.DNS.AsSlice()))
	if search := s.config.Search(); len(search) > 0 {
		m.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: search}))
	}
	return m.ToBytes()
}

// lessee is an association of a client, as the pool knows it.
func (q *question6) lessee(iaid [4]byte) string { return string(q.client) + string(iaid[:]) }

// assign offers or leases an address for each association. The first one of who has
// the child's Ethernet address gets the child's. Addresses that the client names and
// does not get are over. Temporary addresses and prefixes are not to be had.
func (s *Server) assign(q *question6, lease bool) []dhcpv6.Option {
	var body []dhcpv6.Option
	for i, ia := range q.Options.IANA() {
		var got netip.Addr
		switch {
		case i == 0 && q.mac == s.config.Child:
			got = s.config.IPv6.Child
		case i < maxIAs:
			got = s.lease6(q.lessee(ia.IaId), ia, q.now, lease)
		}
		body = append(body, association(ia, got, lease))
	}
	for _, ia := range q.Options.IATA() {
		body = append(body, &dhcpv6.OptIATA{IaId: ia.IaId, Options: dhcpv6.IdentityOptions{Options: dhcpv6.Options{noAddress()}}})
	}
	for _, ia := range q.Options.IAPD() {
		body = append(body, &dhcpv6.OptIAPD{IaId: ia.IaId, Options: dhcpv6.PDOptions{Options: dhcpv6.Options{
			status(iana.StatusNoPrefixAvail, "no prefixes here"),
		}}})
	}
	return body
}

// lease6 finds an address, and leases it if lease says so. The zero value is none.
func (s *Server) lease6(client string, ia *dhcpv6.OptIANA, now time.Time, lease bool) netip.Addr {
	var wanted netip.Addr
	if a := ia.Options.OneAddress(); a != nil {
		wanted = address6(a.IPv6Addr)
	}
	if lease && wanted.IsValid() && s.v6.claim(client, wanted, now, leaseTime) {
		return wanted
	}
	a, ok := s.v6.offer(client, wanted, now)
	if !ok || lease && !s.v6.claim(client, a, now, leaseTime) {
		s.config.Full()
		return netip.Addr{}
	}
	return a
}

// association is the answer for one, with its address or none.
func association(ia *dhcpv6.OptIANA, got netip.Addr, lease bool) dhcpv6.Option {
	answer := &dhcpv6.OptIANA{IaId: ia.IaId}
	if !got.IsValid() {
		answer.Options.Add(noAddress())
		return answer
	}
	answer.T1, answer.T2 = leaseTime/2, leaseTime*4/5
	answer.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: got.AsSlice(), PreferredLifetime: leaseTime, ValidLifetime: leaseTime})
	if lease {
		for _, a := range ia.Options.Addresses() {
			if address6(a.IPv6Addr) != got {
				answer.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.IPv6Addr})
			}
		}
	}
	return answer
}

// confirm says whether the client's addresses are of this network. It is nil when
// the client names none (RFC 8415, 18.3.3).
func (s *Server) confirm(q *question6) []dhcpv6.Option {
	var body []dhcpv6.Option
	for _, ia := range q.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			if !s.config.IPv6.Prefix.Contains(address6(a.IPv6Addr)) {
				return []dhcpv6.Option{status(iana.StatusNotOnLink, "not of this network")}
			}
			body = []dhcpv6.Option{status(iana.StatusSuccess, "")}
		}
	}
	return body
}

// giveBack releases or declines the client's addresses (RFC 8415, 18.3.7 and 18.3.8).
func (s *Server) giveBack(q *question6, how func(string, netip.Addr, time.Time) bool) []dhcpv6.Option {
	body := []dhcpv6.Option{status(iana.StatusSuccess, "")}
	for _, ia := range q.Options.IANA() {
		known := false
		for _, a := range ia.Options.Addresses() {
			addr := address6(a.IPv6Addr)
			child := q.mac == s.config.Child && addr == s.config.IPv6.Child
			known = how(q.lessee(ia.IaId), addr, q.now) || child || known
		}
		if !known {
			answer := &dhcpv6.OptIANA{IaId: ia.IaId}
			answer.Options.Add(status(iana.StatusNoBinding, "not leased"))
			body = append(body, answer)
		}
	}
	return body
}

// address6 is the zero value for an address that is not there.
func address6(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}

// status is the outcome of a request, or of a part of it.
func status(code iana.StatusCode, message string) dhcpv6.Option {
	return &dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: message}
}

// noAddress is the status of an association that gets none.
func noAddress() dhcpv6.Option { return status(iana.StatusNoAddrsAvail, "no address is free") }
