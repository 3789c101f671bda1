package linux

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Stream is what the kernel knows of a TCP connection.
type Stream struct {
	// Sent and Received are bytes, those that had to be sent again counted once.
	Sent, Received uint64

	// Idle is for how long no bytes were sent nor received.
	Idle time.Duration

	// HalfClosed says that one side at least has ended its half.
	HalfClosed bool
}

// StreamOf asks for what the kernel counts in any case (TCP_INFO, tcp(7);
// tcp_get_info in net/ipv4/tcp.c). It does not wait, and disturbs nothing.
func StreamOf(fd int) (Stream, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		return Stream{}, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	s := Stream{
		Sent:       info.Bytes_sent - info.Bytes_retrans,
		Received:   info.Bytes_received,
		Idle:       time.Duration(min(info.Last_data_sent, info.Last_data_recv)) * time.Millisecond,
		HalfClosed: info.State != unix.BPF_TCP_ESTABLISHED,
	}
	switch info.State {
	case unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSING, unix.BPF_TCP_TIME_WAIT:
		s.Received -= min(s.Received, 1) // the peer's FIN counts as a byte there
	}
	return s, nil
}
