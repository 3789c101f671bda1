package slirp

import (
	"bytes"
	"errors"
	"math"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gatekit/gatekit/pkg/port"
)

// A firewall inside may drop what comes in a client's name without a word, and a service
// of UDP may have nothing to say: from outside the two look the same. The kernel knows
// better. It counts for each network namespace the packets that come in, those of them
// that are delivered, and the bytes that come and go (RFC 4293; net/ipv4/proc.c and
// net/ipv6/proc.c). What we write to lo or the TAP it takes to its end on our own thread:
// before the write returns the datagram is in the service's queue, on its way out again, or
// dropped. So the counters before and after the write tell of it:
//
//	                                                 received  delivered  bytes out
//	taken by a socket, or by none (and refused)          1         1       0, or some
//	passed on, by DNAT or otherwise                      1         0       some
//	dropped by PREROUTING, INPUT, FORWARD, a reverse
//	path filter or a route                               1         0       0
//
// The bytes are looked at because newer kernels count a packet as forwarded before FORWARD
// has seen it. Others' packets move the same counters, so that nothing is told unless a
// single packet was received, of the very length of ours. That one dropped packet of that
// length comes in the place of ours, which is still on its way, takes that the kernel is too
// busy for it and has nothing else to count in that moment; the caller asks for more than
// one drop.
//
// A rule may also hand a packet to a program (NFQUEUE), which is no drop, if it looks like
// one at first. When the program lets it go, one packet more is delivered than received.
// The next drop is not believed then. This fails where other packets are dropped meanwhile,
// or where the program lets a packet go on to a container.
//
// A packet that is gone before it is received (traffic control, a bridge's other port) is
// not counted at all, and nothing is told of it; neither is of drops in a container's own
// namespace, which has its own counters.

// tallyFiles is the number of the files of a tally (OpenTally). The last may be missing,
// where there is no IPv6.
const tallyFiles = 3

// tallySize is more, in bytes, than the kernel says in one of them.
const tallySize = 32 << 10

// tally reads what a network namespace counts.
type tally struct {
	files []*os.File // in the order of OpenTally
	count func(ipv6 bool) (counted, error)

	mu   sync.Mutex // guards what is below; held while a datagram is sent, which does not wait
	text []byte
	owed [2]int64 // counted.owed when something was dropped last, by family
}

// counted is what one family of a namespace has counted since it began.
type counted struct {
	received, delivered uint64 // packets
	in, out             uint64 // bytes of packets, with their IP headers
}

// owed is how many packets were received more than delivered.
func (c counted) owed() int64 { return int64(c.received - c.delivered) }

// newTally reads the files, which it owns from here on.
func newTally(files []*os.File) *tally {
	t := &tally{files: files, owed: [2]int64{math.MinInt64, math.MinInt64}}
	t.count = t.read
	return t
}

func (t *tally) close() error {
	var errs []error
	for _, f := range t.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// watch has a packet of so many bytes sent, and tells what has become of it.
func (t *tally) watch(ipv6 bool, size int, send func()) port.Fate {
	if !t.mu.TryLock() {
		send()
		return port.FateUnknown
	}
	defer t.mu.Unlock()
	before, err := t.count(ipv6)
	send()
	if err != nil {
		return port.FateUnknown
	}
	after, err := t.count(ipv6)
	if err != nil || after.received-before.received != 1 || after.in-before.in != uint64(size) {
		return port.FateUnknown
	}
	if after.delivered != before.delivered || after.out != before.out {
		return port.FatePassed
	}
	owed := &t.owed[0]
	if ipv6 {
		owed = &t.owed[1]
	}
	late := before.owed() < *owed
	*owed = after.owed()
	if late {
		return port.FatePassed
	}
	return port.FateDropped
}

// Try implements port.Datagrams.
func (f *inboundFlow) Try(payload []byte) port.Fate {
	t := f.in.tally.Load()
	if t == nil {
		f.Send(payload)
		return port.FateUnknown
	}
	ipv6, size := f.key.client.Addr().Is6(), header.UDPMinimumSize+len(payload)
	if ipv6 {
		size += header.IPv6MinimumSize
	} else {
		size += header.IPv4MinimumSize
	}
	return t.watch(ipv6, size, func() { f.Send(payload) })
}

// errTally is that the kernel says something else than expected.
var errTally = errors.New("the namespace's counters do not look as they should")

// read asks the kernel. The caller holds mu.
func (t *tally) read(ipv6 bool) (c counted, err error) {
	if ipv6 {
		snmp6 := t.load(2)
		c = counted{snmp6.row("Ip6InReceives"), snmp6.row("Ip6InDelivers"), snmp6.row("Ip6InOctets"), snmp6.row("Ip6OutOctets")}
		return c, snmp6.err
	}
	snmp := t.load(0)
	c.received, c.delivered = snmp.column("Ip:", "InReceives"), snmp.column("Ip:", "InDelivers")
	if snmp.err != nil {
		return c, snmp.err
	}
	netstat := t.load(1)
	c.in, c.out = netstat.column("IpExt:", "InOctets"), netstat.column("IpExt:", "OutOctets")
	return c, netstat.err
}

// tallyText is what the kernel says in one file, until the next is loaded. err is the
// first that was met.
type tallyText struct {
	text []byte
	err  error
}

// load reads the i-th file from its beginning, which has the kernel count anew.
func (t *tally) load(i int) *tallyText {
	if i >= len(t.files) {
		return &tallyText{err: errTally}
	}
	if t.text == nil {
		t.text = make([]byte, tallySize)
	}
	raw, err := t.files[i].SyscallConn()
	if err != nil {
		return &tallyText{err: err}
	}
	var n int
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.Pread(int(fd), t.text, 0) }); cerr != nil {
		err = cerr
	}
	if err == nil && n == len(t.text) {
		err = errTally
	}
	return &tallyText{t.text[:max(n, 0)], err}
}

// column is a value of a text in which a line of names is followed by one of values, both
// of which begin with the name of their group.
func (t *tallyText) column(group, name string) uint64 {
	at := -1
	for line := range bytes.Lines(t.text) {
		if !bytes.HasPrefix(line, []byte(group)) {
			continue
		}
		fields := bytes.Fields(line)
		if at >= 0 && at < len(fields) {
			return t.number(fields[at])
		}
		at = slices.IndexFunc(fields, func(f []byte) bool { return string(f) == name })
	}
	return t.number(nil)
}

// row is a value of a text in which each line is a name and its value.
func (t *tallyText) row(name string) uint64 {
	for line := range bytes.Lines(t.text) {
		if fields := bytes.Fields(line); len(fields) == 2 && string(fields[0]) == name {
			return t.number(fields[1])
		}
	}
	return t.number(nil)
}

func (t *tallyText) number(b []byte) uint64 {
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil && t.err == nil {
		t.err = errTally
	}
	return n
}
