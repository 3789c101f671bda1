// Package network is the contract between the gate and its network drivers,
// and holds the two drivers that need no engine: host and none.
//
// A driver has two halves. The child half runs once, inside the namespaces,
// before the command: it makes and configures the interface from a Plan and
// hands up the files that the host half works on. The parent half then runs on
// those files, on the host, until its context ends.
//
//	parent                          child
//	  |------- Plan (handshake) ------>|  child half: interface, addresses, routes
//	  |<------ files (SCM_RIGHTS) -----|
//	  |  Driver.Run(ctx, files)        |
//
// Engines live in folders of their own below this one; they import this package
// and this package imports none of them.
package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
)

// Driver is the host side of a network driver. It may do more than this, by methods for
// which the parent asks:
//
//	Joiner, Attacher                                another's namespace, or interface
//	Check() error                                   finds what the host lacks, before anything is made
//	Follow(ctx, changed func(Plan))                 tells of another Search and Options, until ctx is done
//	Policy() Policy, SetPolicy(Policy) error        egress rules, changed live
//	UseSockets(port.Sockets)                        sockets of the namespace, before port drivers run
//	Flows() []flows.Flow                            what it carries now
type Driver interface {
	// Plan tells the child half what to set up. It does not change during the
	// life of the driver, but for Search and Options, where the driver can be
	// followed (slirp's Follow), and for what a driver's Check finds out.
	Plan() Plan

	// Info describes the driver for the API.
	Info() Info

	// Run works on the files that the child half handed up, which it owns from
	// here on and closes before it returns, also on error. It calls ready, once,
	// when the network carries traffic, and returns when ctx is done (nil) or
	// when the network cannot go on (an error). Every goroutine and descriptor
	// it made is gone when it returns.
	Run(ctx context.Context, files []*os.File, ready func()) error
}

// Plan is what the child half of a driver does. It crosses the handshake as
// JSON, so it holds values only.
type Plan struct {
	// Driver names the child half: "host", "none", "slirp", "hostnic".
	Driver string `json:"driver"`

	// Namespace says whether the gate gets a network namespace of its own.
	Namespace bool `json:"namespace"`

	// Interface is the interface to make, or with hostnic the one that is there; nil
	// is none.
	Interface *Interface `json:"interface,omitempty"`

	// DHCP says that addresses, routes and name servers come by DHCP: Nameservers
	// and Search are known when the driver is ready, and the driver can be followed.
	DHCP bool `json:"dhcp,omitempty"`

	// SourceIP prepares the namespace for flows that are opened in the names of
	// clients (port.Opener).
	SourceIP bool `json:"sourceIP,omitempty"`

	// Nameservers, Search and Options become the namespace's resolv.conf. With
	// no Nameservers the host's resolv.conf stays in place.
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	Search      []string     `json:"search,omitempty"`
	Options     []string     `json:"options,omitempty"`
}

// Interface is an interface in the network namespace.
type Interface struct {
	// Name is the interface's name, at most 15 bytes (IFNAMSIZ less one).
	Name string `json:"name"`

	// MTU is in bytes.
	MTU int `json:"mtu"`

	// HardwareAddr is the Ethernet address in colon form; empty lets the kernel
	// choose.
	HardwareAddr string `json:"hardwareAddr,omitempty"`

	// Addresses are the interface's own, with the length of their network.
	Addresses []netip.Prefix `json:"addresses,omitempty"`

	// Gateways are the next hops of the default routes, at most one a family.
	Gateways []netip.Addr `json:"gateways,omitempty"`
}

// Policy says what the namespace may reach, where a driver can hold it to that.
// The zero value allows everything. pkg/network/slirp/policy has the grammar of
// rules and what they mean together.
type Policy struct {
	// Default is "allow" or "deny", for what no rule matches. Empty is "allow".
	Default string

	// Allow and Deny are rules. Deny wins over Allow.
	Allow, Deny []string
}

// ErrPolicy marks a policy that cannot be put in force as it is.
var ErrPolicy = errors.New("bad policy")

// Info describes a driver as GET /v1/info shows it.
type Info struct {
	// Driver is the driver's name.
	Driver string

	// DNS are the name servers that the namespace was told of; may be empty or nil.
	DNS []netip.Addr

	// ChildIP is the IPv4 address of the interface in the namespace, or its
	// IPv6 address where it has no other; invalid where there is none.
	ChildIP netip.Addr

	// DynamicChildIP is true when ChildIP may change while the gate runs.
	DynamicChildIP bool
}
