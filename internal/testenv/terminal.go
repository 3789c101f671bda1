package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Terminal is a pseudo-terminal, seen from the side of the person who types.
type Terminal struct {
	// Output is all that the terminal has shown.
	Output *Buffer

	keyboard *os.File // the master side
	seen     int      // how much of Output was expected already
	line     *os.File // the slave side, until a command has it
}

// NewTerminal opens a pseudo-terminal that belongs to the Host's user, as login
// programs make it.
func (h *Host) NewTerminal(t testing.TB) *Terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := &Terminal{Output: &Buffer{}, keyboard: master}
	var number uint32
	err = x.control(func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		number, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
		return err
	})
	if err != nil {
		t.Fatalf("unlock /dev/ptmx: %v", err)
	}
	name := fmt.Sprintf("/dev/pts/%d", number)
	if err := os.Chown(name, int(h.User.UID), -1); err != nil {
		t.Fatal(err)
	}
	if x.line, err = os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		x.show()
	}()
	t.Cleanup(func() {
		x.line.Close()
		master.Close()
		<-shown
	})
	return x
}

// show copies what the terminal shows until it is closed.
func (x *Terminal) show() {
	buf := make([]byte, 4096)
	for {
		n, err := x.keyboard.Read(buf)
		_, _ = x.Output.Write(buf[:n])
		if err != nil { // EIO: nobody has the line open
			return
		}
	}
}

func (x *Terminal) control(f func(fd int) error) error {
	conn, err := x.keyboard.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := conn.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// Attach makes the terminal the controlling terminal of cmd, which becomes a
// session leader.
func (x *Terminal) Attach(cmd *exec.Cmd) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = x.line, x.line, x.line
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	cmd.SysProcAttr.Setctty = true // descriptor 0 of the command
}

// Type types keys; "\x03" is Ctrl-C, "\x1a" is Ctrl-Z.
func (x *Terminal) Type(t testing.TB, keys string) {
	t.Helper()
	if _, err := x.keyboard.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// Expect waits until the terminal has shown the text, after all that was
// expected before.
func (x *Terminal) Expect(t testing.TB, text string) {
	t.Helper()
	shown := Eventually(Patience, func() bool {
		at := strings.Index(x.Output.String()[x.seen:], text)
		if at >= 0 {
			x.seen += at + len(text)
		}
		return at >= 0
	})
	if !shown {
		t.Fatalf("the terminal never showed %q; it shows:\n%s", text, x.Output)
	}
}

// Resize changes the size of the window, of which the kernel tells the
// foreground process group by SIGWINCH.
func (x *Terminal) Resize(t testing.TB, rows, columns uint16) {
	t.Helper()
	err := x.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// HangUp closes the terminal, as a lost connection does: the kernel sends
// SIGHUP to the session.
func (x *Terminal) HangUp() {
	x.line.Close()
	x.keyboard.Close()
}
