package test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
)

// idle ADDR HOW connects, says so, and leaves the connection idle until its stdin
// ends. HOW says whether it is probed every second.
var _ = testenv.Probe("idle", func(args []string) int {
	d := net.Dialer{Timeout: testenv.Patience, KeepAlive: -1}
	if args[1] == "probed" {
		d.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 9}
	}
	conn, err := d.Dial("tcp", args[0])
	if err != nil {
		return report(err)
	}
	defer conn.Close()
	fmt.Println("open")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return report(nil)
})

// arrived counts the segments that a socket has received, and those with data
// among them.
func arrived(t *testing.T, conn *net.TCPConn) (all, data uint32) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil || infoErr != nil {
		t.Fatal(err, infoErr)
	}
	return info.Segs_in, info.Data_segs_in
}

// What keeps a connection alive in the eyes of a NAT on the way is the probes that
// arrive at the other end.
func TestKeepaliveProbesArriveOutside(t *testing.T) {
	const enough = 3 // the first, and those at its pace
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	accepted := make(chan *net.TCPConn)
	began := map[*net.TCPConn]uint32{}
	var probed, silent []*net.TCPConn
	var clients []*testenv.Process
	var keys []io.Closer
	for _, addr := range []netip.Addr{s.outside.Addr4, s.outside.Addr6} {
		server := serveTCP(t, s.outside, at(addr, 0), func(conn *net.TCPConn) {
			_ = conn.SetKeepAlive(false) // the answers would count
			accepted <- conn
			_, _ = conn.Read(make([]byte, 1))
		})
		for how, list := range map[string]*[]*net.TCPConn{"probed": &probed, "silent": &silent} {
			cmd := g.in("probe", "idle", server.String(), how)
			stdin, w := io.Pipe()
			cmd.Stdin = stdin
			p := s.Start(t, cmd)
			awaitLine(t, p, "open\n")
			conn := receive(t, accepted, "the connection")
			began[conn], _ = arrived(t, conn)
			*list = append(*list, conn)
			clients, keys = append(clients, p), append(keys, w)
		}
	}
	for _, conn := range probed {
		testenv.Until(t, "probes", func() bool { all, _ := arrived(t, conn); return all >= began[conn]+enough })
		if _, data := arrived(t, conn); data > 0 {
			t.Errorf("%d segments with data came on a connection without", data)
		}
	}
	for _, conn := range silent {
		if all, _ := arrived(t, conn); all != began[conn] {
			t.Errorf("%d segments came on a connection that is not probed", all-began[conn])
		}
	}
	for i, p := range clients {
		keys[i].Close()
		if r := p.Wait(t); r.Code != 0 {
			t.Error(r)
		}
	}
	g.stop(t)
}
