package tcp

// Buffer is memory for bytes of a stream, those of one segment at most. It is a link of
// a queue, too, so that a queue costs nothing beside it.
type Buffer struct {
	next  *Buffer
	bytes []byte // what it holds, a part of room
	room  []byte
	class int
}

// sizes are those of the buffers of a Pool: for questions and answers, for what is
// larger, and for streams, which come in frames of up to 64 KiB.
var sizes = [...]int{1 << 10, 8 << 10, 64 << 10}

// spare is how many bytes of each size a pool keeps for later.
const spare = 2 << 20

// Pool keeps buffers that were used, for one goroutine. Its zero value is empty.
type Pool struct {
	free [len(sizes)]*Buffer
	kept [len(sizes)]int // how many
}

// Get returns a buffer of n bytes, at most 64 KiB, with anything in it.
func (p *Pool) Get(n int) *Buffer {
	class := 0
	for n > sizes[class] {
		class++
	}
	b := p.free[class]
	if b == nil {
		b = &Buffer{room: make([]byte, sizes[class]), class: class}
	} else {
		p.free[class], b.next = b.next, nil
		p.kept[class]--
	}
	b.bytes = b.room[:n]
	return b
}

// Put takes a buffer back.
func (p *Pool) Put(b *Buffer) {
	if (p.kept[b.class]+1)*sizes[b.class] > spare {
		return
	}
	b.bytes = nil
	b.next, p.free[b.class] = p.free[b.class], b
	p.kept[b.class]++
}

// Clear gives all spare memory up.
func (p *Pool) Clear() { *p = Pool{} }

// Bytes are what the buffer holds.
func (b *Buffer) Bytes() []byte { return b.bytes }

// Cut leaves the first n bytes in the buffer.
func (b *Buffer) Cut(n int) { b.bytes = b.bytes[:n] }

// fits says whether a buffer of another size is enough for what this one holds.
func (b *Buffer) fits() bool { return b.class == 0 || len(b.bytes) > sizes[b.class-1] }

// queue is a queue of buffers. Its zero value is empty.
type queue struct {
	front, back *Buffer
	size        int // of all bytes
}

func (q *queue) push(b *Buffer) {
	b.next = nil
	if q.back == nil {
		q.front = b
	} else {
		q.back.next = b
	}
	q.back = b
	q.size += len(b.bytes)
}

// discard takes n bytes from the front, or all.
func (q *queue) discard(n int, p *Pool) {
	for n > 0 && q.front != nil {
		b := q.front
		if n < len(b.bytes) {
			b.bytes = b.bytes[n:]
			q.size -= n
			return
		}
		n -= len(b.bytes)
		q.size -= len(b.bytes)
		if q.front = b.next; q.front == nil {
			q.back = nil
		}
		p.Put(b)
	}
}

// append adds a copy of p, where it can behind what the last buffer holds.
func (q *queue) append(p []byte, pool *Pool) {
	if b := q.back; b != nil {
		held := len(b.bytes)
		n := copy(b.bytes[held:cap(b.bytes)], p)
		b.bytes = b.bytes[:held+n]
		q.size += n
		p = p[n:]
	}
	if len(p) > 0 {
		b := pool.Get(len(p))
		copy(b.bytes, p)
		q.push(b)
	}
}
