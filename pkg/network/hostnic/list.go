package hostnic

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
)

// DefaultParent is where directories of cards are by custom.
const DefaultParent = "/run/gatekit"

// Lent is a card that is lent, as List shows it.
type Lent struct {
	Dir       string         `json:"dir"`
	Interface string         `json:"interface"`
	Mode      string         `json:"mode"`
	User      string         `json:"user"`
	Addresses []netip.Prefix `json:"addresses"`
	Gateways  []netip.Addr   `json:"gateways"`
	DNS       []netip.Addr   `json:"dns"`

	// Ready is false for what a Create or a Destroy left that did not come to its
	// end. Destroy mends it.
	Ready bool `json:"ready"`

	// Processes are those on the card, the children of gates among them.
	Processes []int `json:"processes"`
}

// List lists the cards that are lent on this host: those whose namespaces are bound
// to files anywhere, and those below DefaultParent with a state file. The error is of
// those that cannot be read; all others are listed nevertheless.
func List() ([]Lent, error) {
	var dirs []string
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("nsfs"))
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if name := filepath.Base(m.Mountpoint); name == usernsFile || name == netnsFile {
			dirs = append(dirs, filepath.Dir(m.Mountpoint))
		}
	}
	files, err := filepath.Glob(filepath.Join(DefaultParent, "*", stateFile))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		dirs = append(dirs, filepath.Dir(f))
	}
	slices.Sort(dirs)
	var errs error
	all := []Lent{}
	for _, dir := range slices.Compact(dirs) {
		l, err := examineLent(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue // somebody else's, or just gone
		}
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		all = append(all, l)
	}
	return all, errs
}

func examineLent(dir string) (Lent, error) {
	s, err := readState(dir)
	if err != nil {
		return Lent{}, err
	}
	l := Lent{
		Dir: dir, Interface: s.Card.Name, Mode: s.Mode, User: s.User,
		Addresses: append([]netip.Prefix{}, s.Addresses...),
		Gateways:  append([]netip.Addr{}, s.Gateways...),
		DNS:       append([]netip.Addr{}, s.Nameservers...),
		Ready:     s.Ready, Processes: []int{},
	}
	d := destruction{o: &DestroyOptions{Dir: dir}}
	users, err := d.userNamespace()
	l.Ready = l.Ready && users != nil && isNamespace(d.path(netnsFile))
	if users == nil || err != nil {
		return l, err
	}
	defer users.Close()
	pids, err := users.Processes()
	l.Processes = append(l.Processes, pids...)
	return l, err
}
