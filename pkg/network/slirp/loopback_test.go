package slirp

import (
	"errors"
	"testing"
)

func TestParseHostLoopback(t *testing.T) {
	for _, test := range []struct {
		in, out        string
		open, notOpen  []uint16
		wantUsageError bool
	}{
		{in: "", out: "none", notOpen: []uint16{1, 80, 65535}},
		{in: "none", out: "none", notOpen: []uint16{1, 80, 65535}},
		{in: "all", out: "all", open: []uint16{1, 80, 65535}},
		{in: "5432", out: "5432", open: []uint16{5432}, notOpen: []uint16{5431, 5433}},
		{in: "5432,8000-8010", out: "5432,8000-8010", open: []uint16{5432, 8000, 8005, 8010}, notOpen: []uint16{7999, 8011}},
		{in: "5432, 80", out: "5432,80", open: []uint16{80}},
		{in: "0", wantUsageError: true},
		{in: "65536", wantUsageError: true},
		{in: "9-8", wantUsageError: true},
		{in: "1,", wantUsageError: true},
		{in: "1-", wantUsageError: true},
		{in: "ssh", wantUsageError: true},
		{in: "ALL", wantUsageError: true},
	} {
		t.Run(test.in, func(t *testing.T) {
			h, err := ParseHostLoopback(test.in)
			if errors.Is(err, ErrUsage) != test.wantUsageError {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				return
			}
			if h.String() != test.out {
				t.Errorf("formatted as %q, want %q", h, test.out)
			}
			for _, p := range test.open {
				if !h.allows(p) {
					t.Errorf("port %d is not open", p)
				}
			}
			for _, p := range test.notOpen {
				if h.allows(p) {
					t.Errorf("port %d is open", p)
				}
			}
		})
	}
}
