package handshake

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/pkg/network"
)

// Setup tells the child what to make of its namespaces. It rides on its message in
// a file, because a command line may be longer than a message.
type Setup struct {
	// Plan is the network's.
	Plan network.Plan `json:"plan"`

	// DetachedNetns is the file on which the child keeps a network namespace
	// that it is not in itself; empty for none.
	DetachedNetns string `json:"detachedNetns,omitempty"`

	// Network is the namespace for that, which rides along; nil is a new one. The
	// receiver owns it.
	Network *os.File `json:"-"`

	// Mounts is a child.Mounts, which this package need not know.
	Mounts json.RawMessage `json:"mounts"`

	// PIDNamespace says that the child is process 1 of a pid namespace.
	PIDNamespace bool `json:"pidNamespace,omitempty"`

	// Reap says that the child collects orphans.
	Reap bool `json:"reap,omitempty"`

	// Command and its arguments; never empty.
	Command []string `json:"command"`

	// ListenFDs is how many sockets of socket activation follow the
	// handshake's descriptor.
	ListenFDs int `json:"listenFDs,omitempty"`
}

// File returns a file with the setup, which exists in memory only
// (memfd_create(2)). The caller closes it.
func (s Setup) File() (*os.File, error) {
	fd, err := unix.MemfdCreate("gatekit-setup", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), "setup")
	err = json.NewEncoder(f).Encode(s)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("handshake: write the setup: %w", err)
	}
	return f, nil
}

// Setup reads the setup of a message of kind setup, and closes its file.
func (m Message) Setup() (Setup, error) {
	defer func() { m.CloseFiles() }()
	var s Setup
	if n := len(m.Files); n < 1 || n > 2 {
		return s, fmt.Errorf("handshake: message %q: %d files, not 1 or 2", m.Kind, n)
	}
	if err := json.NewDecoder(m.Files[0]).Decode(&s); err != nil {
		return s, fmt.Errorf("handshake: message %q: %w", m.Kind, err)
	}
	if len(m.Files) == 2 {
		s.Network, m.Files = m.Files[1], m.Files[:1]
	}
	return s, nil
}

// Signal names a signal by its number (signal(7)).
type Signal struct {
	Signal int `json:"signal"`
}

// Resumed answers that the command was stopped.
type Resumed struct {
	Stopped bool `json:"stopped"` // so was the parent, which now goes on
}

// Request asks for N sockets of Domain and Type (socket(2)), as port.NewSocket makes
// them; those of AF_PACKET write to lo (slirp.OpenLoopback), and those of AF_UNSPEC are
// files of counters, a different one each (slirp.OpenTally).
type Request struct {
	ID     uint64 `json:"id"`
	Domain int    `json:"domain"`
	Type   int    `json:"type"`
	N      int    `json:"n"`
}

// Reply answers the request with the same ID. The sockets ride on it; where
// there are none, Errno says why (errno(3)).
type Reply struct {
	ID    uint64        `json:"id"`
	Errno syscall.Errno `json:"errno,omitempty"`
}

// Exit is how the command ended: by exit(2) with Code, or by Signal if that is
// not 0.
type Exit struct {
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
}

// Error is why the child failed.
type Error struct {
	// Reason is one line for the user.
	Reason string `json:"reason"`

	// Code is the exit code that the gate ends with: 1, or 126 and 127 when the
	// command cannot be executed or found.
	Code int `json:"code"`
}

// Failure is an error that the child sent.
type Failure struct {
	Reason string
	Code   int
}

// Error is the reason.
func (f *Failure) Error() string { return f.Reason }

// Failure is the error in a message of kind error.
func (m Message) Failure() error {
	var e Error
	if err := m.Decode(&e); err != nil {
		return errors.Join(errors.New("the child failed"), err)
	}
	return &Failure{Reason: e.Reason, Code: e.Code}
}
