// Package dhcp answers DHCP clients behind the interface of the namespace: virtual
// machines and containers that are bridged to it (RFC 2131 and 2132, RFC 8415).
// They get what the child has: an address of the same network, the gateway, the
// DNS server, the search domains and the MTU.
//
//	frame -- inspector -- Answer4, Answer6 -- frame
//	                        |
//	                        pool: who has which address, until when
//
// The server is the only one on its link, so it speaks for all of it: whoever asks
// for an address that it cannot have is told so at once, and one who comes back with
// an address that we do not know of, but that is free, keeps it.
//
// Nothing here has a goroutine, a timer or a socket: leases that are over are found
// when their address is needed. Everything is bounded, whatever the clients send:
// the leases by the pool, an answer by its question.
//
// What belongs here are messages and leases. Router advertisements, which guests of
// IPv6 need as well, and the frames around both are the engine's.
package dhcp

import (
	"net/netip"
	"sync"
	"time"
)

// The ports of DHCP (RFC 2131, 4.1; RFC 8415, 7.2).
const (
	ServerPort4 = 67
	ClientPort4 = 68
	ServerPort6 = 547
	ClientPort6 = 546
)

// Servers6 is the group that clients of DHCPv6 speak to
// (All_DHCP_Relay_Agents_and_Servers).
var Servers6 = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 13: 1, 15: 2})

// leaseTime is how long an address is good without being asked for again. It is
// long, because a guest that renews wakes two machines up.
const leaseTime = 24 * time.Hour

// minLeaseTime is the least that a client can ask for.
const minLeaseTime = time.Minute

// offerTime is how long an address is kept for a client that was offered it.
const offerTime = time.Minute

// declineTime is how long an address is not given out that a client has found in
// use by somebody else.
const declineTime = time.Hour

// maxMessage is the size of the largest message that is looked at. No client sends
// one that does not fit a frame of Ethernet, and the names in larger ones could
// unfold, by compression, to many times their size.
const maxMessage = 1500

// Config is what a Server tells its clients.
type Config struct {
	// IPv4 and IPv6 are the networks. The zero value is a family that is off.
	IPv4, IPv6 Network

	// MTU of the interface, in bytes.
	MTU int

	// Search returns the search domains of now. Nil has none.
	Search func() []string

	// Server is the Ethernet address that the server is known by in DHCPv6.
	Server [6]byte

	// Child is the Ethernet address of the child's interface. Who has it, such as
	// a bridge that the interface was put into, gets the child's own addresses.
	Child [6]byte

	// Full is called, and must not wait, for each client that no address was left
	// for. Nil is nobody to tell.
	Full func()

	// Now is the clock. Nil is time.Now.
	Now func() time.Time
}

// Network is the network of one family.
type Network struct {
	Prefix       netip.Prefix
	Gateway, DNS netip.Addr

	// Child is the child's own address. The addresses after it are for all other
	// clients.
	Child netip.Addr
}

// Server holds the leases. It is safe for concurrent use.
type Server struct {
	config Config
	now    func() time.Time

	mu     sync.Mutex // guards the pools
	v4, v6 pool
}

// New returns a server without leases.
func New(c Config) *Server {
	s := &Server{config: c, now: c.Now}
	if s.now == nil {
		s.now = time.Now
	}
	if s.config.Search == nil {
		s.config.Search = func() []string { return nil }
	}
	if s.config.Full == nil {
		s.config.Full = func() {}
	}
	s.v4.init(c.IPv4)
	s.v6.init(c.IPv6)
	return s
}

// Leases returns how many addresses are spoken for: offered, leased, or declined. It
// is at most 1024 for each family.
func (s *Server) Leases() (ipv4, ipv6 int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.v4.slots), len(s.v6.slots)
}
