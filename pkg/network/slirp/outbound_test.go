package slirp

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestOutboundIsChecked(t *testing.T) {
	for name, test := range map[string]struct {
		addrs  []string
		ifname string
		usage  bool
		want   string // a part of the error of Check
	}{
		"nothing":                  {},
		"two of a family":          {addrs: []string{"192.0.2.1", "192.0.2.2"}, usage: true},
		"the loopback":             {addrs: []string{"127.0.0.1"}, usage: true},
		"the unspecified address":  {addrs: []string{"::"}, usage: true},
		"another host's":           {addrs: []string{"192.0.2.99"}, want: "192.0.2.99: it is not an address of this host"},
		"another host's, of IPv6":  {addrs: []string{"2001:db8:ffff::99"}, want: "2001:db8:ffff::99: it is not an address of this host"},
		"an interface that is not": {ifname: "nosuch0", want: "nosuch0: there is no such interface"},
		"no interface's name":      {ifname: "a/b", usage: true},
	} {
		t.Run(name, func(t *testing.T) {
			var addrs []netip.Addr
			for _, a := range test.addrs {
				addrs = append(addrs, netip.MustParseAddr(a))
			}
			o, err := newOutbound(addrs, test.ifname)
			if errors.Is(err, ErrUsage) != test.usage {
				t.Fatalf("error %v", err)
			}
			if test.usage {
				return
			}
			if err := o.check(); (err != nil) != (test.want != "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// What stays on the host's loopback has no source, whatever that is.
func TestOutboundIsNotForTheLoopback(t *testing.T) {
	server, udpServer := listen(t, "127.0.0.1:0", echoTCP), listenUDP(t, "127.0.0.1:0", echoUDP)
	o := all
	o.OutboundAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.99")} // not ours
	r := newRig(t, rigOptions{Options: o})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, conn := range []net.Conn{c, r.dialUDP(r.gateway(udpServer))} {
		conn.SetDeadline(time.Now().Add(patience))
		conn.Write([]byte("x"))
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
}
