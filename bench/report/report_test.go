package report

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatekit/gatekit/bench/meter"
)

func TestMedians(t *testing.T) {
	for _, c := range []struct {
		name    string
		figures []float64
		want    float64
	}{
		{"of none", nil, 0},
		{"of one", []float64{3}, 3},
		{"of an odd number", []float64{9, 1, 5}, 5},
		{"of an even number", []float64{4, 1, 2, 100}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Median(c.figures); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestNumbersHaveFewDigits(t *testing.T) {
	for figure, want := range map[float64]string{
		0: "0", 0.0001: "< 0.001", 0.125: "0.12", 0.8: "0.80", 0.0014: "0.0014", 0.999: "1.00", 1: "1.00", 9.876: "9.88", 12.34: "12.3", 123.4: "123",
		1234.4: "1 234", 28000: "28 000", 231999.7: "232 000", 1234567: "1 234 567",
	} {
		if got := Number(figure); got != want {
			t.Errorf("Number(%v) = %q, want %q", figure, got, want)
		}
	}
}

// example has figures of two gates and the loopback.
func example() *Results {
	r := &Results{
		Taken:       time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Machine:     meter.Machine{Kernel: "6.1", CPU: "Processor", CPUs: 2, Memory: 8 << 30},
		Rounds:      2,
		LoopSeconds: 1.5, StreamSeconds: 2, Descriptors: 20_000,
		Subjects: []Subject{{Name: Loopback}, {gatekit, "1"}, {slirp4netns, "2"}, {pasta, "3"}},
	}
	for subject, figures := range map[string][]float64{Loopback: {30, 32}, gatekit: {12, 14}, slirp4netns: {1, 1}, pasta: {0.1, 0.3}} {
		for _, f := range figures {
			r.Add("tcp1500.out", subject, f)
		}
	}
	r.Add("idle.memory", gatekit, 40)
	r.Add("idle.memory", pasta, 5)
	for subject, figure := range map[string]float64{gatekit: 1, slirp4netns: 0, pasta: 1} {
		r.Add("remote.address", subject, figure)
	}
	r.Failures = []Failure{
		{"idle.memory", slirp4netns, 1, "it did not start"},
		{"idle.memory", slirp4netns, 2, "it did not start"},
	}
	return r
}

func TestTargetsAreJudgedByMedians(t *testing.T) {
	r := example()
	for _, c := range []struct {
		name       string
		target     Target
		known, met bool
		ratio      float64
		other      string
	}{
		{"against a peer", Target{Row: "tcp1500.out", Factor: 10, Against: slirp4netns}, true, true, 13, slirp4netns},
		{"against the best peer", Target{Row: "tcp1500.out", Factor: 14, Against: BestPeer}, true, false, 13, slirp4netns},
		{"against the best peer where less is better", Target{Row: "idle.memory", AtMost: true, Factor: 1, Against: BestPeer}, true, false, 8, pasta},
		{"against the limit", Target{Row: "tcp1500.out", Factor: 0.4, Against: Loopback}, true, true, 13.0 / 31, Loopback},
		{"against another row", Target{Row: "tcp1500.out", Factor: 0.3, Against: gatekit, AgainstRow: "idle.memory"}, true, true, 13.0 / 40, gatekit},
		{"a figure", Target{Row: "idle.memory", AtMost: true, Factor: 35}, true, false, 0, ""},
		{"a figure that is just met", Target{Row: "idle.memory", AtMost: true, Factor: 40}, true, true, 0, ""},
		{"without a figure", Target{Row: "tcp.trips", Factor: 1, Against: BestPeer}, false, false, 0, BestPeer},
		{"without the other figure", Target{Row: "idle.memory", Factor: 1, Against: slirp4netns}, false, false, 0, slirp4netns},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := r.Judge(c.target)
			if v.Known != c.known || v.Met() != c.met || v.Ratio != c.ratio || v.Other != c.other {
				t.Errorf("got known %v, met %v, ratio %v, against %q; want %v, %v, %v, %q",
					v.Known, v.Met(), v.Ratio, v.Other, c.known, c.met, c.ratio, c.other)
			}
		})
	}
}

func TestTheReportSaysWhatIsMetAndWhatIsNot(t *testing.T) {
	r := example()
	r.Warnings = []string{"the machine was 40 % busy"}
	r.Tools = []Subject{{"iperf3", "3"}, {"Docker", "20"}}
	r.LeftOut = []string{"pasta: not found in $PATH"}
	got := r.Markdown([]Chart{{Group: "TCP streams", Title: "streams", Path: "benchmarks/streams.svg"}})
	for _, want := range []string{
		"Taken on 2 January 2026, 03:04 UTC on 2 × Processor, 8 GiB of memory, Linux 6.1. Medians of 2 rounds; each loop ran for 1.5 s, each stream for 2 s. Each process could have 20 000 descriptors open.",
		"- gatekit 1\n- slirp4netns 2\n",
		"\nThe work is done by iperf3 3 and Docker 20.\n",
		"\n**Left out:** pasta: not found in $PATH.\n",
		"**Do not trust this run:** the machine was 40 % busy.",
		"| TCP streams: one stream out, MTU 1500 | at least 10 × slirp4netns | 13.0 × (13.0 Gbit/s) | met |",
		"| Start and idle: resident memory | at most 35.0 MB | 40.0 MB | **falls short** |",
		"| TCP streams: one stream in, MTU 1500 | at least 5 × slirp4netns | not known | not measured |",
		"gatekit falls short of 1:\n\n- Start and idle: resident memory: wanted at most 35.0 MB, reached 40.0 MB.\n",
		"![streams](benchmarks/streams.svg)",
		"| | host loopback | gatekit | slirp4netns | pasta | to the best peer |\n|---|---:|---:|---:|---:|---:|\n",
		"| one stream out, MTU 1500, Gbit/s | 31.0 | 13.0 | 1.00 | 0.20 | 13.0 × |\n",
		"| resident memory, MB |  | 40.0 | failed | 5.00 | 8.00 × |\n",
		"| client's address kept |  | yes | no | yes |  |\n",
		"| Forwarded ports, client on another machine: client's address kept | yes | yes | met |",
		"\n3 of 40 targets are met. For 36 a figure is missing. gatekit falls short of 1:",
		"- slirp4netns, Start and idle: resident memory: it did not start.\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	if strings.Count(got, "it did not start") != 1 {
		t.Error("a failure of two rounds is told twice")
	}
	if strings.Contains(got, "## Scale") {
		t.Error("a group without figures has a table")
	}
	if t.Failed() {
		t.Log(got)
	}
}

func TestEveryTargetHasItsRow(t *testing.T) {
	known := map[string]bool{}
	for _, g := range Groups() {
		for _, row := range g.Rows {
			if known[row.ID] {
				t.Errorf("two rows are called %s", row.ID)
			}
			known[row.ID] = true
		}
	}
	for _, target := range Targets() {
		if !known[target.Row] || target.AgainstRow != "" && !known[target.AgainstRow] {
			t.Errorf("no row for %+v", target)
		}
	}
}

func TestTheGeneratedPartIsReplaced(t *testing.T) {
	document := "# Title\n\n" + Begin + "\nold\n" + End + "\n\nafter\n"
	got, err := Insert(document, "\nnew\n")
	if err != nil {
		t.Fatal(err)
	}
	want := "# Title\n\n" + Begin + "\n\nnew\n\n" + End + "\n\nafter\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if again, err := Insert(got, "new"); err != nil || again != got {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for name, document := range map[string]string{"no markers": "text", "no end": Begin + "\ntext"} {
		if _, err := Insert(document, "new"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestResultsSurviveTheirFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	want := example()
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
