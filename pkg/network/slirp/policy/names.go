package policy

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Bounds on what is held of an answer.
const (
	maxHeld = 8192 // addresses of names, in each of the two tables

	// minHold is for the way from the answer to the connection; some answers are
	// good for 0 seconds. maxHold is a bound on what a server may ask for.
	minHold = 5 * time.Second
	maxHold = 24 * time.Hour
)

// names holds the addresses that names were answered with. The zero value is
// empty. It is safe for concurrent use.
type names struct {
	mu    sync.Mutex // guards all below
	held  map[netip.Addr][]holding
	count int
}

// holding is a name of an address, and until when it is one.
type holding struct {
	name  string
	until time.Time
}

// hold notes that name has addr. When the table is full, what ends first makes
// room.
func (n *names) hold(addr netip.Addr, name string, until time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.held == nil {
		n.held = make(map[netip.Addr][]holding)
	}
	for i := range n.held[addr] {
		if h := &n.held[addr][i]; h.name == name {
			if until.After(h.until) {
				h.until = until
			}
			return
		}
	}
	if n.count >= maxHeld {
		n.dropFirst()
	}
	n.held[addr] = append(n.held[addr], holding{name, until})
	n.count++
}

// dropFirst drops what ends first.
func (n *names) dropFirst() {
	var addr netip.Addr
	var first *holding
	for a, list := range n.held {
		for i := range list {
			if first == nil || list[i].until.Before(first.until) {
				addr, first = a, &list[i]
			}
		}
	}
	name := first.name
	left := slices.DeleteFunc(n.held[addr], func(h holding) bool { return h.name == name })
	if n.held[addr] = left; len(left) == 0 {
		delete(n.held, addr)
	}
	n.count--
}

// has says whether addr has a name that ok accepts, at the time now or, when that
// is zero, at any.
func (n *names) has(addr netip.Addr, now time.Time, ok func(name string) bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.held[addr], func(h holding) bool {
		return (now.IsZero() || now.Before(h.until)) && ok(h.name)
	})
}

// answer is what a DNS answer says of addresses.
type answer struct {
	name  string // that was asked for, in lower case and without the last dot
	addrs []netip.Addr
	ttl   time.Duration
}

// readAnswer takes the addresses out of an answer to a query. Only the name that
// was asked for gets them: aliases on the way (CNAME) are the answering zone's to
// choose, and so are no proof of anything. It is false when there are none.
func readAnswer(query, msg []byte) (answer, bool) {
	asked, ok := question(query)
	if !ok {
		return answer{}, false
	}
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.RCode != dnsmessage.RCodeSuccess {
		return answer{}, false
	}
	if q, err := p.Question(); err != nil || q.Class != asked.Class || canonical(q.Name) != canonical(asked.Name) {
		return answer{}, false
	}
	if p.SkipAllQuestions() != nil {
		return answer{}, false
	}
	a := answer{name: canonical(asked.Name), ttl: maxHold}
	owners := []string{a.name}
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return a, len(a.addrs) > 0
		}
		mine := h.Class == dnsmessage.ClassINET && slices.Contains(owners, canonical(h.Name))
		var addr netip.Addr
		switch {
		case mine && h.Type == dnsmessage.TypeA:
			r, err := p.AResource()
			if err != nil {
				return a, len(a.addrs) > 0
			}
			addr = netip.AddrFrom4(r.A)
		case mine && h.Type == dnsmessage.TypeAAAA:
			r, err := p.AAAAResource()
			if err != nil {
				return a, len(a.addrs) > 0
			}
			addr = netip.AddrFrom16(r.AAAA)
		case mine && h.Type == dnsmessage.TypeCNAME:
			r, err := p.CNAMEResource()
			if err != nil {
				return a, len(a.addrs) > 0
			}
			owners = append(owners, canonical(r.CNAME))
		default:
			if p.SkipAnswer() != nil {
				return a, len(a.addrs) > 0
			}
			continue
		}
		a.ttl = min(a.ttl, time.Duration(h.TTL)*time.Second)
		if addr.IsValid() {
			a.addrs = append(a.addrs, addr)
		}
	}
}

// question is the one question of a query.
func question(query []byte) (dnsmessage.Question, bool) {
	var p dnsmessage.Parser
	if _, err := p.Start(query); err != nil {
		return dnsmessage.Question{}, false
	}
	q, err := p.Question()
	return q, err == nil
}

// canonical is a name as rules have it.
func canonical(n dnsmessage.Name) string {
	return strings.ToLower(strings.TrimSuffix(n.String(), "."))
}
