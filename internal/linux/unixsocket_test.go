package linux_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

func TestASocketIsOursAloneWhateverTheUmask(t *testing.T) {
	for _, umask := range []int{0, 0o777} {
		path := filepath.Join(t.TempDir(), "s")
		old := unix.Umask(umask)
		l, err := linux.ListenUnix(path)
		unix.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("umask %04o: mode %v, %v", umask, st.Mode(), err)
		}
		l.Close()
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("Close removes the file: %v", err)
		}
	}
}

func TestSocketPathsOfAnyLength(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 200))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"short":                      filepath.Join(t.TempDir(), "s"),
		"a directory of 200 bytes":   filepath.Join(long, "s"),
		"a name of 60 bytes in that": filepath.Join(long, strings.Repeat("s", 60)),
	} {
		t.Run(name, func(t *testing.T) {
			l, err := linux.ListenUnix(path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			conn, err := linux.DialUnix(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			peer, err := l.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			if uid, err := linux.PeerUID(peer); err != nil || uid != uint32(os.Geteuid()) {
				t.Errorf("peer %d, %v", uid, err)
			}
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestSocketErrorsNameThePathAndTheReason(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("d", 200))
	for name, tc := range map[string]struct {
		path, want string
		is         error
	}{
		"a missing directory":          {filepath.Join(dir, "none", "s"), "no such file", syscall.ENOENT},
		"a missing long directory":     {filepath.Join(long, "s"), "no such file", syscall.ENOENT},
		"a name that can never fit":    {filepath.Join(dir, strings.Repeat("s", 150)), "107 bytes", nil},
		"nobody at a path that exists": {dir, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, derr := linux.DialUnix(t.Context(), tc.path)
			_, lerr := linux.ListenUnix(tc.path)
			for _, err := range []error{derr, lerr} {
				if err == nil || !strings.Contains(err.Error(), tc.path+": ") || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "/proc/") {
					t.Errorf("error is %v, want %s and %q", err, tc.path, tc.want)
				}
				if tc.is != nil && !errors.Is(err, tc.is) {
					t.Errorf("error %v is not %v", err, tc.is)
				}
			}
		})
	}
}

func TestPeerUIDOfAClosedSocketIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := linux.PeerUID(l.(*net.TCPListener)); err == nil {
		t.Error("no error")
	}
}
