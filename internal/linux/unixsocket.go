package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A socket address has room for a path of 107 bytes (unix(7)). A longer path is
// reached through a descriptor of its directory: /proc/self/fd/N/<name>.

// maxSocketPath is the longest path that fits a socket address, in bytes.
const maxSocketPath = len(unix.RawSockaddrUnix{}.Path) - 1

// ListenUnix listens on a stream socket at path, which does not exist yet. Only
// this user may connect (mode 0600), from the first moment on and whatever the
// umask is. The file stays when the listener is closed. The path may be longer
// than a socket address.
func ListenUnix(path string) (*net.UnixListener, error) {
	address, done, err := socketAddress(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer done()
	// bind(2) gives the file the mode of the socket, less the umask, and so
	// fchmod(2) before it leaves no moment in which others may connect.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var cherr error
		err := c.Control(func(fd uintptr) { cherr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, os.NewSyscallError("fchmod", cherr))
	}}
	l, err := config.Listen(context.Background(), "unix", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, reason(err))
	}
	listener := l.(*net.UnixListener)
	listener.SetUnlinkOnClose(false)
	// A umask such as 0777 has taken bits away.
	if err := os.Chmod(address, 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, reason(err))
	}
	return listener, nil
}

// DialUnix connects to the stream socket at path, which may be longer than a
// socket address.
func DialUnix(ctx context.Context, path string) (net.Conn, error) {
	address, done, err := socketAddress(path)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	defer done()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, reason(err))
	}
	return conn, nil
}

// socketAddress returns a name of path that fits a socket address and holds
// until done is called.
func socketAddress(path string) (address string, done func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := OpenPath(filepath.Dir(path))
	if err != nil {
		return "", nil, reason(err)
	}
	address = FDPath(dir) + "/" + filepath.Base(path)
	if len(address) > maxSocketPath {
		dir.Close()
		return "", nil, fmt.Errorf("the name is too long: a socket address holds %d bytes", maxSocketPath)
	}
	if _, err := os.Stat(FDPath(dir)); err != nil {
		dir.Close()
		return "", nil, fmt.Errorf("a path of more than %d bytes needs /proc: use a shorter one, or mount /proc", maxSocketPath)
	}
	return address, func() { dir.Close() }, nil
}

// reason strips an error of net and os of the address, which may be one of
// socketAddress's own.
func reason(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// PeerUID returns the user id, as this process sees it, of who connected a unix
// socket (SO_PEERCRED in unix(7)).
func PeerUID(conn syscall.Conn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("getsockopt(SO_PEERCRED): %w", err)
	}
	var cred *unix.Ucred
	var goerr error
	err = raw.Control(func(fd uintptr) {
		cred, goerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, goerr); err != nil {
		return 0, fmt.Errorf("getsockopt(SO_PEERCRED): %w", err)
	}
	return cred.Uid, nil
}
