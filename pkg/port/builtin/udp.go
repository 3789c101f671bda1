package builtin

import (
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/port"
)

// The exchange passes datagrams between all UDP sockets of the host and the
// flows' sockets in the namespace, in one loop.
//
// A round takes up to a batch of datagrams from each socket that is ready.
// Runs of datagrams of one flow come in with one message where the sender or the
// network card made them so, and go out with one call. Nothing is allocated and
// nothing waits: what a full queue does not take is dropped, as on any network.
// The batch's memory is there only while there are flows.
//
// A service that is not there refuses (ICMP port unreachable, which a connected
// socket reports as ECONNREFUSED, of a loopback's at once). The flow lives on, for the
// service may start; where the spec leaves more than one address open, the flow tries
// the next. What is refused in the client's name may be a firewall's doing, so that the
// same address is tried by the fast path first.

// Limits of the exchange.
const (
	batchLength  = 32          // datagrams taken at once
	datagramSize = 64 << 10    // bytes, more than any datagram holds
	maxWaiting   = 256         // flows that wait for a socket at one time
	maxPending   = 8           // datagrams that such a flow keeps
	turnSpan     = time.Second // in which a flow tries each of its targets once
)

// hostSocket is a bound UDP socket of a forward, owned by the exchange's loop.
type hostSocket struct {
	fd      int
	family  port.Families
	forward *forward
	token   uint64
	flows   map[linux.Arrival]*flow // nil while there are none

	use  sync.RWMutex // guards gone, and fd against being closed while it is used
	gone bool
}

type exchange struct {
	driver *Driver
	loop   *loop

	// All below belongs to the loop.
	sockets map[*hostSocket]struct{}
	batch   *linux.Batch // nil while there are no flows
	flows   int
	waiting int
	ages    flowAges
	tries   int       // datagrams that were tried since counted
	counted time.Time // when that was, a second ago at most where there are any
}

func newExchange(d *Driver) (*exchange, error) {
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	return &exchange{
		driver:  d,
		loop:    l,
		sockets: map[*hostSocket]struct{}{},
		ages:    newFlowAges(ofAll),
	}, nil
}

// run serves until the loop is stopped, and closes all sockets then.
func (x *exchange) run() error {
	defer x.loop.close()
	err := x.loop.run(x.expire)
	for s := range x.sockets {
		x.closeSocket(s)
	}
	return err
}

// add takes over the UDP sockets of forwards. They are the exchange's from here
// on, also when it fails.
func (x *exchange) add(forwards []*forward) error {
	var err error
	if !x.loop.do(func() {
		for _, fw := range forwards {
			for _, s := range fw.sockets {
				x.sockets[s] = struct{}{}
				if err == nil {
					s.token, err = x.loop.watch(s.fd, unix.EPOLLIN, func(uint32) { x.fromClients(s) })
				}
			}
		}
	}) {
		for _, fw := range forwards {
			for _, s := range fw.sockets {
				unix.Close(s.fd)
			}
		}
		return errNotRunning
	}
	return err
}

// remove closes the UDP sockets of forwards, and their flows.
func (x *exchange) remove(forwards []*forward) {
	x.loop.do(func() {
		for _, fw := range forwards {
			for _, s := range fw.sockets {
				x.closeSocket(s)
			}
		}
	})
}

func (x *exchange) closeSocket(s *hostSocket) {
	if _, ok := x.sockets[s]; !ok {
		return
	}
	delete(x.sockets, s)
	for _, f := range s.flows {
		x.closeFlow(f)
	}
	x.loop.unwatch(s.fd, s.token)
	s.use.Lock()
	s.gone = true
	unix.Close(s.fd)
	s.use.Unlock()
}

// fromClients takes what clients have sent to s.
func (x *exchange) fromClients(s *hostSocket) {
	if x.batch == nil {
		x.batch = linux.NewBatch(batchLength, datagramSize)
	}
	n, err := x.batch.Receive(s.fd)
	if err != nil {
		return // nothing there after all, or an error that belongs to one datagram
	}
	for first := 0; first < n; {
		arrival := x.batch.Arrival(first)
		last := first + 1
		for last < n && x.batch.Arrival(last) == arrival {
			last++
		}
		if f := x.flowFor(s, arrival); f != nil {
			x.toService(f, first, last)
		} else {
			x.driver.count.dropped.Add(int64(last - first))
		}
		first = last
	}
}

// open gives f a socket of the namespace, now or when one comes.
func (x *exchange) open(f *flow) {
	if x.openKept(f) {
		return
	}
	k := kindFor(f.targets[0].Addr().Is6(), unix.SOCK_DGRAM)
	if f.socket.forward.status.Spec.Reverse {
		fd, err := x.driver.hostSide(k)
		x.opened(f, fd, err)
		return
	}
	if file, ok := x.driver.pool.try(k); ok {
		fd, err := detachFile(file)
		x.opened(f, fd, err)
		return
	}
	if x.waiting >= maxWaiting {
		x.closeFlow(f)
		return
	}
	x.waiting++
	x.driver.wg.Go(func() {
		fd := -1
		file, err := x.driver.pool.take(x.driver.ctx, k)
		if err == nil {
			fd, err = detachFile(file)
		}
		if !x.loop.post(func() {
			x.waiting--
			x.opened(f, fd, err)
		}) && fd >= 0 {
			unix.Close(fd)
		}
	})
}

// opened connects the socket that came for f, and sends what f has kept.
func (x *exchange) opened(f *flow, fd int, err error) {
	if f.closed { // closed in the meantime
		if err == nil {
			unix.Close(fd)
		}
		return
	}
	if err == nil {
		if err = linux.Connect(fd, f.targets[0]); err == nil {
			err = linux.Connected(fd)
		}
		if err == nil {
			f.token, err = x.loop.watch(fd, unix.EPOLLIN, func(uint32) { x.fromService(f) })
		}
		if err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		x.driver.log.warn("cannot reach the service; datagrams are dropped",
			"forward", f.socket.forward.status.ID, "spec", f.socket.forward.status.Spec, "error", err)
		x.driver.count.dropped.Add(int64(len(f.pending)))
		f.pending = nil
		if !x.turn(f) {
			x.closeFlow(f)
		}
		return
	}
	f.fd = fd
	pending := f.pending
	f.pending = nil
	for _, data := range pending {
		x.sendOne(f, data)
	}
}

// turn lets f try its present target by the fast path, where that was refused in the
// client's name, or else the next of its targets, unless it has just tried them all. It
// reports whether it does.
func (x *exchange) turn(f *flow) bool {
	if f.answered {
		return false
	}
	if x.loop.now.Sub(f.turned) >= turnSpan {
		f.turned, f.turns = x.loop.now, 0
	}
	more := true
	if f.kept != nil && f.turns < len(f.targets) {
		f.plain = true
	} else {
		f.turns++
		more = f.turns < len(f.targets)
		if !more && !f.plain {
			return false
		}
		// After the last one too: a service that starts is to see its client.
		f.targets, f.plain = append(f.targets[1:], f.targets[0]), false
	}
	x.closeFD(f)
	x.open(f)
	return more && !f.closed
}

// refusedAtOnce says whether the service has refused what was just sent on the fast path,
// as far as that matters.
func (f *flow) refusedAtOnce() bool {
	return !f.answered && (len(f.targets) > 1 || f.stranger) && errors.Is(linux.SocketError(f.fd), unix.ECONNREFUSED)
}

// taken notes that f's service takes what is sent on the fast path.
func (f *flow) taken() {
	if f.stranger && !f.stray {
		f.stray = true
		f.socket.forward.strays.begin()
	}
}

// toService sends the datagrams first to last-1 of the batch to f's service.
func (x *exchange) toService(f *flow, first, last int) {
	for tries := 0; first < last; {
		if f.closed {
			x.driver.count.dropped.Add(int64(last - first))
			return
		}
		if f.kept != nil {
			first = x.toKept(f, first, last)
			continue
		}
		if f.fd < 0 {
			for i := first; i < last; i++ {
				x.sendOne(f, slices.Clone(x.batch.Data(i)))
			}
			return
		}
		n, err := x.batch.Send(f.fd, first, last)
		refused := err == nil && f.refusedAtOnce()
		if refused && x.turn(f) {
			continue // all of them again, to the next address
		}
		first += n
		switch {
		case refused:
		case err == nil:
			f.taken()
		case errors.Is(err, unix.ECONNREFUSED) && tries == 0:
			// The answer to an earlier datagram; nothing was sent.
			tries++
			x.turn(f)
		default:
			x.driver.count.dropped.Add(1)
			first++
		}
	}
}

// sendOne sends a datagram that is not in the batch, and is f's from here on, to f's
// service, or keeps it where it has to wait.
func (x *exchange) sendOne(f *flow, payload []byte) {
	switch {
	case f.kept != nil:
		f.kept.Send(payload)
	case f.fd >= 0:
		_, err := unix.SendmsgN(f.fd, payload, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case err != nil:
			x.driver.count.dropped.Add(1)
		case !f.refusedAtOnce():
			f.taken()
		case x.turn(f):
			x.sendOne(f, payload)
		}
	case !f.closed && len(f.pending) < maxPending:
		f.pending = append(f.pending, payload)
	default:
		x.driver.count.dropped.Add(1)
	}
}

// fromService takes what the service has sent to f's client.
func (x *exchange) fromService(f *flow) {
	n, err := x.batch.Receive(f.fd)
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) {
			x.turn(f)
		}
		return
	}
	f.answered = true
	x.touch(f, f.lasting)
	for first := 0; first < n; {
		sent, err := x.batch.Answer(f.socket.fd, first, n, f.arrival)
		first += sent
		if err != nil {
			x.driver.count.dropped.Add(1)
			first++
		}
	}
}
