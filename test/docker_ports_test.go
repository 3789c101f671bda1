package test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/api"
)

// both protocols of a container's port 80.
var published = []string{"-p", "8080:80/tcp", "-p", "8080:80/udp"}

// witness runs a service in a container that tells its clients who they are.
func (d *docker) witness(t *testing.T, name string, args ...string) {
	t.Helper()
	run := append([]string{"run", "-d", "--name=" + name}, args...)
	d.docker(t, append(run, "base", "probe", "witness", "tcp,0.0.0.0,80", "udp,0.0.0.0,80", "tcp,::,80", "udp,::,80")...)
	d.serving(t, name, 1)
}

// serving waits until the service in a container, which has been started so many
// times by now, listens.
func (d *docker) serving(t *testing.T, name string, starts int) {
	t.Helper()
	testenv.Until(t, "the service in "+name, func() bool { return strings.Count(d.docker(t, "logs", name), "serving") >= starts })
}

func (d *docker) remove(t *testing.T, names ...string) {
	t.Helper()
	d.docker(t, append([]string{"rm", "-f"}, names...)...)
}

// A container behind dockerd's defaults: the bridge has IPv4 alone, and Docker's
// proxy is there.
func (d *docker) seesItsClients(t *testing.T) {
	d.witness(t, "web", published...)
	defer d.remove(t, "web")
	for _, network := range []string{"tcp", "udp"} {
		for range 2 {
			expectOwn(t, network, d.outside, at(d.outside.HostAddr4, 8080))
		}
		// No address of IPv6 fits into a packet of IPv4: Docker's proxy asks for
		// these clients, and for those on the host itself.
		for _, from := range []struct {
			machine
			addr netip.Addr
		}{{d.outside, d.outside.HostAddr6}, {d.Host, netip.IPv6Loopback()}, {d.Host, netip.MustParseAddr("127.0.0.1")}} {
			if saw, _ := seen(t, network, from.machine, at(from.addr, 8080)); saw.Addr().String() != "172.17.0.1" {
				t.Errorf("by %s to %v the service sees %v, want Docker's bridge", network, from.addr, saw)
			}
		}
	}
}

// Bytes arrive whole, in both directions, whoever opens the connection.
func (d *docker) carriesAll(t *testing.T) {
	d.docker(t, "run", "-d", "--name=tcp", "-p", "8080:80/tcp", "base", "probe", "service", "tcp", "0.0.0.0:80")
	d.docker(t, "run", "-d", "--name=udp", "-p", "8080:80/udp", "base", "probe", "service", "udp", "0.0.0.0:80")
	defer d.remove(t, "tcp", "udp")
	d.serving(t, "tcp", 1)
	d.serving(t, "udp", 1)
	for _, client := range []struct {
		machine
		addr netip.Addr
	}{{d.outside, d.outside.HostAddr4}, {d.outside, d.outside.HostAddr6}, {d.Host, netip.MustParseAddr("127.0.0.1")}} {
		to := at(client.addr, 8080)
		if err := tryTCP(t, client.machine, to, large); err != nil {
			t.Errorf("TCP to %v: %v", client.addr, err)
		}
		conn := dialUDP(t, client.machine, to)
		defer conn.Close()
		if err := echoConnected(conn, pattern(20000)); err != nil {
			t.Errorf("UDP to %v: %v", client.addr, err)
		}
	}
	// Docker's proxy, where it has a part, loses empty datagrams.
	if err := tryUDP(t, d.outside, at(d.outside.HostAddr4, 8080)); err != nil {
		t.Errorf("UDP past Docker's proxy: %v", err)
	}
	tcp := serveTCP(t, d.outside, "0.0.0.0:0", echoTCP)
	udp := addrOf(serveUDP(t, d.outside, "0.0.0.0:0", echoUDP))
	for _, probe := range [][]string{
		{"exchange", at(d.outside.Addr4, int(tcp.Port())), fmt.Sprint(large)},
		{"echo", at(d.outside.Addr4, int(udp.Port()))},
	} {
		if got := d.docker(t, append([]string{"run", "--rm", "base", "probe"}, probe...)...); got != "ok" {
			t.Errorf("from a container, probe %q prints %q", probe, got)
		}
	}
}

// A bridge with both families, with Docker's proxy and without: a container sees
// all clients but those on the host itself.
func TestContainersSeeTheirClientsByBothFamilies(t *testing.T) {
	withDocker(t, func(t *testing.T, d *docker) {
		flags := []string{"--ipv6", "--fixed-cidr-v6=fd00:d0c::/64", "--ip6tables"}
		if d.release.old {
			flags = append(flags, "--experimental") // ip6tables
		}
		for i, proxy := range []string{"--userland-proxy=true", "--userland-proxy=false"} {
			d.start(t, "--ipv6", append(flags, proxy)...)
			if i == 0 {
				d.importImage(t)
			}
			d.witness(t, "web", published...)
			if proxy == "--userland-proxy=false" && d.release.old {
				// Without the proxy this Docker asks for no forwards.
				d.ctl(t, "add-ports", "8080:8080/tcp", "8080:8080/udp")
			}
			for _, network := range []string{"tcp", "udp"} {
				for _, host := range []netip.Addr{d.outside.HostAddr4, d.outside.HostAddr6} {
					expectOwn(t, network, d.outside, at(host, 8080))
				}
				for addr, bridge := range map[string]string{"127.0.0.1": "172.17.0.1", "::1": "fd00:d0c::1"} {
					if addr == "::1" && proxy == "--userland-proxy=false" {
						continue // the kernel passes packets from ::1 on to no bridge
					}
					if saw, _ := seen(t, network, d.Host, at(netip.MustParseAddr(addr), 8080)); saw.Addr().String() != bridge {
						t.Errorf("with %s, by %s to %s the service sees %v, want Docker's bridge", proxy, network, addr, saw)
					}
				}
			}
			d.remove(t, "web")
			d.Signal(signalTerm)
			d.Wait(t)
		}
	})
}

// Docker tells of a conflict in its own words, and a port that is free again can be had.
func (d *docker) tellsOfConflicts(t *testing.T) {
	d.witness(t, "first", published...)
	r := d.Run(t, d.client(append(append([]string{"run", "--name=second"}, published...), "base", "sleep", "60")...))
	if missing := lacks(r.Stderr, "Bind for ", ":8080 failed: port is already allocated"); r.Code != 125 || missing != nil {
		t.Errorf("a port of another container: %v\nwant exit code 125; lacks %q", r, missing)
	}
	d.remove(t, "second")
	taken := serveTCP(t, d.Host, "0.0.0.0:0", func(*net.TCPConn) {})
	r = d.Run(t, d.client("run", "--name=second", "-p", fmt.Sprintf("%d:80", taken.Port()), "base", "sleep", "60"))
	if missing := lacks(r.Stderr, fmt.Sprintf(":%d: bind: address already in use", taken.Port())); r.Code != 125 || missing != nil {
		t.Errorf("a port of the host: %v\nwant exit code 125; lacks %q", r, missing)
	}
	d.remove(t, "first", "second")
	serveTCP(t, d.Host, "[::]:8080", func(*net.TCPConn) {}) // both families
	listenUDP(t, d.Host, "[::]:8080").Close()
	if list := d.ctl(t, "list-ports", "--json"); list != "[]" {
		t.Errorf("the forwards of containers that are gone: %s", list)
	}
}

// ctl runs gatectl, for the one gate of the Host's user.
func (d *docker) ctl(t *testing.T, args ...string) string {
	t.Helper()
	r := d.Run(t, d.Command("gatectl", args...))
	if r.Code != 0 {
		t.Fatalf("gatectl %s: %v", strings.Join(args, " "), r)
	}
	return strings.TrimSpace(r.Stdout)
}

// info is what the gate says of itself.
func (d *docker) info(t *testing.T) (info api.Info) {
	t.Helper()
	if err := json.Unmarshal([]byte(d.ctl(t, "info", "--json")), &info); err != nil {
		t.Fatal(err)
	}
	return info
}

// connections counts the connections from inside to the gate's API.
func (d *docker) connections(t *testing.T) (n int) {
	t.Helper()
	// The kernel lists an accepted socket with its client's network namespace.
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/unix", d.info(t).ChildPID))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(table), "/api.sock\n")
}
