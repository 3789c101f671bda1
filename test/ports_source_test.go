package test

import (
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

// witness is a service in Python that tells each client the address and port that
// it sees.
const witness = `
import socket, sys, threading
def tcp(s):
    s.listen()
    while True:
        c, peer = s.accept()
        c.sendall(("%s %d" % peer[:2]).encode())
        c.close()
def udp(s):
    while True:
        data, peer = s.recvfrom(65535)
        s.sendto(("%s %d" % peer[:2]).encode(), peer)
for at in sys.argv[1:]:
    network, addr, port = at.split(",")
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if network == "tcp" else socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((addr, int(port)))
    threading.Thread(target=tcp if network == "tcp" else udp, args=[s]).start()
print("serving", flush=True)
`

// witness runs the service inside, at addresses written as tcp,0.0.0.0,80.
func (g *gate) witness(t *testing.T, at ...string) {
	t.Helper()
	p := g.host.Start(t, g.in(append([]string{"/usr/bin/python3", "-c", witness}, at...)...))
	awaitLine(t, p, "(serving)")
}

// seen asks a witness, by tcp or udp, whom it sees, and returns that and the
// client's own address.
func seen(t *testing.T, network string, from machine, addr string) (saw, own netip.AddrPort) {
	t.Helper()
	var answer []byte
	if network == "tcp" {
		conn, err := dialTCP(t, from, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if answer, err = io.ReadAll(conn); err != nil {
			t.Fatal(err)
		}
		own = netip.MustParseAddrPort(conn.LocalAddr().String())
	} else {
		conn := dialUDP(t, from, addr)
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("who am I?")); err != nil {
			t.Fatal(err)
		}
		answer = make([]byte, 100)
		n, err := conn.Read(answer)
		if err != nil {
			t.Fatal(err)
		}
		answer, own = answer[:n], addrOf(conn)
	}
	var ip string
	var port uint16
	if _, err := fmt.Sscan(string(answer), &ip, &port); err != nil {
		t.Fatalf("the service answers %q: %v", answer, err)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(ip), port), own
}

// expectOwn expects the service behind a forward to see the client as it is.
func expectOwn(t *testing.T, network string, from machine, addr string) {
	t.Helper()
	if saw, own := seen(t, network, from, addr); saw != own {
		t.Errorf("the service sees %v, want the client's own address, %v", saw, own)
	}
}

func TestServicesSeeTheAddressOfTheirClient(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "--source-ip=preserve", "sleep", "60")
	for i, c := range []struct{ service, child string }{
		{"0.0.0.0", ""},
		{"0.0.0.0", "127.0.0.1:"},
		{"0.0.0.0", "10.0.2.100:"},
		{"127.0.0.1", ""},
		{"127.0.0.1", "127.0.0.1:"},
		{"10.0.2.100", "10.0.2.100:"},
		{"::", ""},
		{"::", "[::1]:"},
		{"::", "[fd67:6174:656b::100]:"},
		{"::1", ""},
		{"::1", "[::1]:"},
		{"fd67:6174:656b::100", "[fd67:6174:656b::100]:"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			t.Run(fmt.Sprintf("%s to a service on %s by %q", network, c.service, c.child), func(t *testing.T) {
				g.witness(t, fmt.Sprintf("%s,%s,%d", network, c.service, 7000+i))
				g.add(t, fmt.Sprintf("%d:%s%d/%s", 8000+i, c.child, 7000+i, network))
				host := s.outside.HostAddr4
				if netip.MustParseAddr(c.service).Is6() {
					host = s.outside.HostAddr6
				}
				expectOwn(t, network, s.outside, at(host, 8000+i))
			})
		}
	}
}
