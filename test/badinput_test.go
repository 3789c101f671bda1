package test

import (
	"os"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// badInput is a call that must fail with one line.
type badInput struct {
	args []string

	// says are what the line must contain: what is wrong, and what mends it.
	says []string
}

// refuse runs gatekit and expects the exit code, one line that says what it
// must, and nothing left behind.
func (b badInput) refuse(t *testing.T, h *testenv.Host, code int) {
	t.Helper()
	before := trace(t, h)
	r := runGate(t, h, b.args...)
	b.check(t, r, code)
	h.NoTrace(t, before)
}

func (b badInput) check(t *testing.T, r testenv.Result, code int) {
	t.Helper()
	if r.Code != code {
		t.Errorf("gatekit %s: %v\nwant exit code %d", strings.Join(b.args, " "), r, code)
	}
	if r.Stdout != "" || strings.Count(r.Stderr, "\n") != 1 || !strings.HasSuffix(r.Stderr, "\n") {
		t.Errorf("gatekit %s: %v\nwant one line on stderr", strings.Join(b.args, " "), r)
	}
	if missing := lacks(r.Stderr, b.says...); missing != nil {
		t.Errorf("gatekit %s says %q, and nothing of %q", strings.Join(b.args, " "), r.Stderr, missing)
	}
}

func TestWrongUsageIsRefused(t *testing.T) {
	h := testenv.NewHost(t)
	h.WriteFile(t, "/srv/file", "", 0o644)
	for name, b := range map[string]badInput{
		"no command":                        {[]string{"--net=slirp"}, []string{"COMMAND"}},
		"unknown flag":                      {[]string{"--no-such-flag", "true"}, []string{"no-such-flag"}},
		"flag without its value":            {[]string{"--state-dir"}, []string{"state-dir"}},
		"bool that is none":                 {[]string{"--pidns=perhaps", "true"}, []string{"pidns", "perhaps"}},
		"unknown network driver":            {[]string{"--net=warp", "true"}, []string{"--net", "warp", "slirp"}},
		"unknown port driver":               {[]string{"--net=slirp", "--port-driver=warp", "true"}, []string{"--port-driver", "warp", "builtin"}},
		"network that is no network":        {[]string{"--net=slirp", "--cidr=ten", "true"}, []string{"--cidr", "ten"}},
		"network of the other family":       {[]string{"--net=slirp", "--cidr=fd00::/64", "true"}, []string{"--cidr", "fd00::/64", "10.0.2.0/24"}},
		"network without a length":          {[]string{"--net=slirp", "--cidr=10.0.2.0", "true"}, []string{"--cidr", "10.0.2.0"}},
		"network that is too small":         {[]string{"--net=slirp", "--cidr=10.0.2.0/26", "true"}, []string{"10.0.2.0/26", "small"}},
		"network of two addresses":          {[]string{"--net=slirp", "--cidr=10.0.2.0/31", "true"}, []string{"10.0.2.0/31", "small"}},
		"IPv6 network that is no network":   {[]string{"--net=slirp", "--cidr6=fd00::g/64", "true"}, []string{"--cidr6", "fd00::g/64"}},
		"IPv6 network that is too small":    {[]string{"--net=slirp", "--cidr6=fd00::/127", "true"}, []string{"fd00::/127", "small"}},
		"IPv6 network that is an IPv4 one":  {[]string{"--net=slirp", "--cidr6=10.0.2.0/24", "true"}, []string{"--cidr6", "10.0.2.0/24"}},
		"MTU under the least":               {[]string{"--net=slirp", "--mtu=575", "true"}, []string{"MTU", "575", "576", "65520"}},
		"MTU over the most":                 {[]string{"--net=slirp", "--mtu=65521", "true"}, []string{"MTU", "65521", "576", "65520"}},
		"negative MTU":                      {[]string{"--net=slirp", "--mtu=-1", "true"}, []string{"mtu", "-1"}},
		"MTU that is no number":             {[]string{"--net=slirp", "--mtu=jumbo", "true"}, []string{"mtu", "jumbo"}},
		"interface name that is too long":   {[]string{"--net=slirp", "--ifname=sixteen-letters-", "true"}, []string{"interface name", "sixteen-letters-", "15"}},
		"interface name with a slash":       {[]string{"--net=slirp", "--ifname=a/b", "true"}, []string{"interface name", "a/b"}},
		"two search domains at once":        {[]string{"--net=slirp", "--dns-search=a.test b.test", "true"}, []string{"--dns-search", "a.test b.test", "repeat"}},
		"search domain with a line":         {[]string{"--net=slirp", "--dns-search=a.test\nnameserver 192.0.2.1", "true"}, []string{"--dns-search"}},
		"loopback ports that are none":      {[]string{"--net=slirp", "--host-loopback=some", "true"}, []string{"--host-loopback", "some"}},
		"port spec that is none":            {[]string{"--net=slirp", "-p", "web", "true"}, []string{"web"}},
		"port spec without a protocol":      {[]string{"--net=slirp", "-p", "8080:80", "true"}, []string{"8080:80", "tcp"}},
		"port spec of another protocol":     {[]string{"--net=slirp", "-p", "8080:80/sctp", "true"}, []string{"sctp", "tcp"}},
		"port spec with a port too high":    {[]string{"--net=slirp", "-p", "65536:80/tcp", "true"}, []string{"65536"}},
		"port spec with child port 0":       {[]string{"--net=slirp", "-p", "8080:0/tcp", "true"}, []string{"8080:0"}},
		"port spec with a bad address":      {[]string{"--net=slirp", "-p", "127.0.0.300:8080:80/tcp", "true"}, []string{"127.0.0.300"}},
		"port spec with the wrong family":   {[]string{"--net=slirp", "-p", "[::1]:8080:80/tcp4", "true"}, []string{"::1", "tcp4"}},
		"host that has no address":          {[]string{"--add-host=db", "true"}, []string{"--add-host", "db", "NAME:IP"}},
		"directory of a card, without one":  {[]string{"--hostnic-dir=/run/gatekit/eth1", "true"}, []string{"--hostnic-dir", "--net=hostnic"}},
		"card in another network":           {[]string{"--net=slirp", "--hostnic-interface=eth1", "true"}, []string{"--hostnic-interface", "--net=hostnic"}},
		"way to lend no card":               {[]string{"--hostnic-mode=macvlan", "true"}, []string{"--hostnic-mode", "--net=hostnic"}},
		"shared card in another network":    {[]string{"--net=none", "--hostnic-shared", "true"}, []string{"--hostnic-shared", "--net=hostnic"}},
		"copy-up of /tmp":                   {[]string{"--copy-up=/tmp", "true"}, []string{"copy-up", "/tmp"}},
		"copy-up of /tmp, written oddly":    {[]string{"--copy-up=/tmp/./", "true"}, []string{"copy-up", "/tmp"}},
		"copy-up of the root":               {[]string{"--copy-up=/", "true"}, []string{"copy-up", "/"}},
		"copy-up of a missing directory":    {[]string{"--copy-up=/srv/missing", "true"}, []string{"copy-up", "/srv/missing"}},
		"copy-up of a file":                 {[]string{"--copy-up=/srv/file", "true"}, []string{"copy-up", "/srv/file", "directory"}},
		"copy-up of a relative path":        {[]string{"--copy-up=etc", "true"}, []string{"copy-up", "etc", "absolute"}},
		"copy-up in an unknown mode":        {[]string{"--copy-up=/etc", "--copy-up-mode=magic", "true"}, []string{"copy-up", "magic", "overlay", "tmpfs+symlink"}},
		"unknown propagation":               {[]string{"--propagation=viral", "true"}, []string{"--propagation", "viral", "rslave"}},
		"unknown reaper":                    {[]string{"--reaper=grim", "true"}, []string{"--reaper", "grim", "auto"}},
		"unknown UDP filtering":             {[]string{"--net=slirp", "--udp-filtering=some", "true"}, []string{"--udp-filtering", "some", "address-and-port"}},
		"unknown source of ids":             {[]string{"--subid-source=oracle", "true"}, []string{"--subid-source", "oracle", "static"}},
		"unknown log format":                {[]string{"--log-format=xml", "true"}, []string{"--log-format", "xml", "json"}},
		"mapping that is none":              {[]string{"--uidmap=0:1", "--gidmap=0:1:1", "true"}, []string{"--uidmap", "0:1"}},
		"mapping of nothing":                {[]string{"--uidmap=0:1000:0", "--gidmap=0:1000:1", "true"}, []string{"--uidmap", "0:1000:0"}},
		"mappings that overlap":             {[]string{"--uidmap=0:1000:2", "--uidmap=1:5000:9", "--gidmap=0:1000:1", "true"}, []string{"--uidmap", "overlap"}},
		"mapping without root":              {[]string{"--uidmap=1:1000:2", "--gidmap=0:1000:1", "true"}, []string{"--uidmap", "0"}},
		"user mapping alone":                {[]string{"--uidmap=0:1000:1", "true"}, []string{"--uidmap", "--gidmap"}},
		"group mapping alone":               {[]string{"--gidmap=0:1000:1", "true"}, []string{"--uidmap", "--gidmap"}},
		"mapping and a single id":           {[]string{"--single-id", "--uidmap=0:1000:1", "--gidmap=0:1000:1", "true"}, []string{"--single-id", "--uidmap"}},
		"evacuation without pid namespace":  {[]string{"--evacuate-cgroup2=x", "--cgroupns", "true"}, []string{"--evacuate-cgroup2", "--pidns"}},
		"evacuation without cgroup ns":      {[]string{"--evacuate-cgroup2=x", "--pidns", "true"}, []string{"--evacuate-cgroup2", "--cgroupns"}},
		"evacuation to a path":              {[]string{"--evacuate-cgroup2=../x", "--pidns", "--cgroupns", "true"}, []string{"--evacuate-cgroup2", "../x"}},
		"detached network without one":      {[]string{"--net=host", "--detach-netns", "true"}, []string{"--detach-netns", "--net"}},
		"forward in the host's network":     {[]string{"-p", "8080:80/tcp", "true"}, []string{"publish", "--net"}},
		"forward without a port driver":     {[]string{"--net=slirp", "--port-driver=none", "-p", "8080:80/tcp", "true"}, []string{"publish", "--port-driver"}},
		"port driver in the host's network": {[]string{"--net=host", "--port-driver=builtin", "true"}, []string{"--port-driver", "--net"}},
		"pid namespace without a reaper":    {[]string{"--pidns", "--reaper=false", "true"}, []string{"--reaper", "--pidns"}},
	} {
		t.Run(name, func(t *testing.T) { b.refuse(t, h, 2) })
	}
}

func TestACommandThatCannotRunIsRefused(t *testing.T) {
	h := testenv.NewHost(t)
	h.WriteFile(t, "/srv/not-executable", "#!/bin/sh\n", 0o644)
	h.WriteFile(t, "/srv/no-interpreter", "#!/srv/missing\n", 0o755)
	h.WriteFile(t, "/srv/no-program", "\x01\x02\x03\x04", 0o755)
	if err := os.Mkdir(h.Path("/srv/directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		command string
		code    int
		says    string
	}{
		"not in PATH":                   {"no-such-command", 127, "not found"},
		"no such file":                  {"/srv/no-such-file", 127, "not found"},
		"no such directory":             {"/srv/nowhere/file", 127, "not found"},
		"without its interpreter":       {"/srv/no-interpreter", 127, "interpreter"},
		"not executable":                {"/srv/not-executable", 126, "permission"},
		"a directory":                   {"/srv/directory", 126, "directory"},
		"not a program of this machine": {"/srv/no-program", 126, "program"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, flags := range processFlags {
				badInput{append(flags, c.command), []string{c.command, c.says}}.refuse(t, h, c.code)
			}
		})
	}
}
