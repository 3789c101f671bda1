package hostnic

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The files of a directory.
const (
	usernsFile = "userns"
	netnsFile  = "netns"
	stateFile  = "state.json"
	lockFile   = "lock"
)

// state is the state file: all that it takes to run a gate on the card, and to give
// the card back. It is written, and on the disk, before anything of the card
// changes. The user may read it; only root writes it.
type state struct {
	// Version is of this format.
	Version int `json:"version"`

	// User and UID are to whom the card is lent.
	User string `json:"user"`
	UID  int    `json:"uid"`

	// Mode is ModeMove or ModeMacvlan.
	Mode string `json:"mode"`

	// Ready says that nothing is missing: a gate may use the card.
	Ready bool `json:"ready"`

	// Once says that the card is lent for one gate, which gives it back.
	Once bool `json:"once,omitempty"`

	// HostNetwork names the network namespace that the card is from, as
	// readlink(/proc/thread-self/ns/net) gives it.
	HostNetwork string `json:"hostNetwork"`

	// Card is the card as it was on the host. With ModeMacvlan it stays there.
	Card card `json:"card"`

	// Inside is the number of the interface inside; 0 until that is known.
	Inside int `json:"inside,omitempty"`

	// Made is when the state of the card was taken.
	Made time.Time `json:"made"`

	// DHCP says that gates ask for an address when they start, and keep it while they
	// run.
	DHCP bool `json:"dhcp,omitempty"`

	// Release gives the lease of Create back. Gates that run on the card later get
	// the same address again, as a rule.
	Release *release `json:"release,omitempty"`

	// Addresses and Gateways are those inside, for people.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"`

	// Nameservers and Search become the resolv.conf of gates.
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	Search      []string     `json:"search,omitempty"`

	// FixedDNS says that DHCP does not change them.
	FixedDNS bool `json:"fixedDNS,omitempty"`
}

// stateVersion is that of this program.
const stateVersion = 1

// readState reads the state file of dir. The error wraps os.ErrNotExist where
// there is none.
func readState(dir string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	s := &state{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, stateFile), err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("%s has version %d, and this program knows %d: use the gatectl that made it", filepath.Join(dir, stateFile), s.Version, stateVersion)
	}
	return s, nil
}

// write replaces the state file of dir in one step. When it returns, file and name
// are on the disk.
func (s *state) write(dir string) error {
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, stateFile)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	return err
}

// syncDir has the names in a directory on the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	// Not every file system can (EINVAL); where it cannot, there is no disk.
	if errors.Is(err, unix.EINVAL) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// lock takes the lock of dir, for this process alone or, if shared, beside others
// who share it. The error is errLocked where somebody is in the way. Closing the
// file lets go.
func lock(dir string, shared bool) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if err == unix.EWOULDBLOCK {
		return nil, errLocked
	}
	return nil, os.NewSyscallError("flock", err)
}

// errLocked is a lock that somebody else has.
var errLocked = errors.New("in use")
