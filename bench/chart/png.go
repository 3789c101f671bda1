package chart

import (
	"bytes"
	_ "embed" // for the font
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"sync"
)

// scale is how many pixels of a PNG, across and down, are a point.
const scale = 2

// fixed7x13 are the printable characters of ASCII side by side, black on white.
//
//go:embed fixed7x13.png
var fixed7x13 []byte

// glyphs is the picture of fixed7x13.
var glyphs = sync.OnceValues(func() (image.Image, error) {
	picture, err := png.Decode(bytes.NewReader(fixed7x13))
	if err != nil {
		return nil, fmt.Errorf("the font of charts: %w", err)
	}
	return picture, nil
})

// PNG writes the chart as a PNG picture.
func (b Bars) PNG() ([]byte, error) {
	font, err := glyphs()
	if err != nil {
		return nil, err
	}
	shapes, height := b.layout()
	picture := image.NewPaletted(image.Rect(0, 0, width*scale, height*scale), append(color.Palette{background, ink, faint}, colours()...))
	for _, s := range shapes {
		if s.text != "" {
			write(picture, font, s)
			continue
		}
		fill(picture, s.x*scale, s.y*scale, s.w*scale, s.h*scale, s.colour)
	}
	var out bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	if err := encoder.Encode(&out, picture); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func colours() []color.Color {
	var all []color.Color
	for _, c := range palette {
		all = append(all, c)
	}
	return all
}

func fill(picture draw.Image, x, y, w, h int, colour color.Color) {
	draw.Draw(picture, image.Rect(x, y, x+w, y+h), image.NewUniform(colour), image.Point{}, draw.Src)
}

// write writes words, bit by bit. A character that the font lacks is written as
// the one that looks most like it, else as a question mark.
func write(picture draw.Image, font image.Image, s shape) {
	x := s.x
	for _, r := range s.text {
		switch {
		case r == '×':
			r = 'x'
		case r == 'µ':
			r = 'u'
		case r < ' ' || r > '~':
			r = '?'
		}
		left := int(r-' ') * glyphWidth
		for dy := range lineHeight {
			for dx := range glyphWidth {
				if level, _, _, _ := font.At(left+dx, dy).RGBA(); level == 0 {
					fill(picture, (x+dx)*scale, (s.y+dy)*scale, scale, scale, s.colour)
				}
			}
		}
		x += glyphWidth
	}
}
