// Package version holds the version of both programs, one for the pair.
package version

import "strings"

// Version is the version (semver.org), set by the build with
// -ldflags "-X github.com/gatekit/gatekit/internal/version.Version=1.2.3".
var Version = "0.0.0-dev"

// Part returns one number of the version: "major", "minor" or "patch".
func Part(name string) (string, bool) {
	core, _, _ := strings.Cut(Version, "-")
	core, _, _ = strings.Cut(core, "+")
	numbers := strings.SplitN(core, ".", 3)
	for i, part := range []string{"major", "minor", "patch"} {
		if part == name && i < len(numbers) {
			return numbers[i], true
		}
	}
	return "", false
}
