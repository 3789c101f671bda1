package network

import (
	"context"
	"os"
)

// Joiner is what a driver may implement whose user and network namespaces are not
// the gate's to make: the child is started in those that Join gives, with ids that
// are mapped already. All other namespaces are made as ever.
type Joiner interface {
	// MapsIDs says that Join makes the user namespace, and has ids mapped in it.
	// Otherwise they are, and the caller needs neither subordinate ids nor the
	// host's leave to make user namespaces.
	MapsIDs() bool

	// Join is called once, right before the child is started. mapIDs maps the ids
	// of a process' user namespace as those of a gate of this caller are. After an
	// error nothing is left to give back.
	Join(ctx context.Context, mapIDs func(ctx context.Context, pid int) error) (*Namespaces, error)
}

// Attacher is what a driver may implement that puts an interface into the network
// namespace of the child, from the host.
type Attacher interface {
	// Attach is called once, when the network namespace is there; pid is a process in
	// it, the child, or a thread of the child's where that alone is in it.
	// The child half waits for the interface.
	Attach(ctx context.Context, pid int) error
}

// Namespaces are those that a child is started in.
type Namespaces struct {
	// User and Net are open until Leave.
	User, Net *os.File

	// Shared says that processes of others may be in them, too. The gate then runs
	// in a PID namespace, whose end is the end of its own processes alone.
	Shared bool

	// Leave gives them back, when no process of the gate is left. It is called
	// once.
	Leave func() error
}
