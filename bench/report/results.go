// Package report holds what a benchmark found and says it: as JSON to keep, and as
// Markdown with medians, ratios, and what was aimed at beside what was reached. It
// knows the rows, their units and the targets, but not how they are measured.
package report

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/gatekit/gatekit/bench/meter"
)

// Loopback is the subject that is no gate: the same client and server, both on the
// host.
const Loopback = "host loopback"

// Subject is something that was measured.
type Subject struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
}

// Failure is a figure that could not be taken.
type Failure struct {
	Row     string `json:"row"`
	Subject string `json:"subject"`
	Round   int    `json:"round"`
	Reason  string `json:"reason"`
}

// Results are all figures of one run.
type Results struct {
	Taken   time.Time     `json:"taken"`
	Machine meter.Machine `json:"machine"`
	Rounds  int           `json:"rounds"`

	// LoopSeconds and StreamSeconds are how long each loop and each stream ran.
	LoopSeconds   float64 `json:"loopSeconds"`
	StreamSeconds float64 `json:"streamSeconds"`

	// Descriptors is how many each process could have open. Some gates need two
	// for a connection.
	Descriptors uint64 `json:"descriptors"`

	// Subjects are those that were measured, in the order of the columns.
	Subjects []Subject `json:"subjects"`

	// Tools are programs that gave all subjects the same work.
	Tools []Subject `json:"tools,omitempty"`

	// LeftOut are what was not measured, with the reasons.
	LeftOut []string `json:"leftOut,omitempty"`

	// Figures are by row and by subject, one or more for each round; those that take
	// long are of the first round alone.
	Figures map[string]map[string][]float64 `json:"figures"`

	Failures []Failure `json:"failures,omitempty"`

	// Warnings say what makes the figures doubtful.
	Warnings []string `json:"warnings,omitempty"`
}

// Add adds a figure.
func (r *Results) Add(row, subject string, figure float64) {
	if r.Figures == nil {
		r.Figures = map[string]map[string][]float64{}
	}
	if r.Figures[row] == nil {
		r.Figures[row] = map[string][]float64{}
	}
	r.Figures[row][subject] = append(r.Figures[row][subject], figure)
}

// Median is the median of a subject's figures in a row; ok is false where there
// are none.
func (r *Results) Median(row, subject string) (median float64, ok bool) {
	figures := r.Figures[row][subject]
	return Median(figures), len(figures) > 0
}

// Median is the middle one of the figures, or the mean of the two in the middle; 0
// for none.
func Median(figures []float64) float64 {
	if len(figures) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(figures))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// failed are the failures of a subject in a row.
func (r *Results) failed(row, subject string) []Failure {
	var found []Failure
	for _, f := range r.Failures {
		if f.Row == row && f.Subject == subject {
			found = append(found, f)
		}
	}
	return found
}

// Read reads results from a JSON file.
func Read(path string) (*Results, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &Results{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// Write writes results to a JSON file.
func (r *Results) Write(path string) error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
