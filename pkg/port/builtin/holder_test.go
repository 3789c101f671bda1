package builtin

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
)

func TestWhoIsInTheWay(t *testing.T) {
	for _, tt := range []struct {
		name, spec, local string
		v6Only, want      bool
	}{
		{"the same address", "127.0.0.1:80:80/tcp", "127.0.0.1:80", false, true},
		{"another address", "127.0.0.1:80:80/tcp", "127.0.0.2:80", false, false},
		{"one of all addresses", "80:80/tcp4", "127.0.0.2:80", false, true},
		{"all addresses", "127.0.0.1:80:80/tcp", "0.0.0.0:80", false, true},
		{"all of the other family", "127.0.0.1:80:80/tcp", "[::]:80", true, false},
		{"all of both families", "127.0.0.1:80:80/tcp", "[::]:80", false, true},
		{"an address of the other family", "80:80/tcp4", "[::1]:80", false, false},
		{"an address of either family", "80:80/tcp", "[::1]:80", true, true},
		{"IPv4 alone does not hold IPv6", "80:80/tcp6", "0.0.0.0:80", false, false},
		{"an address with an interface", "[fe80::1%lo]:80:80/tcp", "[fe80::1]:80", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := linux.InetSocket{Local: netip.MustParseAddrPort(tt.local), V6Only: tt.v6Only}
			if got := inTheWay(s, specs(t, tt.spec)[0].Listens()); got != tt.want {
				t.Errorf("%s and %s: %v", tt.spec, tt.local, got)
			}
		})
	}
}

func TestAHolderThatCannotBeFoundIsLeftOut(t *testing.T) {
	if pid := processOf(0, time.Now().Add(time.Minute)); pid != 0 {
		t.Errorf("process %d has a socket that no process has", pid)
	}
	if name := nameOf(1 << 30); name != "" {
		t.Errorf("a process that is not there is called %q", name)
	}
	if name := nameOf(os.Getpid()); len(name) < 3 {
		t.Errorf("this process is called %q", name)
	}
}
