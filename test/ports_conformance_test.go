package test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// RootlessKit's own rootlesskit-docker-proxy, unchanged, drives the API as Docker
// 20.10 has it do: it stands for docker-proxy in the namespace, publishes on the
// host, and starts docker-proxy with the address that the host forwards to. It
// tells its outcome on descriptor 3, which is stdout here.

// dockerProxyScript stands for the real docker-proxy.
const dockerProxyScript = `#!/bin/sh
while [ $# -gt 0 ]; do
	case $1 in
	-proto) proto=$2 ;;
	-host-ip) ip=$2 ;;
	-host-port) port=$2 ;;
	esac
	shift 2
done
case $ip in *:*) ip="[$ip]" ;; esac
echo 0 >&3
exec probe service "$proto" "$ip:$port"
`

// dockerProxy starts it as dockerd does.
func (g *gate) dockerProxy(t *testing.T, proto, hostIP string, hostPort int) *testenv.Process {
	t.Helper()
	script := fmt.Sprintf("PATH=/srv:$PATH exec env ROOTLESSKIT_STATE_DIR=%s rootlesskit-docker-proxy"+
		" -proto %s -host-ip %s -host-port %d -container-ip 172.17.0.2 -container-port 80 3>&1", g.stateDir, proto, hostIP, hostPort)
	return g.host.Start(t, g.in("sh", "-c", script))
}

func TestDockersProxySteersAGate(t *testing.T) {
	s := newSite(t)
	s.WriteFile(t, "/srv/docker-proxy", dockerProxyScript, 0o755)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	for _, proto := range []string{"tcp", "udp"} {
		t.Run(proto, func(t *testing.T) {
			// One proxy for each family, and the same port.
			proxies := map[string]*testenv.Process{}
			for hostIP, client := range map[string]string{"0.0.0.0": "127.0.0.1", "::": "::1"} {
				p := g.dockerProxy(t, proto, hostIP, 8080)
				awaitLine(t, p, `serving .*\n`)
				proxies[client] = p
			}
			for client, p := range proxies {
				if !strings.HasPrefix(p.Stdout(), "0\n") {
					t.Errorf("dockerd is told %q", p.Stdout())
				}
				if err := reach(t, proto, s.Host, net.JoinHostPort(client, "8080")); err != nil {
					t.Errorf("from %s: %v", client, err)
				}
			}
			if specs := specsOf(t, g); len(specs) != 2 {
				t.Errorf("the forwards are %v", specs)
			}
			p := g.dockerProxy(t, proto, "127.0.0.1", 8080)
			p.Wait(t)
			if missing := lacks(p.Stdout(), "1\n", "bind: address already in use"); missing != nil {
				t.Errorf("of a conflict dockerd is told %q, which lacks %q", p.Stdout(), missing)
			}
			for _, p := range proxies {
				p.Signal(os.Interrupt) // as dockerd does
				p.Wait(t)
			}
			if specs := specsOf(t, g); len(specs) != 0 {
				t.Errorf("after the end there are %v", specs)
			}
		})
	}
}
