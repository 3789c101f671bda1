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
	if err := addPair(CardName, s.outside); err != nil {
		return err
	}
	return errors.Join(addAddr(CardName, CardAddr), s.outside.do(func() error { return addAddr(CardName, OutsideCardAddr) }))
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
	return s.plain.do(func() error { return errors.Join(up("lo"), addAddr(CardName, CardAddr)) })
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
	return addAddr(CardName, CardAddr)
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
