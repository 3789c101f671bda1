package parent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A service tells its manager that it is ready through a Unix socket
// (sd_notify(3)). One with a path is reached from inside as it is. An abstract
// one ("@...") belongs to the host's network namespace (unix(7)), so a gate with
// a network of its own carries its datagrams: they come in on a socket in the
// state dir and go out unchanged, descriptors included.

const (
	notifyVariable = "NOTIFY_SOCKET="

	// maxNotify is the most that a service manager takes in one datagram
	// (NOTIFY_BUFFER_MAX of systemd).
	maxNotify = 4096
)

// notifier carries datagrams from the namespace to the service manager.
type notifier struct {
	inside  *net.UnixConn
	outside *net.UnixConn
	manager *net.UnixAddr
	log     *slog.Logger
}

// newNotifier makes a notifier at path where env needs one, and returns env with
// that path in it. It is nil where the command reaches the manager itself.
func newNotifier(env []string, path string, log *slog.Logger) (*notifier, []string, error) {
	i := slices.IndexFunc(env, func(v string) bool { return strings.HasPrefix(v, notifyVariable+"@") })
	if i < 0 {
		return nil, env, nil
	}
	n := &notifier{manager: &net.UnixAddr{Net: "unixgram", Name: strings.TrimPrefix(env[i], notifyVariable)}, log: log}
	var err error
	if n.inside, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path}); err != nil {
		return nil, env, fmt.Errorf("listen for readiness: %w", err)
	}
	if n.outside, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"}); err != nil {
		n.close()
		return nil, env, fmt.Errorf("reach the service manager at NOTIFY_SOCKET: %w", err)
	}
	env = slices.Clone(env)
	env[i] = notifyVariable + path
	return n, env, nil
}

// close ends the notifier and removes its socket.
func (n *notifier) close() {
	os.Remove(n.inside.LocalAddr().String())
	n.inside.Close()
	if n.outside != nil {
		n.outside.Close()
	}
}

// run carries datagrams until ctx is done. One that the manager does not take is
// lost: without us the command would have got the error, and managers that wait
// for readiness alone are gone after it.
func (n *notifier) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, n.close)()
	buffer, rights := make([]byte, maxNotify), make([]byte, unix.CmsgSpace(16*4))
	for {
		size, rn, _, _, err := n.inside.ReadMsgUnix(buffer, rights)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("carry readiness to the service manager: %w", err)
		}
		if err := n.carry(buffer[:size], rights[:rn]); err != nil && ctx.Err() == nil {
			n.log.Warn("the service manager at NOTIFY_SOCKET did not take a message of the command", "error", err)
		}
	}
}

// carry sends one datagram, and closes the descriptors that came with it.
func (n *notifier) carry(data, rights []byte) error {
	_, _, err := n.outside.WriteMsgUnix(data, rights, n.manager)
	messages, perr := unix.ParseSocketControlMessage(rights)
	if perr != nil {
		return errors.Join(err, perr)
	}
	for _, m := range messages {
		fds, perr := unix.ParseUnixRights(&m)
		if perr != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	return err
}
