package test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// watcher records what happens to the files of a directory (inotify(7)).
type watcher struct{ fd int }

// watch starts to record.
func watch(t *testing.T, dir string) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	return &watcher{fd}
}

// eventsOf returns what happened to one file until now: "appears" for a name
// that came, "is written" for content that changed under that name.
func (w *watcher) eventsOf(t *testing.T, name string) []string {
	t.Helper()
	var out []string
	buf := make([]byte, 64*1024)
	for {
		n, err := unix.Read(w.fd, buf)
		if err == unix.EAGAIN {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		for rest := buf[:n]; len(rest) > 0; {
			var event unix.InotifyEvent
			if _, err := binary.Decode(rest, binary.NativeEndian, &event); err != nil {
				t.Fatal(err)
			}
			end := unix.SizeofInotifyEvent + int(event.Len)
			file := string(bytes.TrimRight(rest[unix.SizeofInotifyEvent:end], "\x00"))
			rest = rest[end:]
			switch {
			case file != name:
			case event.Mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
				out = append(out, "appears")
			default:
				out = append(out, "is written")
			}
		}
	}
}
