// Package handshake is the protocol between parent and child, and the only
// channel between the two: a SOCK_SEQPACKET socketpair. One packet is one
// message, a JSON object with a kind; descriptors ride on messages
// (SCM_RIGHTS). End of file on either side means that the other is dead.
//
//	kind     from    body     files        when, and what follows
//	setup    parent  -        a Setup      at once; the child sets up the network, which
//	                                       may be a second file
//	detached child   -        -            a thread of it is in the detached network
//	network  child   -        the driver's the parent runs the network driver
//	mapped   parent  -        -            ids are mapped; the child mounts
//	ready    child   -        -            all set up; the parent opens its API
//	run      parent  -        -            the child executes the command
//	signal   parent  Signal   -            the child forwards it to the command
//	stopped  child   Signal   -            the command was stopped; the parent may stop, too
//	resumed  parent  Resumed  -            it goes on, or did not stop; the child continues
//	                                       the command if it did
//	sockets  parent  Request  -            the child makes sockets in the namespace
//	sockets  child   Reply    n sockets    the answer to the request with this id
//	rebind   parent  -        -            the child binds files that the host replaced
//	exit     child   Exit     -            the command ended; the child ends too
//	error    child   Error    -            the child failed, and says why; it ends
//
// A message of a kind that is out of turn, or that cannot be parsed, ends the
// channel: the two are always the same binary.
package handshake

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Kind names a message, as in the table above.
type Kind string

// The kinds of the table above.
const (
	KindSetup    Kind = "setup"
	KindDetached Kind = "detached"
	KindNetwork  Kind = "network"
	KindMapped   Kind = "mapped"
	KindReady    Kind = "ready"
	KindRun      Kind = "run"
	KindSignal   Kind = "signal"
	KindStopped  Kind = "stopped"
	KindResumed  Kind = "resumed"
	KindSockets  Kind = "sockets"
	KindRebind   Kind = "rebind"
	KindExit     Kind = "exit"
	KindError    Kind = "error"
)

// Limits of one message. A socketpair's default send buffer (net.core.wmem_default,
// 212992 bytes) holds a message of the largest size; the kernel takes at most
// 253 descriptors (SCM_MAX_FD, net/core/scm.c).
const (
	maxMessage = 128 << 10

	// MaxFiles is the most descriptors that one message carries.
	MaxFiles = 253
)

// Message is a received message. The receiver owns Files.
type Message struct {
	Kind  Kind
	Body  json.RawMessage
	Files []*os.File
}

// Decode parses the body into v.
func (m Message) Decode(v any) error {
	if err := json.Unmarshal(m.Body, v); err != nil {
		return fmt.Errorf("handshake: message %q: %w", m.Kind, err)
	}
	return nil
}

// CloseFiles closes the descriptors that nobody took.
func (m Message) CloseFiles() {
	for _, f := range m.Files {
		f.Close()
	}
}

// wire is a message as it stands in a packet.
type wire struct {
	Kind Kind            `json:"kind"`
	Body json.RawMessage `json:"body,omitempty"`
}

// Conn is one end of the channel. Send may be called by several goroutines at
// once, and beside Recv, which has one caller at a time.
type Conn struct {
	conn   *net.UnixConn
	packet []byte // Recv's buffer
	rights []byte // Recv's buffer
}

// Pair makes a channel. The file is the child's end, to be inherited; the
// parent closes it once the child runs.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", os.NewSyscallError("socketpair", err))
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "handshake-parent"), os.NewFile(uintptr(fds[1]), "handshake-child")
	conn, err := New(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// New makes a Conn of an end of the channel, and closes file.
func New(file *os.File) (*Conn, error) {
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("handshake: descriptor is a %T, not a Unix socket", c)
	}
	return &Conn{
		conn:   conn,
		packet: make([]byte, maxMessage),
		rights: make([]byte, unix.CmsgSpace(MaxFiles*4)),
	}, nil
}

// Close ends the channel: the other side, and a Recv on this one, see its end.
func (c *Conn) Close() error { return c.conn.Close() }

// Send sends one message. A nil body sends none. The files stay the caller's.
func (c *Conn) Send(kind Kind, body any, files ...*os.File) error {
	w := wire{Kind: kind}
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("handshake: send %q: %w", kind, err)
		}
		w.Body = b
	}
	packet, err := json.Marshal(w)
	if err != nil {
		return fmt.Errorf("handshake: send %q: %w", kind, err)
	}
	if len(packet) > maxMessage || len(files) > MaxFiles {
		return fmt.Errorf("handshake: send %q: %d bytes and %d descriptors are too much for one message", kind, len(packet), len(files))
	}
	var rights []byte
	if len(files) > 0 {
		fds, err := descriptors(files)
		if err != nil {
			return fmt.Errorf("handshake: send %q: %w", kind, err)
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.conn.WriteMsgUnix(packet, rights, nil)
	runtime.KeepAlive(files)
	if err != nil {
		return fmt.Errorf("handshake: send %q: %w", kind, err)
	}
	return nil
}

// descriptors returns the files' numbers, and leaves their mode alone:
// os.File.Fd would make them blocking, for the receiver too.
func descriptors(files []*os.File) ([]int, error) {
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return nil, err
		}
	}
	return fds, nil
}

// Recv waits for the next message. It returns io.EOF when the other side is
// gone.
func (c *Conn) Recv() (Message, error) {
	n, rn, flags, _, err := c.conn.ReadMsgUnix(c.packet, c.rights)
	if errors.Is(err, unix.ECONNRESET) {
		// The other side ended without reading all. That is told once, and
		// before what it has sent (unix_release_sock in net/unix/af_unix.c).
		n, rn, flags, _, err = c.conn.ReadMsgUnix(c.packet, c.rights)
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			return Message{}, io.EOF
		}
		return Message{}, fmt.Errorf("handshake: receive: %w", err)
	}
	m := Message{}
	if m.Files, err = files(c.rights[:rn]); err != nil {
		return Message{}, err
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		m.CloseFiles()
		return Message{}, errors.New("handshake: receive: message is too large, or no descriptor is free (RLIMIT_NOFILE)")
	}
	var w wire
	if err := json.Unmarshal(c.packet[:n], &w); err != nil {
		m.CloseFiles()
		return Message{}, fmt.Errorf("handshake: receive: %w", err)
	}
	m.Kind, m.Body = w.Kind, w.Body
	return m, nil
}

// Expect waits for the next message, which must be of this kind. An error that
// the other side sent is returned as it is.
func (c *Conn) Expect(kind Kind) (Message, error) {
	m, err := c.Recv()
	if err != nil {
		return m, err
	}
	if m.Kind == kind {
		return m, nil
	}
	m.CloseFiles()
	if m.Kind == KindError {
		return m, m.Failure()
	}
	return m, fmt.Errorf("handshake: got %q when %q was due", m.Kind, kind)
}

// files takes the descriptors out of control messages.
func files(rights []byte) ([]*os.File, error) {
	if len(rights) == 0 {
		return nil, nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, fmt.Errorf("handshake: receive: %w", err)
	}
	var fs []*os.File
	for _, cmsg := range cmsgs {
		fds, err := unix.ParseUnixRights(&cmsg)
		if err != nil {
			continue // not SCM_RIGHTS
		}
		for _, fd := range fds {
			fs = append(fs, os.NewFile(uintptr(fd), "received"))
		}
	}
	return fs, nil
}
