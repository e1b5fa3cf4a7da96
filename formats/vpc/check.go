package vpc

import (
	"fmt"
	"slices"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// maxCheckBlocks bounds a check's memory, 8 bytes for each block, to 128 MiB: 32 TiB of the usual ones.
const maxCheckBlocks = 1 << 24

// check implements formats.Format's Check: what opening tells as odd (footers, checksums, a parent's UUID), and blocks
// that lie outside the file or over one another.
func check(f *formats.File, o *formats.Opener, report func(formats.Finding)) error {
	img, m, err := prepare(f, o)
	if err != nil {
		return err
	}
	for _, n := range img.Notes {
		report(formats.Finding{What: "image", File: f, Off: formats.NoPos, Found: n})
	}
	for _, err := range img.Problems {
		report(formats.Finding{What: "image", File: f, Off: formats.NoPos, Found: err.Error()})
	}
	d, ok := m.(*dynamic)
	if !ok {
		return nil
	}
	blocks := (d.size + d.block - 1) / d.block
	if blocks > maxCheckBlocks {
		return ondisk.Unsupported("vhd check", "blocks", -1, blocks)
	}
	var places []int64
	for n := range blocks {
		at, err := d.entry(n)
		if err != nil {
			return err
		}
		if at == unused {
			continue
		}
		pos := int64(at) * sectorSize
		if pos > f.Size-d.bitmap-d.block {
			report(formats.Finding{What: "block", File: f, Off: d.table + 4*n, Expected: fmt.Sprintf("inside a file of %d bytes", f.Size), Found: fmt.Sprintf("block %d at byte %d", n, pos)})
			continue
		}
		places = append(places, pos)
	}
	slices.Sort(places)
	for i := 1; i < len(places); i++ {
		if places[i]-places[i-1] < d.bitmap+d.block {
			report(formats.Finding{What: "overlap", File: f, Off: places[i], Found: fmt.Sprintf("blocks at bytes %d and %d", places[i-1], places[i])})
		}
	}
	return nil
}
