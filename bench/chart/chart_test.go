package chart

import (
	"bytes"
	"encoding/xml"
	"errors"
	"image"
	"image/color"
	"image/png"
	"io"
	"math"
	"strings"
	"testing"
)

func example() Bars {
	return Bars{
		Title:  "Streams <Gbit/s> & more, 2 ×",
		Groups: []string{"out, MTU 1500", "a name that is far too long for the room that it has"},
		Series: []Series{{"host loopback", []float64{32, 1}}, {"gatekit", []float64{16, math.Inf(1)}}, {"pasta", []float64{0}}},
	}
}

func TestBarsAreAsLongAsTheirFiguresInEachGroup(t *testing.T) {
	shapes, height := example().layout()
	var bars []shape
	for _, s := range shapes {
		if s.text == "" && s.x == labelWidth {
			bars = append(bars, s)
		}
		if s.y < 0 || s.y+max(s.h, lineHeight) > height || s.x < 0 || s.x+s.w > width || s.x+len([]rune(s.text))*glyphWidth > width {
			t.Errorf("%+v is outside of %d x %d", s, width, height)
		}
	}
	if len(bars) != 3 {
		t.Fatalf("%d bars, want 3: %+v", len(bars), bars)
	}
	full := bars[0].w
	if full == 0 || bars[1].w != full/2 || bars[2].w != full {
		t.Errorf("lengths of bars: %+v", bars)
	}
}

func TestSVGIsWellFormedAndHasTheWords(t *testing.T) {
	svg := example().SVG()
	var words strings.Builder
	for decoder := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := token.(xml.CharData); ok {
			words.Write(text)
		}
	}
	for _, want := range []string{"Streams <Gbit/s> & more, 2 ×", "host loopback", "out, MTU 1500", "32"} {
		if !strings.Contains(words.String(), want) {
			t.Errorf("the picture lacks %q", want)
		}
	}
}

func TestPNGShowsTheBars(t *testing.T) {
	text, err := example().PNG()
	if err != nil {
		t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	_, height := example().layout()
	if got, want := picture.Bounds(), image.Rect(0, 0, width*scale, height*scale); got != want {
		t.Errorf("bounds: %v, want %v", got, want)
	}
	count := map[color.NRGBA]int{}
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			count[color.NRGBAModel.Convert(picture.At(x, y)).(color.NRGBA)]++
		}
	}
	for _, c := range []color.NRGBA{background, ink, faint, palette[0], palette[1], palette[2]} {
		if count[c] == 0 {
			t.Errorf("no pixel has the colour %v", c)
		}
	}
}
