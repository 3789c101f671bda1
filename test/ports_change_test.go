package test

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/pkg/api"
)

// listening says whether a machine lets a program listen on an address, for TCP
// and for UDP.
func listening(t *testing.T, m machine, addr string) error {
	t.Helper()
	var err error
	m.Do(t, func() error {
		var tcp, udp interface{ Close() error }
		var udpErr error
		tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		if err == nil {
			tcp.Close()
		}
		udp, udpErr = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		if udpErr == nil {
			udp.Close()
		}
		err = errors.Join(err, udpErr)
		return nil
	})
	return err
}

func TestRemovingAForwardFreesItsPortAtOnce(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	g.serve(t, "tcp", "127.0.0.1:80")
	g.serve(t, "udp", "127.0.0.1:80")
	c := g.client(t)
	for _, conversation := range []bool{false, true} {
		for range 5 {
			added := g.add(t, "127.0.0.1:8080:80/tcp", "127.0.0.1:8080:80/udp")
			if conversation {
				conn, err := dialTCP(t, s.Host, "127.0.0.1:8080")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if err := tryUDP(t, s.Host, "127.0.0.1:8080"); err != nil {
					t.Error(err)
				}
			}
			for _, status := range added {
				if err := c.RemovePort(t.Context(), status.ID); err != nil {
					t.Fatal(err)
				}
			}
			if err := listening(t, s.Host, "127.0.0.1:8080"); err != nil {
				t.Errorf("in conversation %v: %v", conversation, err)
			}
		}
	}
	if list, err := c.ListPorts(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("the list is %v, %v", list, err)
	}
}

func TestATakenAddressIsAConflict(t *testing.T) {
	s := newSite(t)
	serveTCP(t, s.Host, "127.0.0.1:8080", echoTCP)
	serveUDP(t, s.Host, "127.0.0.1:8080", echoUDP)
	serveTCP(t, s.Host, "[::1]:8081", echoTCP)
	g := startGate(t, s.Host, "--net=slirp", "-p", "127.0.0.1:9090:80/tcp", "sleep", "infinity")
	for name, specs := range map[string][]string{
		"by another program":                      {"127.0.0.1:8080:80/tcp"},
		"by another program, UDP":                 {"127.0.0.1:8080:80/udp"},
		"in part":                                 {"8080:80/tcp"},
		"in one of two families":                  {"8081:80/tcp"},
		"by a forward":                            {"127.0.0.1:9090:80/tcp"},
		"by a forward, in part":                   {"9090:81/tcp"},
		"the last of several":                     {"127.0.0.1:8082:80/tcp", "127.0.0.1:8083:80/udp", "127.0.0.1:8080:80/tcp"},
		"by another of the same request":          {"127.0.0.1:8082:80/tcp", "127.0.0.1:8082:81/tcp"},
		"by another of the same request, in part": {"127.0.0.1:8082:80/tcp", "8082:81/tcp4"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := g.tryAdd(t, specs...)
			if !errors.Is(err, api.ErrConflict) || !strings.Contains(err.Error(), "bind: address already in use") {
				t.Errorf("%v, want a conflict", err)
			}
			// All are added or none.
			for _, addr := range []string{"127.0.0.1:8082", "127.0.0.1:8083", "0.0.0.0:8083"} {
				if err := listening(t, s.Host, addr); err != nil {
					t.Errorf("something is left of it: %v", err)
				}
			}
		})
	}
	list, err := g.client(t).ListPorts(t.Context())
	if err != nil || len(list) != 1 {
		t.Errorf("the list is %v, %v, want the forward of the start alone", list, err)
	}
	// Another port, family or protocol is none.
	g.add(t, "127.0.0.2:8080:80/tcp", "127.0.0.1:8081:80/tcp", "[::1]:9090:80/tcp", "127.0.0.1:9090:80/udp")
}

func TestPortZeroIsFilledIn(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "-p", "127.0.0.1:0:80/tcp", "sleep", "infinity")
	g.serve(t, "tcp", "127.0.0.1:80", "[::1]:80")
	g.serve(t, "udp", "127.0.0.1:80")
	added := g.add(t, "0:80/tcp", "0:80/udp", "[::1]:0:80/tcp6")
	list, err := g.client(t).ListPorts(t.Context())
	if err != nil || len(list) != 4 || !slices.Equal(list[1:], added) {
		t.Fatalf("the list is %v, %v\nwhat was added is %v", list, err, added)
	}
	for _, status := range list {
		spec := status.Spec
		addr := cmp.Or(spec.ParentIP, "127.0.0.1")
		if err := reach(t, spec.Proto[:3], s.Host, at(netip.MustParseAddr(addr), spec.ParentPort)); err != nil {
			t.Errorf("%+v: %v", spec, err)
		}
	}
}

func TestASpecComesBackAsItWasSent(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	c := g.client(t)
	var want []api.PortStatus
	for i, spec := range []api.PortSpec{
		{Proto: "tcp", ParentPort: 8001, ChildPort: 80},
		{Proto: "udp", ParentPort: 8002, ChildPort: 80},
		{Proto: "tcp4", ParentIP: "0.0.0.0", ParentPort: 8003, ChildIP: "127.0.0.1", ChildPort: 80},
		{Proto: "tcp6", ParentIP: "::", ParentPort: 8004, ChildIP: "::1", ChildPort: 80},
		{Proto: "udp6", ParentIP: "0:0:0:0:0:0:0:1", ParentPort: 8005, ChildIP: "10.0.2.100", ChildPort: 65535},
		{Proto: "udp4", ParentIP: "127.0.0.1", ParentPort: 8006, ChildIP: "fd67:6174:656b:0::100", ChildPort: 1},
	} {
		status, err := c.AddPort(t.Context(), spec)
		if err != nil {
			t.Fatalf("%+v: %v", spec, err)
		}
		if status.Spec != spec || status.ID != i+1 {
			t.Errorf("%+v comes back as %+v", spec, status)
		}
		want = append(want, status)
	}
	list, err := c.ListPorts(t.Context())
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("the list is %+v, %v\nwant %+v", list, err, want)
	}
	// Ids are not used again.
	if err := c.RemovePort(t.Context(), 6); err != nil {
		t.Fatal(err)
	}
	if added := g.add(t, "127.0.0.1:8006:80/udp"); added[0].ID != 7 {
		t.Errorf("the next id is %d", added[0].ID)
	}
}

func TestSpecsThatCannotWorkAreRefused(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	good := api.PortSpec{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 8001, ChildPort: 80}
	for name, change := range map[string]func(*api.PortSpec){
		"no protocol":             func(s *api.PortSpec) { s.Proto = "" },
		"an unknown protocol":     func(s *api.PortSpec) { s.Proto = "sctp" },
		"a name for an address":   func(s *api.PortSpec) { s.ParentIP = "localhost" },
		"a child's name":          func(s *api.PortSpec) { s.ChildIP = "localhost" },
		"another family":          func(s *api.PortSpec) { s.Proto, s.ParentIP = "tcp6", "127.0.0.1" },
		"a negative port":         func(s *api.PortSpec) { s.ParentPort = -1 },
		"a port that is too high": func(s *api.PortSpec) { s.ParentPort = 65536 },
		"no child's port":         func(s *api.PortSpec) { s.ChildPort = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			bad := good
			change(&bad)
			if _, err := g.client(t).AddPorts(t.Context(), []api.PortSpec{good, bad}); !errors.Is(err, api.ErrBadRequest) {
				t.Errorf("%v, want a bad request", err)
			}
		})
	}
	if _, err := g.tryAdd(t, "192.0.2.1:8001:80/tcp"); err == nil || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("an address that the host does not have: %v", err)
	}
	if err := g.client(t).RemovePort(t.Context(), 1); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("an unknown id: %v", err)
	}
	g.add(t, "127.0.0.1:8001:80/tcp") // nothing is left of the others
}

func TestAPrivilegedPortIsExplained(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for _, spec := range []string{"80:80/tcp", "127.0.0.1:53:53/udp"} {
		_, err := g.tryAdd(t, spec)
		if err == nil {
			t.Fatalf("%s is in place", spec)
		}
		if missing := lacks(err.Error(), "permission denied", "net.ipv4.ip_unprivileged_port_start=", "cap_net_bind_service=ep /"); missing != nil {
			t.Errorf("%s: %v\nlacks %q", spec, err, missing)
		}
	}
}
