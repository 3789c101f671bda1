// Package persona holds what differs between gatekit and the RootlessKit that it
// stands in for. Which of the two a program is, its name says: started by one of
// RootlessKit's names, a symbolic link for example, it has the defaults, the
// spellings and the output of RootlessKit v3, so that scripts written for that run
// unchanged. Nothing else in the house asks under which name it runs.
//
// Flags that choose one of RootlessKit's helper programs (slirp4netns, pasta, pesto,
// VPNKit, gvisor-tap-vsock) are known to both personas, and mean what is built in.
package persona

import (
	"path/filepath"
	"strings"
	"syscall"
)

// Persona is a set of names, defaults and manners. Gatekit and RootlessKit are
// the two that there are.
type Persona struct {
	// Gate and Control are what the two programs call themselves.
	Gate, Control string

	// IPv6 is the default of --ipv6.
	IPv6 bool

	// HostLoopback is the default of --host-loopback.
	HostLoopback string

	// PortDriver is the default of --port-driver; empty lets the network decide.
	PortDriver string

	// Commas reports whether a comma separates values of --copy-up and
	// --publish.
	Commas bool

	// Plain reports whether the control program prints as rootlessctl does:
	// PrintPorts and PrintInfo.
	Plain bool

	// EmptyNet reports whether --net= with an empty value is slirp: the
	// dockerd-rootless.sh of Docker 28 passes one where it has found no helper.
	EmptyNet bool

	// DriversMTU reports whether --mtu=0 is the default and leaves the MTU to the
	// network driver.
	DriversMTU bool

	// signalCode is the exit code for a command that a signal has killed; 0
	// stands for 128 and the signal's number.
	signalCode int
}

// Gatekit is safe first.
var Gatekit = Persona{
	Gate:         "gatekit",
	Control:      "gatectl",
	IPv6:         true,
	HostLoopback: "none",
}

// RootlessKit is as cmd/rootlesskit/main.go and cmd/rootlessctl of RootlessKit v3
// have it.
var RootlessKit = Persona{
	Gate:         "rootlesskit",
	Control:      "rootlessctl",
	HostLoopback: "all",
	PortDriver:   "none",
	Commas:       true,
	Plain:        true,
	EmptyNet:     true,
	DriversMTU:   true,
	signalCode:   255,
}

// Of is the persona of a program that was started as argv0, the first of its
// arguments.
func Of(argv0 string) Persona {
	switch filepath.Base(argv0) {
	case "rootlesskit", "docker-rootlesskit", "rootlessctl":
		return RootlessKit
	}
	return Gatekit
}

// SignalCode is the exit code for a command that a signal has killed.
func (p Persona) SignalCode(signal syscall.Signal) int {
	if p.signalCode != 0 {
		return p.signalCode
	}
	return 128 + int(signal)
}

// MTU is what --mtu=asked means for --net=network, in bytes.
func (p Persona) MTU(asked int, network string) int {
	if !p.DriversMTU || asked != 0 {
		return asked
	}
	switch network {
	case "slirp4netns", "pasta":
		return 65520
	}
	return 1500
}

// List is what the values of a flag that may be repeated mean.
func (p Persona) List(values []string) []string {
	if !p.Commas {
		return values
	}
	var list []string
	for _, value := range values {
		list = append(list, strings.Split(value, ",")...)
	}
	return list
}

// HelperFlags are flags of RootlessKit about helpers that are built in here, and
// what they were to say there. Their values are ignored.
var HelperFlags = []struct{ Name, Meaning string }{
	{"slirp4netns-binary", "path of slirp4netns"},
	{"slirp4netns-sandbox", "slirp4netns in a mount namespace"},
	{"slirp4netns-seccomp", "slirp4netns under seccomp"},
	{"pasta-binary", "path of pasta"},
	{"pesto-binary", "path of pesto, pasta's port forwarder"},
	{"vpnkit-binary", "path of VPNKit"},
	{"source-ip-transparent-backend", "nft or iptables, by which --source-ip-transparent routed"},
}

// Network is the network driver that a value of --net names. helper is true
// where that is one of RootlessKit's helpers.
func (p Persona) Network(value string) (driver string, helper bool) {
	switch value {
	case "":
		if p.EmptyNet {
			return "slirp", true
		}
	case "slirp4netns", "pasta", "vpnkit", "gvisor-tap-vsock":
		return "slirp", true
	case "lxc-user-nic": // no helper of RootlessKit's, but LXC's: it is run
		return "hostnic", false
	}
	return value, false
}

// PortDriver is the port driver that a value of --port-driver names. helper is
// true where that is one of RootlessKit's helpers.
func PortDriver(value string) (driver string, helper bool) {
	switch value {
	// RootlessKit's flag has the last two spellings.
	case "slirp4netns", "implicit", "pesto", "gvisor-tap-vsock", "gvisortapvsock":
		return "builtin", true
	}
	return value, false
}
