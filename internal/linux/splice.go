package linux

import (
	"os"

	"golang.org/x/sys/unix"
)

// Pipe is a kernel buffer between two splices (see splice(2)). Fill and Drain
// return the bare errno, because EAGAIN is their daily bread.
type Pipe struct{ r, w int }

// NewPipe makes a pipe that holds size bytes, or what the kernel grants where
// the user's pipes are limited (pipe(7), /proc/sys/fs/pipe-user-pages-soft).
func NewPipe(size int) (*Pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, size)
	return &Pipe{r: fds[0], w: fds[1]}, nil
}

// Fill moves up to max bytes from the socket fd into the pipe, without waiting.
// 0 and no error mean the end of the stream.
func (p *Pipe) Fill(fd, max int) (int, error) { return spliceNonblock(fd, p.w, max) }

// Drain moves up to max bytes from the pipe into the socket fd, without waiting.
func (p *Pipe) Drain(fd, max int) (int, error) { return spliceNonblock(p.r, fd, max) }

// Close drops the pipe and what is in it.
func (p *Pipe) Close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

func spliceNonblock(from, to, max int) (n int, err error) {
	err = retry(func() error {
		moved, err := unix.Splice(from, nil, to, nil, max, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		n = int(moved)
		return err
	})
	return n, err
}
