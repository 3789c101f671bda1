package persona

import (
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/pkg/api"
)

func TestTheNameChoosesThePersona(t *testing.T) {
	for argv0, want := range map[string]Persona{
		"gatekit":                     Gatekit,
		"/usr/local/bin/gatectl":      Gatekit,
		"./my-rootlesskit":            Gatekit,
		"rootlesskit.old":             Gatekit,
		"":                            Gatekit,
		"rootlesskit":                 RootlessKit,
		"/usr/bin/rootlesskit":        RootlessKit,
		"/opt/bin/docker-rootlesskit": RootlessKit,
		"rootlessctl":                 RootlessKit,
	} {
		if got := Of(argv0); got != want {
			t.Errorf("%q is %s, want %s", argv0, got.Gate, want.Gate)
		}
	}
}

// A row for each difference.
func TestWhatDiffers(t *testing.T) {
	for name, tc := range map[string]struct {
		of                   func(Persona) any
		gatekit, rootlesskit any
	}{
		"name of the gate":            {func(p Persona) any { return p.Gate }, "gatekit", "rootlesskit"},
		"name of its control":         {func(p Persona) any { return p.Control }, "gatectl", "rootlessctl"},
		"IPv6":                        {func(p Persona) any { return p.IPv6 }, true, false},
		"the host's loopback":         {func(p Persona) any { return p.HostLoopback }, "none", "all"},
		"port driver":                 {func(p Persona) any { return p.PortDriver }, "", "none"},
		"exit code for SIGKILL":       {func(p Persona) any { return p.SignalCode(syscall.SIGKILL) }, 137, 255},
		"exit code for SIGTERM":       {func(p Persona) any { return p.SignalCode(syscall.SIGTERM) }, 143, 255},
		"a list with commas":          {func(p Persona) any { return strings.Join(p.List([]string{"/etc,/run", "/opt"}), " ") }, "/etc,/run /opt", "/etc /run /opt"},
		"an MTU of 0":                 {func(p Persona) any { return p.MTU(0, "slirp4netns") }, 0, 65520},
		"an MTU of 0 for pasta":       {func(p Persona) any { return p.MTU(0, "pasta") }, 0, 65520},
		"an MTU of 0 for VPNKit":      {func(p Persona) any { return p.MTU(0, "vpnkit") }, 0, 1500},
		"an MTU of 0 for what is new": {func(p Persona) any { return p.MTU(0, "slirp") }, 0, 1500},
		"an MTU that was asked for":   {func(p Persona) any { return p.MTU(1400, "slirp4netns") }, 1400, 1400},
		"a network without a name":    {func(p Persona) any { driver, _ := p.Network(""); return driver }, "", "slirp"},
		"tables":                      {func(p Persona) any { return p.Plain }, false, true},
	} {
		if got := tc.of(Gatekit); got != tc.gatekit {
			t.Errorf("%s of gatekit: %v, want %v", name, got, tc.gatekit)
		}
		if got := tc.of(RootlessKit); got != tc.rootlesskit {
			t.Errorf("%s of rootlesskit: %v, want %v", name, got, tc.rootlesskit)
		}
	}
}

func TestHelpersAreBuiltIn(t *testing.T) {
	type answer struct {
		driver string
		helper bool
	}
	for value, want := range map[string]answer{
		"slirp4netns":      {"slirp", true},
		"pasta":            {"slirp", true},
		"vpnkit":           {"slirp", true},
		"gvisor-tap-vsock": {"slirp", true},
		"slirp":            {"slirp", false},
		"host":             {"host", false},
		"none":             {"none", false},
		"lxc-user-nic":     {"hostnic", false}, // LXC's program is run
	} {
		for _, p := range []Persona{Gatekit, RootlessKit} {
			if driver, helper := p.Network(value); (answer{driver, helper}) != want {
				t.Errorf("%s --net=%s: %s, %v, want %v", p.Gate, value, driver, helper, want)
			}
		}
	}
	for value, want := range map[string]answer{
		"slirp4netns":      {"builtin", true},
		"implicit":         {"builtin", true},
		"pesto":            {"builtin", true},
		"gvisor-tap-vsock": {"builtin", true},
		"gvisortapvsock":   {"builtin", true},
		"builtin":          {"builtin", false},
		"none":             {"none", false},
		"":                 {"", false},
	} {
		if driver, helper := PortDriver(value); (answer{driver, helper}) != want {
			t.Errorf("--port-driver=%s: %s, %v, want %v", value, driver, helper, want)
		}
	}
	var names []string
	for _, f := range HelperFlags {
		names = append(names, f.Name)
	}
	if want := []string{"slirp4netns-binary", "slirp4netns-sandbox", "slirp4netns-seccomp", "pasta-binary", "pesto-binary", "vpnkit-binary", "source-ip-transparent-backend"}; !slices.Equal(names, want) {
		t.Errorf("flags about helpers: %q, want %q", names, want)
	}
}

// The texts are those that rootlessctl 1.1.0 printed; test/ compares with it.
func TestPrintsAsRootlessctl(t *testing.T) {
	ports := []api.PortStatus{
		{ID: 1, Spec: api.PortSpec{Proto: "tcp", ParentPort: 8080, ChildPort: 80}, SourceIP: "preserve"},
		{ID: 12, Spec: api.PortSpec{Proto: "udp6", ParentIP: "::1", ParentPort: 53, ChildIP: "fd00::1", ChildPort: 5353}},
	}
	ip := netip.MustParseAddr("10.0.2.100")
	info := api.Info{
		APIVersion: "1.1.1", Version: "1.2.3", StateDir: "/run/gate", ChildPID: 42,
		NetworkDriver: api.NetworkDriver{Driver: "slirp", DNS: []netip.Addr{netip.MustParseAddr("10.0.2.3")}, ChildIP: &ip},
		PortDriver:    api.PortDriver{Driver: "builtin", Protos: []string{"tcp", "udp"}},
	}
	without := info
	without.NetworkDriver.ChildIP = nil
	for name, tc := range map[string]struct {
		print func(*strings.Builder) error
		want  string
	}{
		"no ports": {
			func(w *strings.Builder) error { return PrintPorts(w, nil) },
			"ID    PROTO    PARENTIP    PARENTPORT    CHILDIP    CHILDPORT    \n",
		},
		"ports": {
			func(w *strings.Builder) error { return PrintPorts(w, ports) },
			"ID    PROTO    PARENTIP    PARENTPORT    CHILDIP    CHILDPORT    \n" +
				"1     tcp                  8080                     80           \n" +
				"12    udp6     ::1         53            fd00::1    5353         \n",
		},
		"ports as JSON": {
			func(w *strings.Builder) error { return PrintPortsJSON(w, ports) },
			`{"id":1,"spec":{"proto":"tcp","parentPort":8080,"childPort":80}}` + "\n" +
				`{"id":12,"spec":{"proto":"udp6","parentIP":"::1","parentPort":53,"childIP":"fd00::1","childPort":5353}}` + "\n",
		},
		"the gate": {
			func(w *strings.Builder) error { return PrintInfo(w, info) },
			"- REST API version: 1.1.1\n- Implementation version: 1.2.3\n- State Directory: /run/gate\n- Child PID: 42\n" +
				"- Network Driver: slirp\n  - DNS: [10.0.2.3]\n  - IP: 10.0.2.100\n- Port Driver: builtin\n  - Supported protocols: [tcp udp]\n",
		},
		"a gate without an address": {
			func(w *strings.Builder) error { return PrintInfo(w, without) },
			"- REST API version: 1.1.1\n- Implementation version: 1.2.3\n- State Directory: /run/gate\n- Child PID: 42\n" +
				"- Network Driver: slirp\n  - DNS: [10.0.2.3]\n- Port Driver: builtin\n  - Supported protocols: [tcp udp]\n",
		},
	} {
		var w strings.Builder
		if err := tc.print(&w); err != nil || w.String() != tc.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, w.String(), tc.want)
		}
	}
	var w strings.Builder
	if err := PrintInfoJSON(&w, info); err != nil || !strings.HasPrefix(w.String(), "{\n    \"apiVersion\": \"1.1.1\",\n") {
		t.Errorf("the gate as JSON: %v\n%s", err, w.String())
	}
}
