package parent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/port"
)

// ledger keeps the forwards of a gate in its state dir's ports.json, so that the
// next gate there can bring them back (Options.RestorePorts).
//
// The file is a list of specs, as the API writes them, in the order in which they
// were asked for. It is replaced after each change, before the change is
// answered, and in one step: a new file is written, synced and renamed. So it
// always holds the forwards of one moment, whenever the gate is killed. Changes
// that come while the file is being written share the next writing. No forwards,
// no file.
//
// Automatic forwards are not in it, for they come with what listens; that they are
// wanted is, as an entry of its own.
//
//	the gate is killed          the file stays
//	the gate ends               it stays for RestorePorts, else it goes
//	the next gate starts        reads it for RestorePorts; then it is that gate's
type ledger struct {
	driver port.Driver
	path   string
	log    *slog.Logger

	// turn holds one token, taken by who writes the file.
	turn chan struct{}

	mu sync.Mutex // guards what is below
	// picked has the ids of the forwards that are for the file, with entry.Picked, and
	// auto says that automatic ones are wanted.
	picked map[int]bool
	auto   bool
	// next is closed when the file has been written that the changes are for which are
	// made now; nil while there are none.
	next chan struct{}
}

// entry is one forward in the file.
type entry struct {
	api.PortSpec
	// Picked says that port 0 was asked for, and ParentPort was free.
	Picked bool `json:"picked,omitempty"`
}

// automatic is the entry that says that automatic forwards are wanted.
var automatic = entry{PortSpec: api.PortSpec{Proto: "auto"}}

func newLedger(driver port.Driver, path string, log *slog.Logger) *ledger {
	return &ledger{driver: driver, path: path, log: log, turn: make(chan struct{}, 1), picked: map[int]bool{}}
}

// add puts forwards in place, all or none, and saves them.
func (l *ledger) add(ctx context.Context, specs []port.Spec) ([]port.Status, error) {
	added, err := l.put(ctx, specs, func(i int) bool { return specs[i].ParentPort == 0 })
	if err == nil {
		l.save()
	}
	return added, err
}

// put puts forwards in place, all or none, and notes them for the next save. picked
// says of which the port was free.
func (l *ledger) put(ctx context.Context, specs []port.Spec, picked func(i int) bool) ([]port.Status, error) {
	added, err := l.driver.Add(ctx, specs)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, s := range added {
		l.picked[s.ID] = picked(i)
	}
	return added, nil
}

// putEntries does the same with entries of the file.
func (l *ledger) putEntries(ctx context.Context, wanted []entry) ([]port.Status, error) {
	specs := make([]port.Spec, len(wanted))
	for i, e := range wanted {
		specs[i] = port.Spec(e.PortSpec)
	}
	return l.put(ctx, specs, func(i int) bool { return wanted[i].Picked })
}

// remove takes forwards away, all or none.
func (l *ledger) remove(ctx context.Context, ids []int, drain time.Duration) error {
	if err := l.driver.Remove(ctx, ids, drain); err != nil {
		return err
	}
	l.save()
	l.mu.Lock() // not before, for who writes meanwhile may have listed them
	defer l.mu.Unlock()
	for _, id := range ids {
		delete(l.picked, id)
	}
	return nil
}

// setAuto notes whether automatic forwards are wanted, and saves that.
func (l *ledger) setAuto(on bool) {
	l.mu.Lock()
	l.auto = on
	l.mu.Unlock()
	l.save()
}

// start puts the first forwards in place: all those to publish, and what can be
// had of those in the file where they are to be restored. Of the latter, one
// that is published anyway does not come twice, and a free port that was picked
// for a published one is tried again. The file changes at the end: who is killed
// before that has lost nothing. auto says that automatic forwards were wanted.
func (l *ledger) start(ctx context.Context, publish []port.Spec, restore bool) (auto bool, err error) {
	var old []entry
	if restore {
		if old, err = readPorts(l.path); err != nil {
			l.log.Warn("forwards cannot be restored", "error", err)
		}
	}
	if i := slices.Index(old, automatic); i >= 0 {
		auto, old = true, slices.Delete(old, i, i+1)
	}
	l.auto = auto // nobody else has the ledger yet
	first := entriesOf(publish)
	wanted, rest := again(first, old)
	_, err = l.putEntries(ctx, wanted)
	if errors.Is(err, port.ErrConflict) && !slices.Equal(wanted, first) {
		_, err = l.putEntries(ctx, first) // a picked port is another's by now
	}
	if err != nil {
		return false, err
	}
	for _, e := range rest {
		spec := port.Spec(e.PortSpec)
		added, err := l.putEntries(ctx, []entry{e})
		switch {
		case ctx.Err() != nil:
			return false, nil // the end of the gate, not its cause
		case err != nil:
			l.log.Warn("a forward cannot be restored", "spec", spec, "error", err)
		default:
			l.log.Debug("a forward is restored", "id", added[0].ID, "spec", spec)
		}
	}
	l.save()
	return auto, nil
}

// entriesOf are the entries of forwards that are asked for.
func entriesOf(specs []port.Spec) []entry {
	list := make([]entry, len(specs))
	for i, s := range specs {
		list[i] = entry{api.PortSpec(s), s.ParentPort == 0}
	}
	return list
}

// again returns what is asked for, with the ports that were picked the last time,
// and the old entries that are not.
func again(asked, old []entry) (wanted, rest []entry) {
	wanted, rest = slices.Clone(asked), slices.Clone(old)
	for i, w := range wanted {
		j := slices.IndexFunc(rest, func(e entry) bool {
			if w.Picked && e.Picked {
				e.ParentPort = 0
			}
			return e.PortSpec == w.PortSpec
		})
		if j >= 0 {
			wanted[i].ParentPort = rest[j].ParentPort
			rest = slices.Delete(rest, j, j+1)
		}
	}
	return wanted, rest
}

// readPorts reads the file. None is an empty one.
func readPorts(path string) ([]entry, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var entries []entry
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return entries, nil
}

// save returns when a file is in place that was written after it was called. The
// first who calls it while another writes will write next, and those who follow wait
// for that.
func (l *ledger) save() {
	l.mu.Lock()
	written := l.next
	first := written == nil
	if first {
		written = make(chan struct{})
		l.next = written
	}
	l.mu.Unlock()
	if !first {
		<-written
		return
	}
	l.turn <- struct{}{}
	l.mu.Lock()
	l.next = nil // what changes from here on may come too late for this one
	l.mu.Unlock()
	l.write()
	<-l.turn
	close(written)
}

// write writes the forwards that are in place. That the file cannot be written does
// not undo a change that was made. The caller has the turn.
func (l *ledger) write() {
	there := l.driver.List()
	l.mu.Lock()
	there = slices.DeleteFunc(there, func(s port.Status) bool {
		_, ok := l.picked[s.ID]
		return !ok
	})
	auto := l.auto
	l.mu.Unlock()
	var err error
	if len(there) == 0 && !auto {
		err = removePorts(l.path)
	} else {
		err = writePorts(l.path, l.entries(there, auto))
	}
	if err != nil {
		l.log.Warn("the forwards cannot be kept for the next start", "error", err)
	}
}

// entries are those of the forwards, and that automatic ones are wanted.
func (l *ledger) entries(forwards []port.Status, auto bool) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		for _, s := range forwards {
			l.mu.Lock()
			picked := l.picked[s.ID]
			l.mu.Unlock()
			if !yield(entry{api.PortSpec(s.Spec), picked}) {
				return
			}
		}
		if auto {
			yield(automatic)
		}
	}
}

// writePorts replaces the file in one step.
func writePorts(path string, list iter.Seq[entry]) (err error) {
	f, err := os.OpenFile(unfinished(path), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err = encodePorts(f, list); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// encodePorts writes a list, an entry a line. There may be thousands, so that the
// text is not made as a whole.
func encodePorts(w io.Writer, list iter.Seq[entry]) error {
	text := bufio.NewWriter(w) // keeps the first error
	encoder, before := json.NewEncoder(text), "["
	var e entry // one for all, as it is on the heap
	for e = range list {
		text.WriteString(before)
		if err := encoder.Encode(&e); err != nil {
			return err
		}
		before = ","
	}
	text.WriteString("]\n")
	return text.Flush()
}

// syncDir makes the new name last.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// removePorts removes the file, and what a killed gate had not finished.
func removePorts(path string) error {
	var errs []error
	for _, name := range [...]string{path, unfinished(path)} {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// unfinished is where the file is written before it gets its name.
func unfinished(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
}
