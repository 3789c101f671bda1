package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/bench/gates"
	"github.com/gatekit/gatekit/bench/report"
	"github.com/gatekit/gatekit/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestFlags(t *testing.T) {
	o, err := parse([]string{"-peers", "pasta,,slirp4netns", "-rounds", "5", "-duration", "2s"})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(o.Peers, " ") != "pasta slirp4netns" || o.Rounds != 5 || o.Duration != 2*time.Second || o.Smoke {
		t.Errorf("options: %+v", o)
	}
	if o, err = parse([]string{"-smoke"}); err != nil || o.Rounds != 1 || len(o.Peers) != 0 || o.Duration >= time.Second {
		t.Errorf("options of -smoke: %+v, %v", o, err)
	}
	for name, args := range map[string][]string{
		"an argument":              {"everything"},
		"no round":                 {"-rounds", "0"},
		"a stream of no length":    {"-stream", "0"},
		"a bad regular expression": {"-rows", "("},
		"a document of a few rows": {"-rows", "^tcp", "-out", "docs"},
	} {
		t.Run(name, func(t *testing.T) {
			if o, err := parse(args); err == nil {
				t.Errorf("no error, but %+v", o)
			}
		})
	}
}

func TestWhatIperfSaysIsRead(t *testing.T) {
	got, err := parseIperf([]byte(`{"start": {}, "end": {"sum_sent": {"bytes": 9},
		"sum_received": {"start": 0, "bytes": 2500000000, "bits_per_second": 1e10}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got.End.Received.Bytes != 2.5e9 || got.End.Received.BitsPerSecond != 1e10 {
		t.Errorf("got %+v", got)
	}
	for name, c := range map[string]struct{ text, want string }{
		"an error":  {`{"end": {}, "error": "unable to connect"}`, "unable to connect"},
		"no bytes":  {`{"end": {"sum_received": {"bytes": 0}}}`, "nothing was received"},
		"no JSON":   {`iperf3: interrupt`, "read what iperf3 says"},
		"an ending": {`{"end": {`, "read what iperf3 says"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseIperf([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error: %v, want %q in it", err, c.want)
			}
		})
	}
}

// recorded are results with a figure of gatekit in every row.
func recorded() *report.Results {
	r := &report.Results{Rounds: 1, Subjects: []report.Subject{{Name: report.Loopback}, {Name: "gatekit", Version: "1"}}}
	for _, g := range report.Groups() {
		for _, row := range g.Rows {
			r.Add(row.ID, "gatekit", 1)
		}
	}
	return r
}

func TestAReportIsWrittenIntoTheDocument(t *testing.T) {
	out := t.TempDir()
	document := filepath.Join(out, "benchmarks.md")
	text, err := os.ReadFile(filepath.FromSlash("../docs/benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(document, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (options{Out: out}).publish(recorded()); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pictures {
		if !strings.Contains(string(written), "](benchmarks/"+p.name+".svg)") {
			t.Errorf("the document does not show the chart %s: is there a group %q?", p.name, p.group)
		}
		for _, ending := range []string{".svg", ".png"} {
			if info, err := os.Stat(filepath.Join(out, "benchmarks", p.name+ending)); err != nil || info.Size() == 0 {
				t.Errorf("the chart %s%s was not written: %v", p.name, ending, err)
			}
		}
		for _, row := range p.rows {
			if report.Title(row) == row {
				t.Errorf("the chart %s shows a row %s, which there is not", p.name, row)
			}
		}
	}
	again, err := (options{Render: filepath.Join(out, "benchmarks", "results.json")}).results()
	if err != nil {
		t.Fatal(err)
	}
	if figure, ok := again.Median("tcp1500.out", "gatekit"); !ok || figure != 1 {
		t.Errorf("what was written is read as %v, %v", figure, ok)
	}
}

func TestASmokeWithoutAFigureFails(t *testing.T) {
	r := recorded()
	if err := (options{}).complete(r); err != nil {
		t.Errorf("complete results: %v", err)
	}
	r.Failures = []report.Failure{{Row: "tcp.trips", Subject: "gatekit", Round: 1, Reason: "no answer"}}
	if err := (options{}).complete(r); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("results with a failure: %v", err)
	}
	r = recorded()
	delete(r.Figures, "idle.memory")
	r.LeftOut = []string{"the program is missing"}
	if err := (options{}).complete(r); err == nil || !strings.Contains(err.Error(), "idle.memory") || !strings.Contains(err.Error(), r.LeftOut[0]) {
		t.Errorf("results without a row: %v", err)
	}
	if err := (options{Rows: "^tcp"}).complete(r); err != nil {
		t.Errorf("results without a row that nobody asked for: %v", err)
	}
}

func TestEveryRowOfTheReportIsMeasured(t *testing.T) {
	b := &bench{options: options{Smoke: true}, round: 1, docker: &gates.Docker{}}
	g := &gate{b: b, of: gates.Gate{Name: gates.Gatekit, Kit: "gatekit"}}
	measured := map[string]bool{}
	for _, p := range b.parts() {
		for _, row := range rowsOf(p.steps(g)) {
			measured[row] = true
		}
		for _, row := range rowsOf(p.limit) {
			if !measured[row] {
				t.Errorf("%s is measured of the loopback, and of no gate", row)
			}
		}
	}
	for _, group := range report.Groups() {
		for _, row := range group.Rows {
			if !measured[row.ID] {
				t.Errorf("nothing measures the row %s", row.ID)
			}
			delete(measured, row.ID)
		}
	}
	for row := range measured {
		t.Errorf("%s is measured, but no row of the report", row)
	}
}
