package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Markers are around the part of a document that Insert replaces.
const (
	Begin = "<!-- The lines to the next marker are written by `make bench`. -->"
	End   = "<!-- Here end the lines that `make bench` writes. -->"
)

// Insert replaces what is between the markers of a document.
func Insert(document, generated string) (string, error) {
	before, rest, ok := strings.Cut(document, Begin+"\n")
	_, after, ended := strings.Cut(rest, End)
	if !ok || !ended {
		return "", fmt.Errorf("the document lacks the line %q or the line %q", Begin, End)
	}
	return before + Begin + "\n\n" + strings.TrimSpace(generated) + "\n\n" + End + after, nil
}

// Chart is a picture to show above a group of rows.
type Chart struct {
	// Group is the title of the group, Title what the picture is of.
	Group, Title string

	// Path is that of the picture, as the document refers to it.
	Path string
}

// Markdown says everything: where and when, what was aimed at and reached, the
// tables, and what failed.
func (r *Results) Markdown(charts []Chart) string {
	var b strings.Builder
	rounds := fmt.Sprintf("Medians of %d rounds", r.Rounds)
	if r.Rounds == 1 {
		rounds = "One round"
	}
	fmt.Fprintf(&b, "Taken on %s on %v. %s; each loop ran for %v s, each stream for %v s. Each process could have %s descriptors open.\n\n",
		r.Taken.UTC().Format("2 January 2006, 15:04 UTC"), r.Machine, rounds, r.LoopSeconds, r.StreamSeconds, Number(float64(r.Descriptors)))
	for _, s := range r.Subjects {
		if s.Version != "" {
			fmt.Fprintf(&b, "- %s %s\n", s.Name, s.Version)
		}
	}
	if len(r.Tools) > 0 {
		var tools []string
		for _, t := range r.Tools {
			tools = append(tools, t.Name+" "+t.Version)
		}
		fmt.Fprintf(&b, "\nThe work is done by %s.\n", strings.Join(tools, " and "))
	}
	for _, reason := range r.LeftOut {
		fmt.Fprintf(&b, "\n**Left out:** %s.\n", strings.TrimRight(reason, "."))
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "\n**Do not trust this run:** %s.\n", w)
	}
	b.WriteString("\n## Targets\n\n")
	r.targets(&b)
	for _, g := range Groups() {
		r.group(&b, g, charts)
	}
	r.failures(&b)
	return b.String()
}

// targets writes the table of targets, and the shortfalls as sentences.
func (r *Results) targets(b *strings.Builder) {
	b.WriteString("| | wanted | reached | |\n|---|---|---|---|\n")
	var short []string
	met, unknown := 0, 0
	for _, t := range Targets() {
		v := r.Judge(t)
		name := v.row.Title
		if g := groupOf(t.Row); g != "" {
			name = g + ": " + name
		}
		switch {
		case !v.Known:
			unknown++
			fmt.Fprintf(b, "| %s | %s | not known | %s |\n", name, v.wanted(), v.Reason)
		case v.Met():
			met++
			fmt.Fprintf(b, "| %s | %s | %s | met |\n", name, v.wanted(), v.reached())
		default:
			short = append(short, fmt.Sprintf("%s: wanted %s, reached %s", name, v.wanted(), v.reached()))
			fmt.Fprintf(b, "| %s | %s | %s | **falls short** |\n", name, v.wanted(), v.reached())
		}
	}
	fmt.Fprintf(b, "\n%d of %d targets are met.", met, len(Targets()))
	if unknown > 0 {
		fmt.Fprintf(b, " For %d a figure is missing.", unknown)
	}
	if len(short) > 0 {
		fmt.Fprintf(b, " gatekit falls short of %d:\n", len(short))
		for _, s := range short {
			fmt.Fprintf(b, "\n- %s.", s)
		}
	}
	b.WriteString("\n")
}

// wanted is the target in words.
func (v Verdict) wanted() string {
	relation := "at least"
	if v.AtMost {
		relation = "at most"
	}
	switch {
	case v.row.Unit == yesOrNo:
		return inUnit(v.Factor, yesOrNo)
	case v.Against == "":
		return fmt.Sprintf("%s %s", relation, quantity(v.Factor, v.row.Unit))
	}
	other := v.Against
	if v.Called != "" {
		other = v.Called
	}
	text := fmt.Sprintf("%s %v × %s", relation, v.Factor, other)
	if v.AgainstRow != "" {
		text += ", " + rowOf(v.AgainstRow).Title
	}
	if v.Against == BestPeer && v.Known {
		text += " (" + v.Other + ")"
	}
	return text
}

// reached is what came of the target in words.
func (v Verdict) reached() string {
	if v.Against == "" || v.Ratio == 0 {
		return quantity(v.Reached, v.row.Unit)
	}
	return fmt.Sprintf("%s × (%s)", Number(v.Ratio), quantity(v.Reached, v.row.Unit))
}

// quantity is a figure with its unit.
func quantity(figure float64, unit string) string {
	switch {
	case unit == yesOrNo:
		return inUnit(figure, unit)
	case strings.HasPrefix(unit, "/"), unit == "%":
		return Number(figure) + unit
	}
	return Number(figure) + " " + unit
}

// inUnit is a figure of a row with this unit, without the unit.
func inUnit(figure float64, unit string) string {
	if unit == yesOrNo {
		switch figure {
		case 0:
			return "no"
		case 1:
			return "yes"
		}
	}
	return Number(figure)
}

// group writes one table, with gatekit's ratio to the best peer in the last column.
// A group without figures is left out.
func (r *Results) group(b *strings.Builder, g Group, charts []Chart) {
	var lines strings.Builder
	for _, row := range g.Rows {
		line := fmt.Sprintf("| %s, %s |", row.Title, row.Unit)
		if row.Unit == yesOrNo {
			line = fmt.Sprintf("| %s |", row.Title)
		}
		any := false
		for _, s := range r.Subjects {
			cell := r.cell(row, s.Name)
			any = any || cell != ""
			line += " " + cell + " |"
		}
		if any {
			fmt.Fprintf(&lines, "%s %s |\n", line, r.ratio(row))
		}
	}
	if lines.Len() == 0 {
		return
	}
	fmt.Fprintf(b, "\n## %s\n\n%s\n", g.Title, g.Note)
	for _, c := range charts {
		if c.Group == g.Title {
			fmt.Fprintf(b, "\n![%s](%s)\n", c.Title, c.Path)
		}
	}
	b.WriteString("\n| |")
	rule := "|---|"
	for _, s := range r.Subjects {
		fmt.Fprintf(b, " %s |", s.Name)
		rule += "---:|"
	}
	fmt.Fprintf(b, " to the best peer |\n%s---:|\n%s", rule, lines.String())
}

// cell is a median, or a word where there is none.
func (r *Results) cell(row Row, subject string) string {
	median, ok := r.Median(row.ID, subject)
	failed := len(r.failed(row.ID, subject)) > 0
	switch {
	case ok && failed:
		return inUnit(median, row.Unit) + " (failed at times)"
	case ok:
		return inUnit(median, row.Unit)
	case failed:
		return "failed"
	}
	return ""
}

// ratio is gatekit's median to that of the best peer.
func (r *Results) ratio(row Row) string {
	own, ok := r.Median(row.ID, gatekit)
	_, best, known := r.best(row.ID, row.Lower)
	if !ok || !known || best == 0 || row.Unit == yesOrNo {
		return ""
	}
	return Number(own/best) + " ×"
}

// failures writes what failed and why, each reason once.
func (r *Results) failures(b *strings.Builder) {
	if len(r.Failures) == 0 {
		return
	}
	b.WriteString("\n## What failed\n\n")
	seen := map[string]bool{}
	for _, f := range r.Failures {
		title := rowOf(f.Row).Title
		if g := groupOf(f.Row); g != "" {
			title = g + ": " + title
		}
		line := fmt.Sprintf("- %s, %s: %s.\n", f.Subject, title, strings.TrimRight(f.Reason, "."))
		if !seen[line] {
			seen[line] = true
			b.WriteString(line)
		}
	}
}

// groupOf is the title of the group of rows whose titles do not speak for
// themselves.
func groupOf(id string) string {
	for _, group := range Groups() {
		for _, row := range group.Rows {
			if row.ID == id {
				return group.Title
			}
		}
	}
	return ""
}

// Number writes a figure with two or three digits that count, or more before the
// point.
func Number(figure float64) string {
	size := math.Abs(figure)
	switch {
	case size == 0:
		return "0"
	case size < 0.001:
		return "< 0.001"
	case size < 1:
		return strconv.FormatFloat(figure, 'f', 1-int(math.Floor(math.Log10(size))), 64)
	case size < 10:
		return strconv.FormatFloat(figure, 'f', 2, 64)
	case size < 100:
		return strconv.FormatFloat(figure, 'f', 1, 64)
	}
	digits := strconv.FormatFloat(math.Round(figure), 'f', 0, 64)
	first := len(digits) % 3
	parts := []string{}
	if first > 0 {
		parts = append(parts, digits[:first])
	}
	for i := first; i < len(digits); i += 3 {
		parts = append(parts, digits[i:i+3])
	}
	return strings.Join(parts, " ")
}
