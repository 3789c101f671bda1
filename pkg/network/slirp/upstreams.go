package slirp

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gatekit/gatekit/internal/trail"
)

// upstreamSource knows the DNS servers to ask, and the search domains and options
// of the namespace: those of Options, and for what these leave out those of the
// host's resolv.conf, which follow keeps current.
type upstreamSource struct {
	fixed resolvConf // of Options; its empty fields are the host's
	path  string

	host atomic.Pointer[resolvConf]
	turn atomic.Uint32 // counts queries, for "rotate"

	// changed gets a value when the host's file may have.
	changed chan struct{}
}

// newUpstreamSource reads the host's file once. A host without one has the
// resolver on its loopback (resolv.conf(5)).
func newUpstreamSource(o Options, path string) *upstreamSource {
	u := &upstreamSource{
		fixed:   resolvConf{upstreams: o.Upstreams, search: o.Search, options: o.Options},
		path:    path,
		changed: make(chan struct{}, 1),
	}
	conf, err := readResolvConf(path)
	if err != nil {
		conf = parseResolvConf(nil)
	}
	u.host.Store(&conf)
	return u
}

// conf is the configuration now.
func (u *upstreamSource) conf() resolvConf {
	conf, host := u.fixed, u.host.Load()
	if len(conf.upstreams) == 0 {
		conf.upstreams = host.upstreams
	}
	if len(conf.search) == 0 {
		conf.search = host.search
	}
	if len(conf.options) == 0 {
		conf.options = host.options
	}
	return conf
}

// reload reads the host's file again, and says so. A file that vanished, or that is empty,
// leaves all as it was: it is on its way to be replaced.
func (u *upstreamSource) reload() {
	conf, err := readResolvConf(u.path)
	if err == nil {
		u.host.Store(&conf)
	}
	select {
	case u.changed <- struct{}{}:
	default: // the reader has not come to the last one
	}
}

// Limits of the resolver's options, as in the C library.
const (
	defaultWait     = 5 * time.Second
	maxWait         = 30 * time.Second
	defaultAttempts = 2
	maxAttempts     = 5
)

// Bounds of what one upstream is given.
const (
	shortestTry = 250 * time.Millisecond
	longestTry  = 2 * time.Second
)

// schedule is how a query is asked.
type schedule struct {
	upstreams []netip.AddrPort // in the order in which to ask them
	attempts  int              // rounds
	timeout   time.Duration    // of one upstream in one round
	budget    time.Duration    // of all
}

// schedule plans for one query. "timeout" is how long the namespace's resolver
// waits for us, since its resolv.conf has the same options: all upstreams and
// attempts have to share that, less a tenth for the way.
func (u *upstreamSource) schedule() schedule {
	conf := u.conf()
	s := schedule{upstreams: conf.upstreams, attempts: defaultAttempts, timeout: longestTry}
	wait, rotate := defaultWait, false
	for _, o := range conf.options {
		name, value, _ := strings.Cut(o, ":")
		n, err := strconv.Atoi(value)
		switch {
		case name == "rotate":
			rotate = true
		case err != nil || n < 1:
		case name == "timeout":
			wait = time.Duration(min(n, int(maxWait/time.Second))) * time.Second
			s.timeout = wait
		case name == "attempts":
			s.attempts = min(n, maxAttempts)
		}
	}
	s.budget = wait - wait/10
	share := s.budget / time.Duration(s.attempts*len(s.upstreams))
	s.timeout = max(shortestTry, min(s.timeout, share))
	if rotate {
		first := int(u.turn.Add(1)-1) % len(s.upstreams)
		s.upstreams = slices.Concat(s.upstreams[first:], s.upstreams[:first])
	}
	return s
}

// follow keeps the host's part current until ctx is done.
func (u *upstreamSource) follow(ctx context.Context, log *slog.Logger) {
	trail.Follow(ctx, u.path, log, u.reload)
}
