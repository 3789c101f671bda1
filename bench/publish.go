package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/gatekit/gatekit/bench/chart"
	"github.com/gatekit/gatekit/bench/gates"
	"github.com/gatekit/gatekit/bench/report"
)

// picture is a chart of some rows, shown above the table of their group.
type picture struct {
	name, group, title string
	rows               []string
}

var pictures = []picture{
	{"streams", "TCP streams", "TCP streams, Gbit/s",
		[]string{"tcp1500.out", "tcp1500.in", "tcp1500x8.out", "tcp1500x8.in", "tcp65520.out", "tcp65520.in"}},
	{"trips", "Round trips and short connections", "Round trips and short connections per second",
		[]string{"tcp.trips", "tcp.connect", "udp.trips"}},
	{"datagrams", "UDP one way", "UDP datagrams received per second",
		[]string{"udp100.out", "udp1200.out"}},
	{"processor", "Processor time", "Processor time of the gate, seconds per gigabyte (less is better)",
		[]string{"cpu1500.out", "cpu1500.in", "cpu65520.out", "cpu65520.in"}},
	{"held", "Held connections and flows", "Memory held, KiB each (less is better)",
		[]string{"hold1000.memory", "hold10000.memory", "flows10000.memory"}},
	{"scale", "Scale", "Round trips per second over many connections at once",
		[]string{"scale1.rate", "scale10.rate", "scale100.rate", "scale1000.rate"}},
	{"forward", "Forwarded ports, client on the host", "Forwarded TCP streams, client on the host, Gbit/s",
		[]string{"forward.in", "forward.out"}},
	{"remote", "Forwarded ports, client on another machine", "Forwarded TCP streams, client on another machine, Gbit/s",
		[]string{"remote.in", "remote.out"}},
	{"docker", "A container of Docker's", "TCP streams of a container, Gbit/s",
		[]string{"docker.out", "docker.in", "docker.back"}},
}

// publish prints the report and, with -out, writes it: the document's generated
// part, the charts, and the results.
func (o options) publish(results *report.Results) error {
	var charts []report.Chart
	drawn := map[string]chart.Bars{}
	for _, p := range pictures {
		bars, ok := p.bars(results)
		if !ok {
			continue
		}
		drawn[p.name] = bars
		charts = append(charts, report.Chart{Group: p.group, Title: p.title, Path: "benchmarks/" + p.name + ".svg"})
	}
	generated := results.Markdown(charts)
	fmt.Println(generated)
	if o.Smoke {
		if err := o.complete(results); err != nil {
			return err
		}
	}
	if o.Out == "" {
		return nil
	}
	dir := filepath.Join(o.Out, "benchmarks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := results.Write(filepath.Join(dir, "results.json")); err != nil {
		return err
	}
	for name, bars := range drawn {
		if err := draw(filepath.Join(dir, name), bars); err != nil {
			return err
		}
	}
	path := filepath.Join(o.Out, "benchmarks.md")
	document, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := report.Insert(string(document), generated)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// bars are the medians that the picture shows; ok is false without any.
func (p picture) bars(results *report.Results) (bars chart.Bars, ok bool) {
	bars.Title = p.title
	for _, s := range results.Subjects {
		series := chart.Series{Name: s.Name}
		measured := false
		for _, row := range p.rows {
			median, known := results.Median(row, s.Name)
			measured = measured || known
			series.Values = append(series.Values, median)
		}
		if measured {
			bars.Series = append(bars.Series, series)
		}
	}
	for _, row := range p.rows {
		bars.Groups = append(bars.Groups, report.Title(row))
	}
	bars.Format = report.Number
	return bars, len(bars.Series) > 0
}

// draw writes a chart as SVG and PNG.
func draw(path string, bars chart.Bars) error {
	if err := os.WriteFile(path+".svg", bars.SVG(), 0o644); err != nil {
		return err
	}
	image, err := bars.PNG()
	if err != nil {
		return err
	}
	return os.WriteFile(path+".png", image, 0o644)
}

// complete returns an error when a figure of gatekit is missing that was asked for.
func (o options) complete(results *report.Results) error {
	wanted, err := regexp.Compile(o.Rows)
	if err != nil {
		return err
	}
	if len(results.Failures) > 0 {
		f := results.Failures[0]
		return fmt.Errorf("%d rows lack a figure, first %s of %s: %s", len(results.Failures), f.Row, f.Subject, f.Reason)
	}
	for _, g := range report.Groups() {
		for _, row := range g.Rows {
			if _, ok := results.Median(row.ID, gates.Gatekit); !ok && wanted.MatchString(row.ID) {
				return fmt.Errorf("%s was not measured; left out: %q", row.ID, results.LeftOut)
			}
		}
	}
	return nil
}
