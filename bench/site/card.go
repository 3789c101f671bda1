package site

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// The card: a second link between the host and the outside, that a gate takes for
// itself.
const CardName = "eth1"

// Addresses of the card, and of the outside by it.
var (
	CardAddr        = netip.AddrFrom4([4]byte{203, 0, 113, 1})
	OutsideCardAddr = netip.AddrFrom4([4]byte{203, 0, 113, 2})
)

// AddCard makes the card, and the plain network namespace that it can be moved to,
// unless both are there.
func (s *Site) AddCard() (err error) {
	if s.plain != nil {
		return nil
	}
	plain, err := newThread()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			plain.close()
			return
		}
		s.plain = plain
	}()
	outside, err := networkOf(s.outside)
	if err != nil {
		return err
	}
	defer outside.Close()
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: CardName},
		PeerName:      CardName,
		PeerNamespace: netlink.NsFd(int(outside.Fd())),
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	return errors.Join(addCardAddr(CardAddr), s.outside.do(func() error { return addCardAddr(OutsideCardAddr) }))
}

// CardToPlain moves the card from the host to the plain namespace.
func (s *Site) CardToPlain() error {
	plain, err := networkOf(s.plain)
	if err != nil {
		return err
	}
	defer plain.Close()
	if err := moveCard(plain); err != nil {
		return err
	}
	return s.plain.do(func() error { return errors.Join(up("lo"), addCardAddr(CardAddr)) })
}

// CardToHost moves it back.
func (s *Site) CardToHost() error {
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer host.Close()
	if err := s.plain.do(func() error { return moveCard(host) }); err != nil {
		return err
	}
	return addCardAddr(CardAddr)
}

// networkOf opens the network namespace of a thread.
func networkOf(t *thread) (ns *os.File, err error) {
	err = t.do(func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

// moveCard moves the card from the namespace of the calling thread.
func moveCard(to *os.File) error {
	link, err := netlink.LinkByName(CardName)
	if err == nil {
		err = netlink.LinkSetNsFd(link, int(to.Fd()))
	}
	if err != nil {
		return fmt.Errorf("move %s: %w", CardName, err)
	}
	return nil
}

func addCardAddr(addr netip.Addr) error {
	link, err := netlink.LinkByName(CardName)
	if err != nil {
		return err
	}
	own, err := netlink.ParseAddr(netip.PrefixFrom(addr, 24).String())
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, own); err != nil {
		return fmt.Errorf("add %v to %s: %w", addr, CardName, err)
	}
	return up(CardName)
}
