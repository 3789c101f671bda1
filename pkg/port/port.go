// Package port holds what all port drivers share: the port spec (parse, format,
// validate, conflict) and the contract that a driver fulfils.
//
// Drivers live in folders of their own below this one; they import this package
// and this package imports none of them.
package port

import (
	"context"
	"errors"
	"time"
)

// Spec is one forward as it was asked for. Its fields are kept as they were
// written, so that a spec comes back from the API unchanged: empty addresses
// stay empty, and "tcp" stays "tcp".
type Spec struct {
	// Proto is "tcp", "tcp4", "tcp6", "udp", "udp4" or "udp6".
	Proto string

	// ParentIP is the host's address to listen on. Empty means every address;
	// "tcp" and "udp" listen on both families then.
	ParentIP string

	// ParentPort is the host's port; 0 picks a free one, which is filled in.
	ParentPort int

	// ChildIP is the address to forward to in the namespace. Empty means
	// loopback.
	ChildIP string

	// ChildPort is the port to forward to in the namespace, 1 to 65535.
	ChildPort int

	// Reverse forwards the other way: it listens in the namespace, on ChildIP and
	// ChildPort, and leads to ParentIP and ParentPort, which is 1 to 65535, on the
	// host. Empty addresses mean loopback on both sides.
	Reverse bool
}

// Status is a forward that is in place.
type Status struct {
	// ID names the forward for Remove. IDs count from 1 and are not used twice
	// in the life of a driver.
	ID int

	// Spec is what was asked for, unchanged, with port 0 filled in.
	Spec Spec

	// SourceIP says whose address the service sees, as it is now. Empty for a
	// reverse forward.
	SourceIP SourceIP
}

// SourceIP says whether the service behind a forward sees the addresses of its
// clients. The zero value says nothing.
type SourceIP string

// Whose address a service sees.
const (
	// SourceIPPreserve: each client that is not the host itself is seen by its own
	// address and port.
	SourceIPPreserve SourceIP = "preserve"

	// SourceIPPartly: some are, and others by an address of the namespace's: those
	// of one family, or single ones lately.
	SourceIPPartly SourceIP = "partly"

	// SourceIPOff: all are seen by an address of the namespace's.
	SourceIPOff SourceIP = "off"
)

// Info describes a driver as GET /v1/info shows it.
type Info struct {
	// Driver is the driver's name: "builtin".
	Driver string

	// Protos lists the values of Spec.Proto that the driver takes; not nil.
	Protos []string

	// DisallowLoopbackChildIP is true when a ChildIP of 127.0.0.1 or ::1 cannot
	// be reached and clients must name the interface's address.
	DisallowLoopbackChildIP bool
}

// Driver is a port driver. One that has a method Flows() []flows.Flow tells the API of
// what it carries, too.
type Driver interface {
	// Info describes the driver.
	Info() Info

	// Run serves until ctx is done, and returns nil then. When it returns, all
	// forwards and their connections are gone, and so are its goroutines and
	// descriptors. Add and Remove wait until Run has begun, as long as their
	// contexts let them, and fail after it.
	Run(ctx context.Context) error

	// Add puts all specs in place, or none. The statuses come in the order of
	// the specs. A listener is bound before Add returns. Errors wrap ErrInvalid,
	// ErrConflict or neither.
	Add(ctx context.Context, specs []Spec) ([]Status, error)

	// Remove takes all the forwards with these ids away, or none, with
	// ErrNotFound when one does not exist. Their addresses are free when it
	// returns. Their TCP connections may go on for as long as drain says, and
	// are then reset; 0 resets them at once.
	Remove(ctx context.Context, ids []int, drain time.Duration) error

	// List returns the forwards in place, ordered by ID, never nil.
	List() []Status
}

// DefaultDrain is how long the connections of a removed forward go on where
// nobody says otherwise.
const DefaultDrain = 2 * time.Second

// Errors that a caller decides on, tested with errors.Is.
var (
	// ErrInvalid marks a spec that can never work.
	ErrInvalid = errors.New("invalid port spec")

	// ErrConflict marks an address that is taken, by another forward or by
	// another program. The message keeps Go's text "bind: address already in
	// use".
	ErrConflict = errors.New("port conflict")

	// ErrNotFound marks an unknown forward id.
	ErrNotFound = errors.New("no such forward")
)
