package slirp

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsHeaderSize is the size of the header of a message (RFC 1035, 4.1.1).
const dnsHeaderSize = 12

// dnsHeader is what we look at in a message.
type dnsHeader struct {
	id       uint16
	response bool
	code     dnsmessage.RCode
}

// parseDNSHeader is false for what is too short to be a message.
func parseDNSHeader(msg []byte) (dnsHeader, bool) {
	if len(msg) < dnsHeaderSize {
		return dnsHeader{}, false
	}
	return dnsHeader{
		id:       binary.BigEndian.Uint16(msg),
		response: msg[2]&0x80 != 0,
		code:     dnsmessage.RCode(msg[3] & 0x0f),
	}, true
}

// isTransfer says whether a query asks for the transfer of a zone, whose answer
// has many messages (RFC 5936, RFC 1995).
func isTransfer(msg []byte) bool {
	const ixfr, axfr = 251, 252
	var p dnsmessage.Parser
	if _, err := p.Start(msg); err != nil {
		return false
	}
	q, err := p.Question()
	return err == nil && (q.Type == ixfr || q.Type == axfr)
}

// reply is the beginning of an answer of our own to a query: its header, and its
// question where that can be read.
func reply(msg []byte, code dnsmessage.RCode) dnsmessage.Message {
	asked, _ := parseDNSHeader(msg)
	answer := dnsmessage.Message{Header: dnsmessage.Header{
		ID:                 asked.id,
		Response:           true,
		OpCode:             dnsmessage.OpCode(msg[2] >> 3 & 0x0f),
		RecursionDesired:   msg[2]&1 != 0,
		RecursionAvailable: true,
		RCode:              code,
	}}
	var p dnsmessage.Parser
	if _, err := p.Start(msg); err == nil {
		if q, err := p.Question(); err == nil {
			answer.Questions = []dnsmessage.Question{q}
		}
	}
	return answer
}

// serverFailure answers a query with SERVFAIL.
func serverFailure(msg []byte) []byte {
	answer := reply(msg, dnsmessage.RCodeServerFailure)
	packed, err := answer.Pack()
	if err != nil {
		return nil
	}
	return packed
}

// ownName names the gateway, and with it, where --host-loopback opens it, the
// host. The domain internal is for private use.
const ownName = "host.gatekit.internal."

// ownAnswerTTL is how long, in seconds, our own answers are good.
const ownAnswerTTL = 60

// ownNames answers the queries for the name that we know ourselves.
type ownNames struct{ gateways []netip.Addr }

// answer is nil for a query that is not ours. A type that the name does not have
// is an answer without records.
func (o *ownNames) answer(msg []byte) []byte {
	asked, _ := parseDNSHeader(msg)
	if asked.response || msg[2]>>3&0x0f != 0 {
		return nil
	}
	answer := reply(msg, dnsmessage.RCodeSuccess)
	if len(answer.Questions) != 1 {
		return nil
	}
	q := answer.Questions[0]
	if q.Class != dnsmessage.ClassINET || !strings.EqualFold(q.Name.String(), ownName) {
		return nil
	}
	answer.Authoritative = true
	for _, a := range o.gateways {
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: ownAnswerTTL}
		switch {
		case a.Is4() && (q.Type == dnsmessage.TypeA || q.Type == dnsmessage.TypeALL):
			answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && (q.Type == dnsmessage.TypeAAAA || q.Type == dnsmessage.TypeALL):
			answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	if hasEDNS(msg) {
		var h dnsmessage.ResourceHeader
		if h.SetEDNS0(ednsSize, dnsmessage.RCodeSuccess, false) == nil {
			answer.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
		}
	}
	packed, err := answer.Pack()
	if err != nil {
		return nil
	}
	return packed
}

// ednsSize is the size of datagrams that our own answers announce.
const ednsSize = 1232

// hasEDNS says whether a query has an EDNS record, so that its answer has to have
// one too (RFC 6891, 6.1.1).
func hasEDNS(msg []byte) bool {
	var m dnsmessage.Message
	if m.Unpack(msg) != nil {
		return false
	}
	for _, r := range m.Additionals {
		if r.Header.Type == dnsmessage.TypeOPT {
			return true
		}
	}
	return false
}
