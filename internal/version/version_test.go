package version

import "testing"

func TestPartsOfAVersion(t *testing.T) {
	defer func(v string) { Version = v }(Version)
	for version, want := range map[string][3]string{
		"1.2.3":            {"1", "2", "3"},
		"0.1.0-4-gabcdef0": {"0", "1", "0"},
		"2.0.1+build.5":    {"2", "0", "1"},
	} {
		Version = version
		for i, part := range []string{"major", "minor", "patch"} {
			if got, ok := Part(part); !ok || got != want[i] {
				t.Errorf("%s of %s is %q, %v; want %q", part, version, got, ok, want[i])
			}
		}
	}
}

func TestAnUnknownPartIsNone(t *testing.T) {
	if got, ok := Part("build"); ok {
		t.Errorf("got %q", got)
	}
}
