package linux

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestErrorsOfTheTUNDeviceNameTheRemedy(t *testing.T) {
	for errno, remedy := range map[unix.Errno]string{
		unix.EACCES: "sudo chmod 0666 /dev/net/tun",
		unix.EPERM:  "sudo chmod 0666 /dev/net/tun",
		unix.ENOENT: "sudo modprobe tun",
		unix.ENODEV: "sudo modprobe tun",
	} {
		err := explainTUN(errno)
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), remedy) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v became %q", errno, err)
		}
	}
}

func TestNoTAPHasNoHeader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if TAPHasHeader(int(r.Fd())) {
		t.Error("a pipe has a virtio-net header")
	}
}
