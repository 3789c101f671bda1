package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// tunDevice is the character device that makes TUN and TAP interfaces
// (Documentation/networking/tuntap.rst of the kernel).
const tunDevice = "/dev/net/tun"

// Offloads of a TAP for TUNSETOFFLOAD (linux/if_tun.h). They say what the
// reader of the device takes from the namespace's kernel: frames whose checksum
// is not finished, and TCP segments larger than the MTU.
const (
	tunOffloadChecksum = 0x01 // TUN_F_CSUM
	tunOffloadTSO4     = 0x02 // TUN_F_TSO4
	tunOffloadTSO6     = 0x04 // TUN_F_TSO6
	tunOffloadTSOECN   = 0x08 // TUN_F_TSO_ECN
	tunOffloadUSO4     = 0x20 // TUN_F_USO4, since Linux 6.2
	tunOffloadUSO6     = 0x40 // TUN_F_USO6, since Linux 6.2
)

// ErrNoOffload marks a kernel or a sandbox that makes a TAP, but none with a
// virtio-net header and segmentation offload.
var ErrNoOffload = errors.New("no offload on the TAP")

// CheckTUN returns an error, with its remedy, when the caller cannot open
// /dev/net/tun. It makes nothing.
func CheckTUN() error {
	fd, err := openTUN()
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// OpenTAP makes the TAP called name in the caller's network namespace. Every
// frame on the returned file, which is non-blocking and close-on-exec, begins
// with a 10-byte virtio_net_hdr (linux/virtio_net.h), and carries partial
// checksums and TCP segments, and where the kernel has it UDP segments, of up
// to 64 KiB in both directions. It needs CAP_NET_ADMIN in the user namespace
// that owns the network namespace. The error wraps ErrNoOffload where a TAP
// without the header might still work.
func OpenTAP(name string) (*os.File, error) {
	fd, err := openTUN()
	if err != nil {
		return nil, err
	}
	if err := setTAP(fd, name); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), tunDevice), nil
}

// setTAP attaches fd to a new TAP and asks for the offloads.
func setTAP(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface name %q: %w", name, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	err = retry(func() error { return unix.IoctlIfreq(fd, unix.TUNSETIFF, req) })
	switch err {
	case nil:
	case unix.EINVAL:
		return fmt.Errorf("%w: create %s: ioctl(TUNSETIFF): %w", ErrNoOffload, name, err)
	default:
		return fmt.Errorf("create %s: ioctl(TUNSETIFF): %w", name, err)
	}
	const segments = tunOffloadChecksum | tunOffloadTSO4 | tunOffloadTSO6 | tunOffloadTSOECN
	for _, offload := range []int{segments | tunOffloadUSO4 | tunOffloadUSO6, segments} {
		err = retry(func() error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offload) })
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: ioctl(TUNSETOFFLOAD): %w", ErrNoOffload, err)
}

// PersistTAP makes the interface outlive its file: it goes with its network
// namespace. The kernel takes an interface down in some 20 ms, which otherwise
// pass in the close of the file; a namespace is taken down in the background.
func PersistTAP(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = retry(func() error { return unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) })
	}); cerr != nil {
		return cerr
	}
	return os.NewSyscallError("ioctl(TUNSETPERSIST)", err)
}

// TAPHasHeader says whether the frames of the TAP behind fd begin with a
// virtio_net_hdr. It is false for what is no TAP.
func TAPHasHeader(fd int) bool {
	req, err := unix.NewIfreq("")
	if err != nil {
		return false
	}
	err = retry(func() error { return unix.IoctlIfreq(fd, unix.TUNGETIFF, req) })
	return err == nil && req.Uint16()&unix.IFF_VNET_HDR != 0
}

// openTUN opens /dev/net/tun, and explains why it could not.
func openTUN() (int, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return -1, explainTUN(err)
	}
	return fd, nil
}

// explainTUN puts the remedy to an error of opening /dev/net/tun.
func explainTUN(err error) error {
	wrapped := &fs.PathError{Op: "open", Path: tunDevice, Err: err}
	switch err {
	case unix.EACCES, unix.EPERM:
		return fmt.Errorf("%w: allow it with `sudo chmod 0666 %s`", wrapped, tunDevice)
	case unix.ENOENT:
		return fmt.Errorf("%w: make it with `sudo modprobe tun`, or in a container with `--device %s`", wrapped, tunDevice)
	case unix.ENODEV, unix.ENXIO:
		return fmt.Errorf("%w: load the driver with `sudo modprobe tun`", wrapped)
	}
	return wrapped
}
