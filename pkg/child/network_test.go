package child

import (
	"testing"

	"github.com/moby/sys/user"
)

func TestPingSocketsAreForAllGroupsInside(t *testing.T) {
	for name, c := range map[string]struct {
		maps []user.IDMap
		want string
	}{
		"one id":                       {[]user.IDMap{{ID: 0, ParentID: 1000, Count: 1}}, "0 0"},
		"subordinate ids":              {[]user.IDMap{{ID: 0, ParentID: 1000, Count: 1}, {ID: 1, ParentID: 100000, Count: 65536}}, "0 65536"},
		"some are below the caller's":  {[]user.IDMap{{ID: 0, ParentID: 200000, Count: 1}, {ID: 1, ParentID: 100000, Count: 65536}}, "0 0"},
		"ranges that are not in order": {[]user.IDMap{{ID: 0, ParentID: 1000, Count: 1}, {ID: 1, ParentID: 500000, Count: 10}, {ID: 11, ParentID: 100000, Count: 65536}}, "0 10"},
	} {
		if got := pingGroups(c.maps); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
