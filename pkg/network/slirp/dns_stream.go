package slirp

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// DNS over TCP (RFC 7766): messages with their length before them, several on a
// connection, answered as their answers come.

const (
	// maxStreams caps the namespace's connections, maxPipelined the queries of
	// one that are under way.
	maxStreams   = 256
	maxPipelined = 32

	// streamIdle ends a connection without queries, and a transfer of a zone that
	// does not go on.
	streamIdle = 30 * time.Second

	// streamWrite bounds the wait for a reader.
	streamWrite = 10 * time.Second
)

// stream answers the queries of a connection, which it owns. It does not block.
func (d *dnsForwarder) stream(conn net.Conn) {
	select {
	case d.streams <- struct{}{}:
	default:
		d.fullStreams.add()
		d.fullStreams.tell()
		conn.Close()
		return
	}
	d.running.Go(func() {
		defer func() { <-d.streams }()
		defer conn.Close()
		release := context.AfterFunc(d.ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		defer release()
		s := &dnsStream{conn: conn, room: make(chan struct{}, maxPipelined)}
		// The namespace may have ended its side, and still waits for answers.
		defer s.queries.Wait()
		d.readQueries(s)
	})
}

// dnsStream is a connection of the namespace.
type dnsStream struct {
	conn    net.Conn
	room    chan struct{} // one for each query under way
	queries sync.WaitGroup
	writing sync.Mutex // guards writes to conn
}

// readQueries starts an answer for each query, until there are no more.
func (d *dnsForwarder) readQueries(s *dnsStream) {
	r := bufio.NewReader(s.conn)
	for {
		s.conn.SetReadDeadline(time.Now().Add(streamIdle))
		if d.ctx.Err() != nil {
			return
		}
		msg, err := readMessage(r)
		if err != nil {
			return
		}
		for _, slots := range []chan struct{}{s.room, d.slots} {
			select {
			case slots <- struct{}{}:
			case <-d.ctx.Done():
				return
			}
		}
		s.queries.Go(func() {
			defer func() { <-d.slots; <-s.room }()
			d.answerStream(s, msg)
		})
	}
}

// answerStream answers one query.
func (d *dnsForwarder) answerStream(s *dnsStream, msg []byte) {
	answer, more := d.exchange(msg, d.askTCP)
	if more != nil {
		defer more.Close()
		release := context.AfterFunc(d.ctx, func() { more.SetDeadline(time.Unix(1, 0)) })
		defer release()
	}
	for answer != nil && s.write(d.ctx, answer) == nil && more != nil {
		more.SetDeadline(time.Now().Add(streamIdle))
		if d.ctx.Err() != nil {
			return
		}
		answer, _ = readMessage(more) // nil at the end
	}
}

// write sends a message.
func (s *dnsStream) write(ctx context.Context, msg []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.conn.SetWriteDeadline(time.Now().Add(streamWrite))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return writeMessage(s.conn, msg)
}

// askTCP is an asker over TCP. The answer to a query for the transfer of a zone
// has more messages, until the upstream ends the connection.
func (d *dnsForwarder) askTCP(ctx context.Context, upstream netip.AddrPort, msg []byte) ([]byte, net.Conn, error) {
	conn, release, err := d.dial(ctx, "tcp", upstream)
	if err != nil {
		return nil, nil, err
	}
	answer, err := exchangeMessage(conn, msg)
	// Where ctx has ended, the deadline is, or will be, in the past.
	if !release() && err == nil {
		err = ctx.Err()
	}
	if err == nil && isTransfer(msg) {
		return answer, conn, nil
	}
	conn.Close()
	return answer, nil, err
}

// exchangeMessage sends a query and returns its answer.
func exchangeMessage(conn net.Conn, msg []byte) ([]byte, error) {
	if err := writeMessage(conn, msg); err != nil {
		return nil, err
	}
	asked, _ := parseDNSHeader(msg)
	for {
		answer, err := readMessage(conn)
		if err != nil {
			return nil, err
		}
		if h, _ := parseDNSHeader(answer); h.response && h.id == asked.id {
			return answer, nil
		}
	}
}

// readMessage reads a message, which has a header at least.
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	if len(msg) < dnsHeaderSize {
		return nil, io.ErrUnexpectedEOF
	}
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, err
	}
	return msg, nil
}

// writeMessage writes a message with one call, so that it is not two segments.
func writeMessage(w io.Writer, msg []byte) error {
	b := make([]byte, 0, 2+len(msg))
	b = binary.BigEndian.AppendUint16(b, uint16(len(msg)))
	_, err := w.Write(append(b, msg...))
	return err
}
