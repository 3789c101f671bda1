// Package chart draws bar charts as SVG and PNG, with the standard library alone.
//
// A chart is laid out once, as a list of rectangles, lines and words in points;
// both formats are written from that list, so they cannot differ. The PNG has two
// pixels for a point, and words in a font of bits: X11's misc-fixed 7x13, which is
// in the public domain. Groups of bars have a scale each, since rows of different
// size stand side by side; the figure is written at the end of each bar.
//
//	Title
//	[] series  [] series
//	group    #################### 31.0
//	         ######## 13.0
//	group    ...
package chart

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"image/color"
	"math"
)

// Bars is a chart of horizontal bars: a group for each row, in it a bar for each
// series.
type Bars struct {
	Title  string
	Groups []string
	Series []Series

	// Format writes a figure. The zero value writes it as Go's %g does.
	Format func(float64) string
}

// Series has a figure for each group; 0, or a figure that is no number, has no bar.
type Series struct {
	Name   string
	Values []float64
}

// Sizes in points.
const (
	width      = 760
	margin     = 16
	labelWidth = 240
	figureRoom = 72
	barHeight  = 13
	barGap     = 3
	groupGap   = 14
	glyphWidth = 7
	lineHeight = 13
)

var (
	background = color.NRGBA{255, 255, 255, 255}
	ink        = color.NRGBA{36, 41, 47, 255}
	faint      = color.NRGBA{208, 215, 222, 255}

	// palette has colours that the colour-blind can tell apart (Okabe and Ito).
	palette = []color.NRGBA{
		{153, 153, 153, 255}, {0, 114, 178, 255}, {230, 159, 0, 255}, {0, 158, 115, 255}, {204, 121, 167, 255}, {213, 94, 0, 255},
	}
)

// shape is a filled rectangle or, with text, words whose top left corner is there.
type shape struct {
	x, y, w, h int
	colour     color.NRGBA
	text       string
}

// layout places everything and returns the height of the chart.
func (b Bars) layout() (shapes []shape, height int) {
	format := b.Format
	if format == nil {
		format = func(f float64) string { return fmt.Sprintf("%g", f) }
	}
	put := func(x, y int, text string) { shapes = append(shapes, shape{x: x, y: y, colour: ink, text: text}) }
	y := margin
	put(margin, y, b.Title)
	y += 2 * lineHeight
	x := margin
	for i, s := range b.Series {
		room := (len([]rune(s.Name)) + 5) * glyphWidth
		if x+room > width-margin && x > margin {
			x, y = margin, y+lineHeight+barGap
		}
		shapes = append(shapes, shape{x: x, y: y + 1, w: barHeight - 2, h: barHeight - 2, colour: palette[i%len(palette)]})
		put(x+barHeight+4, y, s.Name)
		x += room
	}
	y += lineHeight + groupGap
	for g, name := range b.Groups {
		put(margin, y, shorten(name, (labelWidth-margin)/glyphWidth))
		most := b.most(g)
		top := y
		for i, s := range b.Series {
			value, ok := s.at(g)
			if !ok {
				continue
			}
			length := max(1, int(math.Round(value/most*(width-margin-labelWidth-figureRoom))))
			shapes = append(shapes, shape{x: labelWidth, y: y, w: length, h: barHeight, colour: palette[i%len(palette)]})
			put(labelWidth+length+4, y, format(value))
			y += barHeight + barGap
		}
		y = max(y, top+lineHeight+barGap)
		shapes = append(shapes, shape{x: labelWidth - 1, y: top, w: 1, h: y - top - barGap, colour: faint})
		y += groupGap
	}
	return shapes, y - groupGap + margin
}

// most is the largest figure of a group.
func (b Bars) most(group int) float64 {
	most := 0.0
	for _, s := range b.Series {
		if value, ok := s.at(group); ok {
			most = max(most, value)
		}
	}
	return most
}

func (s Series) at(group int) (value float64, ok bool) {
	if group >= len(s.Values) {
		return 0, false
	}
	value = s.Values[group]
	return value, value > 0 && !math.IsInf(value, 0)
}

func shorten(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-2]) + ".."
	}
	return text
}

// SVG writes the chart as a picture of SVG 1.1.
func (b Bars) SVG() []byte {
	shapes, height := b.layout()
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="monospace" font-size="12">`+"\n",
		width, height, width, height)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="%s"/>`+"\n", width, height, hex(background))
	for _, s := range shapes {
		switch {
		case s.text != "":
			fmt.Fprintf(&out, `<text x="%d" y="%d" fill="%s">`, s.x, s.y+10, hex(s.colour))
			_ = xml.EscapeText(&out, []byte(s.text)) // a Buffer takes everything
			out.WriteString("</text>\n")
		case s.w > 0:
			fmt.Fprintf(&out, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`+"\n", s.x, s.y, s.w, s.h, hex(s.colour))
		}
	}
	out.WriteString("</svg>\n")
	return out.Bytes()
}

func hex(c color.NRGBA) string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }
