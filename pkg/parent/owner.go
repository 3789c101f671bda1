package parent

import (
	"context"
	"fmt"
	osuser "os/user"
	"strconv"
)

// Owner is a user for whom another one, who is root, makes a user namespace: what
// hostnic.CreateOptions asks for.
type Owner struct {
	// Name, UID and GID are the user's.
	Name     string
	UID, GID int

	ids idMaps
}

// FindOwner finds a user by name or uid, and the ids that a gate of that user maps.
// It says what the user lacks.
func FindOwner(ctx context.Context, name string) (Owner, error) {
	u, err := osuser.Lookup(name)
	if err != nil {
		byID, idErr := osuser.LookupId(name)
		if idErr != nil {
			return Owner{}, fmt.Errorf("there is no user called %q", name)
		}
		u = byID
	}
	o := Owner{Name: u.Username}
	if o.UID, err = strconv.Atoi(u.Uid); err != nil {
		return o, err
	}
	if o.GID, err = strconv.Atoi(u.Gid); err != nil {
		return o, err
	}
	c := currentCaller("/proc")
	c.uid, c.gid, c.name = o.UID, o.GID, o.Name
	// Root writes the maps itself, without newuidmap.
	return o, o.ids.addSubIDs(ctx, "auto", c)
}

// MapIDs maps the ids of the user namespace of the process pid.
func (o Owner) MapIDs(ctx context.Context, pid int) error { return o.ids.write(ctx, pid) }
