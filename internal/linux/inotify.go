package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Inotify tells of changes of files and directories (inotify(7)). It waits in
// Go's poller, so that nothing runs while nothing changes.
//
// Changes is for one goroutine; the other methods are for any.
type Inotify struct {
	file *os.File
	buf  [4096]byte // more than the largest event
}

// Change is something that happened to a watched file or directory.
type Change struct {
	Watch int    // as Watch returned it; -1 where changes were lost (IN_Q_OVERFLOW)
	Mask  uint32 // unix.IN_* flags
	Name  string // of the file in a watched directory; empty for what is watched itself
}

// NewInotify makes an empty set of watches.
func NewInotify() (*Inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return &Inotify{file: os.NewFile(uintptr(fd), "inotify")}, nil
}

// Watch watches a path for the IN_* flags of mask, and returns the number of the
// watch: the same for the same file or directory.
func (n *Inotify) Watch(path string, mask uint32) (watch int, err error) {
	err = n.control(func(fd int) (err error) {
		watch, err = unix.InotifyAddWatch(fd, path, mask)
		return os.NewSyscallError("inotify_add_watch", err)
	})
	if err != nil {
		return 0, fmt.Errorf("watch %s: %w", path, err)
	}
	return watch, nil
}

// Unwatch ends a watch, which may have ended with its directory.
func (n *Inotify) Unwatch(watch int) {
	_ = n.control(func(fd int) error {
		_, err := unix.InotifyRmWatch(fd, uint32(watch))
		return err
	})
}

func (n *Inotify) control(f func(fd int) error) error {
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// Changes waits until something has changed. The error is os.ErrClosed after
// Close.
func (n *Inotify) Changes() ([]Change, error) {
	size, err := n.file.Read(n.buf[:])
	if err != nil {
		return nil, err
	}
	var changes []Change
	for b := n.buf[:size]; len(b) >= unix.SizeofInotifyEvent; {
		length := int(binary.NativeEndian.Uint32(b[12:]))
		name := b[unix.SizeofInotifyEvent:][:length]
		changes = append(changes, Change{
			Watch: int(int32(binary.NativeEndian.Uint32(b))),
			Mask:  binary.NativeEndian.Uint32(b[4:]),
			Name:  string(bytes.TrimRight(name, "\x00")),
		})
		b = b[unix.SizeofInotifyEvent+length:]
	}
	return changes, nil
}

// Close ends all watches, and Changes.
func (n *Inotify) Close() error { return n.file.Close() }
