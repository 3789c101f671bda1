// Package api holds the wire types and error codes of the REST API on
// <state-dir>/api.sock, and the OpenAPI document that describes it. It imports
// nothing of ours, so that any client can import it.
package api

import "net/netip"

// Version is the API's version as GET /v1/info reports it (RootlessKit's
// clients compare it).
const Version = "1.1.1"

// SocketName is the name of the API's socket in a state dir.
const SocketName = "api.sock"

// Info answers GET /v1/info. Both driver objects are always there.
type Info struct {
	APIVersion string `json:"apiVersion"`
	// Version is the gate's own version.
	Version string `json:"version"`
	// Name is what the gate was called at its start; empty when it was called nothing.
	Name string `json:"name,omitempty"`
	// PID is the parent's process id as the host sees it.
	PID      int    `json:"pid"`
	StateDir string `json:"stateDir"`
	// ChildPID is the child's process id as the host sees it.
	ChildPID      int           `json:"childPID"`
	NetworkDriver NetworkDriver `json:"networkDriver"`
	PortDriver    PortDriver    `json:"portDriver"`
}

// NetworkDriver describes the network driver.
type NetworkDriver struct {
	Driver string `json:"driver"`
	// DNS is never null.
	DNS            []netip.Addr `json:"dns"`
	ChildIP        *netip.Addr  `json:"childIP,omitempty"`
	DynamicChildIP bool         `json:"dynamicChildIP"`
}

// PortDriver describes the port driver.
type PortDriver struct {
	Driver string `json:"driver"`
	// Protos is never null.
	Protos                  []string `json:"protos"`
	DisallowLoopbackChildIP bool     `json:"disallowLoopbackChildIP"`
}

// PortSpec asks for one forward. It has the fields of port.Spec, so that one
// converts to the other.
type PortSpec struct {
	Proto      string `json:"proto"`
	ParentIP   string `json:"parentIP,omitempty"`
	ParentPort int    `json:"parentPort"`
	ChildIP    string `json:"childIP,omitempty"`
	ChildPort  int    `json:"childPort"`
	// Reverse forwards from the namespace to the host: it listens on ChildIP and
	// ChildPort, and leads to ParentIP and ParentPort.
	Reverse bool `json:"reverse,omitempty"`
}

// Policy says what the namespace may reach. Deny wins over allow, and what no rule
// matches is as the default says.
type Policy struct {
	// Default is "allow" or "deny".
	Default string `json:"default"`
	// Allow and Deny are rules, PROTO://TARGET[:PORTS]. Answers have no null.
	Allow []string `json:"allow"`
	Deny  []string `json:"deny"`
}

// PortStatus is one forward that is in place.
type PortStatus struct {
	ID   int      `json:"id"`
	Spec PortSpec `json:"spec"`
	// SourceIP says whether the service sees the addresses of its clients, those on
	// the host itself aside: "preserve", "off", or "partly" for some of them, and at
	// this time. RootlessKit does not tell; it is empty then.
	SourceIP string `json:"sourceIP,omitempty"`
}

// Connection is one flow: a TCP connection, a UDP conversation, or an exchange of
// echo messages.
type Connection struct {
	// Proto is "tcp", "udp" or "icmp".
	Proto string `json:"proto"`
	// Direction is "outbound" where the namespace has begun, "forward" for a client of
	// a forward, and "reverse" for one of a reverse forward.
	Direction string `json:"direction"`
	// State is "connecting", "open" or, of TCP alone, "half-closed".
	State string `json:"state"`
	// ChildIP and ChildPort are the end in the namespace: the service of a forward, and
	// the client otherwise. For icmp the port is the identifier of the messages.
	ChildIP   netip.Addr `json:"childIP"`
	ChildPort int        `json:"childPort"`
	// RemoteIP and RemotePort are the other end, as the namespace knows it: the client
	// of a forward, and the service otherwise. For icmp the port is 0.
	RemoteIP   netip.Addr `json:"remoteIP"`
	RemotePort int        `json:"remotePort"`
	// Forward is the id of the forward, also one that was removed; 0, and left out,
	// where the flow is outbound.
	Forward int `json:"forward,omitempty"`
	// SourceIP says, for direction "forward", whether the service sees the client's own
	// address and port: "preserve" or "off".
	SourceIP string `json:"sourceIP,omitempty"`
	// AgeSeconds is since the flow began.
	AgeSeconds int `json:"ageSeconds"`
	// IdleSeconds is since there was a byte or a datagram last. UDP by a forward that
	// keeps the client's address counts the client's datagrams.
	IdleSeconds int `json:"idleSeconds"`
	// BytesIn came into the namespace, BytesOut left it. Nil, and left out, where
	// nobody counts: UDP, icmp, and TCP that is not connected yet.
	BytesIn  *uint64 `json:"bytesIn,omitempty"`
	BytesOut *uint64 `json:"bytesOut,omitempty"`
}
