package parent

import (
	"math"
	"strings"
	"testing"
)

func TestIDMapsAreParsedAndPrintedAlike(t *testing.T) {
	for _, s := range []string{"0:1000:1", "1:100000:65536", "0:0:4294967295"} {
		m, err := ParseIDMap(s)
		if err != nil || m.String() != s {
			t.Errorf("%s became %v, %v", s, m, err)
		}
	}
}

func TestBadIDMapsSayWhatIsWanted(t *testing.T) {
	for _, s := range []string{"", "0", "0:1000", "0:1000:1:1", "a:1000:1", "0:-1:1", "0:4294967296:1", " 0:1:1"} {
		if _, err := ParseIDMap(s); err == nil || !strings.Contains(err.Error(), "INSIDE:OUTSIDE:SIZE") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestExplicitMapsThatTheKernelRefusesAreFound(t *testing.T) {
	many := make([]IDMap, maxExtents+1)
	for name, c := range map[string]struct {
		maps []IDMap
		want string
	}{
		"none is good":                     {nil, ""},
		"two that follow each other":       {[]IDMap{{0, 1000, 1}, {1, 100000, 65536}}, ""},
		"up to the last id":                {[]IDMap{{0, 0, math.MaxUint32}}, ""},
		"no root":                          {[]IDMap{{1, 100000, 65536}}, "id 0 inside"},
		"size zero":                        {[]IDMap{{0, 1000, 0}}, "size is 0"},
		"past the last id":                 {[]IDMap{{0, 1000, math.MaxUint32}}, "ids end"},
		"overlapping inside":               {[]IDMap{{0, 1000, 2}, {1, 100000, 1}}, "overlap"},
		"overlapping outside":              {[]IDMap{{0, 1000, 2}, {5, 1001, 1}}, "overlap"},
		"more lines than the kernel takes": {many, "the kernel takes 340"},
	} {
		err := validateMaps(c.maps)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
