package parent

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/user"
)

var alice = caller{uid: 1000, gid: 1000, name: "alice"}

// writeFile makes a file with text and returns its path.
func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRangesAreFoundByNameAndByUIDInTheOrderOfTheFile(t *testing.T) {
	kind := subKind{file: writeFile(t, "bob:1:1\nalice:500000:10\n1000:100000:65536\n# alice:9:9\nalice:700000:5\n")}
	got, err := staticSubIDs(alice, kind)
	if err != nil {
		t.Fatal(err)
	}
	want := []IDMap{{1, 500000, 10}, {11, 100000, 65536}, {65547, 700000, 5}}
	if maps := inOrder(got); !slices.Equal(maps, want) {
		t.Errorf("got %v, want %v", maps, want)
	}
}

func TestAMissingFileHoldsNoRanges(t *testing.T) {
	got, err := staticSubIDs(alice, subKind{file: filepath.Join(t.TempDir(), "none")})
	if err != nil || len(got) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestTooFewIDsAreRefusedWithTheCommandThatAddsMore(t *testing.T) {
	kind := subKind{file: writeFile(t, "bob:100000:65536\n"), flag: "--add-subuids", word: "user"}
	for name, c := range map[string]struct {
		ranges []user.SubID
		want   string
	}{
		"none":             {nil, "no subordinate user ids"},
		"a small one":      {[]user.SubID{{SubID: 5, Count: 1000}}, "only 1000 subordinate user ids"},
		"one off the end":  {[]user.SubID{{SubID: 1 << 32, Count: 65536}}, "bad range"},
		"a word":           {[]user.SubID{{SubID: 0, Count: 65536}}, "bad range"},
		"an immense count": {[]user.SubID{{SubID: 5, Count: 1<<63 - 1}}, "bad range"},
		"a negative count": {[]user.SubID{{SubID: 5, Count: -1}}, "bad range"},
	} {
		err := checkSubIDs(c.ranges, alice, kind, kind.file)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkSubIDs(nil, alice, kind, kind.file); !strings.Contains(err.Error(), "usermod --add-subuids 165536-231071 alice") {
		t.Errorf("the command is not there, or takes ids of bob's: %v", err)
	}
	if err := checkSubIDs([]user.SubID{{SubID: 1, Count: 65536}}, alice, kind, kind.file); err != nil {
		t.Errorf("enough: %v", err)
	}
}

func TestIDsThatAreListedTwiceAreMappedOnce(t *testing.T) {
	for name, c := range map[string]struct {
		ranges []user.SubID
		want   []IDMap
	}{
		"by name and by uid":      {[]user.SubID{{SubID: 100, Count: 10}, {SubID: 100, Count: 10}}, []IDMap{{1, 100, 10}}},
		"side by side":            {[]user.SubID{{SubID: 110, Count: 10}, {SubID: 100, Count: 10}}, []IDMap{{1, 110, 10}, {11, 100, 10}}},
		"one overlaps the other":  {[]user.SubID{{SubID: 105, Count: 10}, {SubID: 100, Count: 10}}, []IDMap{{1, 105, 10}, {11, 100, 5}}},
		"one is in the other":     {[]user.SubID{{SubID: 100, Count: 10}, {SubID: 103, Count: 2}}, []IDMap{{1, 100, 10}}},
		"one is around the other": {[]user.SubID{{SubID: 103, Count: 2}, {SubID: 100, Count: 10}}, []IDMap{{1, 103, 2}, {3, 100, 3}, {6, 105, 5}}},
	} {
		if got := inOrder(disjoint(c.ranges)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestARangeThatIsListedTwiceIsUsed(t *testing.T) {
	const line = "100000:65536\n"
	kind := subKind{file: writeFile(t, "alice:"+line+"1000:"+line), word: "user"}
	got, err := subIDs(t.Context(), "static", alice, kind)
	if want := []IDMap{{1, 100000, 65536}}; err != nil || !slices.Equal(inOrder(got), want) {
		t.Errorf("got %v, %v; want %v", inOrder(got), err, want)
	}
}

func TestTheSubidLineOfNsswitchDecidesTheSource(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "static",
		"passwd: files\n":            "static",
		"subid: files\n":             "static",
		"passwd: sss\nsubid:  sss\n": "dynamic",
		"#subid: sss\n":              "static",
	} {
		if got := autoSource(writeFile(t, text)); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestGetsubidsOutputIsRead(t *testing.T) {
	got, err := parseGetsubids(strings.NewReader("0: alice 100000 65536\n1: alice 300000 10\n"))
	if err != nil || len(got) != 2 || got[1].SubID != 300000 || got[1].Count != 10 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseGetsubids(strings.NewReader("Error fetching ranges\n")); err == nil {
		t.Error("an error was read as a range")
	}
}

// contained is root of a user namespace that has ids 0 to 65536, all but 1000.
var contained = caller{name: "root", uids: []IDMap{{0, 1000, 1}, {1, 100000, 999}, {1001, 200000, 64536}}, gids: []IDMap{{0, 1000, 65537}}}

func TestRootOfAUserNamespaceMapsItsIDs(t *testing.T) {
	m, err := (&Options{}).idMaps(t.Context(), contained)
	if err != nil {
		t.Fatal(err)
	}
	if want := []IDMap{{0, 0, 1}, {1, 1, 999}, {1000, 1001, 64536}}; !slices.Equal(m.uid, want) {
		t.Errorf("user ids %v, want %v", m.uid, want)
	}
	if want := []IDMap{{0, 0, 1}, {1, 1, 65536}}; !slices.Equal(m.gid, want) {
		t.Errorf("group ids %v, want %v", m.gid, want)
	}
}

// Root needs nobody's leave to be in a namespace, and is seldom listed. Nobody else is
// alone without having asked for it.
func TestOnlyRootIsAloneWithoutSubordinateIDs(t *testing.T) {
	all := []IDMap{{0, 0, math.MaxUint32}}
	nobody := caller{name: "nobody-is-called-this", uids: all, gids: all}
	o := &Options{}
	m, err := o.idMaps(t.Context(), nobody)
	if want := []IDMap{{0, 0, 1}}; err != nil || !slices.Equal(m.uid, want) || !slices.Equal(m.gid, want) {
		t.Errorf("root: %+v, %v", m, err)
	}
	o.SubIDSource = "static"
	if m, err := o.idMaps(t.Context(), nobody); err == nil {
		t.Errorf("root who has said where they are: %+v", m)
	}
	o.SubIDSource = ""
	nobody.uid, nobody.gid = 1000, 1000
	if m, err := o.idMaps(t.Context(), nobody); !errors.As(err, new(noSubIDs)) {
		t.Errorf("a user: %+v, %v", m, err)
	}
}

func TestIDsThatTheCallerDoesNotHaveAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		maps []IDMap
		ok   bool
	}{
		"all of a range":   {[]IDMap{{0, 0, 1}, {1, 1, 999}}, true},
		"over a gap":       {[]IDMap{{0, 500, 1000}}, false},
		"one that is none": {[]IDMap{{0, 1000, 1}}, false},
		"past the last":    {[]IDMap{{0, 1001, 64537}}, false},
		"the host's":       {[]IDMap{{0, 165536, 65536}}, false},
	} {
		err := idMaps{uid: c.maps}.check(contained)
		if (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "Options.SingleID") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (idMaps{uid: []IDMap{{0, 165536, 65536}}}).check(alice); err != nil {
		t.Errorf("where /proc does not tell: %v", err)
	}
}

func TestRealRootIsToldFromRootOfAUserNamespace(t *testing.T) {
	for name, c := range map[string]struct {
		maps string
		want bool
	}{
		"the host's":   {"         0          0 4294967295\n", true},
		"a gate's":     {"         0       1000          1\n         1     100000      65536\n", false},
		"not readable": {"", true},
	} {
		root := currentCaller(procTree(t, map[string]string{"self/uid_map": c.maps}))
		root.uid = 0
		if root.realRoot() != c.want {
			t.Errorf("%s: %v, of %v", name, root.realRoot(), root.uids)
		}
	}
}
