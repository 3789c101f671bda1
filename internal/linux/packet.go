package linux

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenPacketSender opens a packet socket (packet(7)) that writes frames to an
// interface of the caller's network namespace and receives none. Every frame
// written begins with a 10-byte virtio_net_hdr (PACKET_VNET_HDR), and then with
// its Ethernet header. The file is non-blocking and close-on-exec. It needs
// CAP_NET_RAW in the user namespace that owns the network namespace, here and
// now: not for what is written later.
func OpenPacketSender(ifname string) (*os.File, error) {
	// Without a protocol the socket gets nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", ifname, os.NewSyscallError("socket", err))
	}
	if err := setPacketSender(fd, ifname); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket on %s: %w", ifname, err)
	}
	return os.NewFile(uintptr(fd), "packets to "+ifname), nil
}

// setPacketSender binds fd to the interface.
func setPacketSender(fd int, ifname string) error {
	ifr, err := unix.NewIfreq(ifname)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return os.NewSyscallError("ioctl(SIOCGIFINDEX)", err)
	}
	if err := setInts(fd, sockopt{unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1}); err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: int(ifr.Uint32())}))
}
