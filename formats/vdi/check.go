package vdi

import (
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// maxCheckBlocks bounds a check's memory, a bit for each block of the file, to 128 MiB.
const maxCheckBlocks = 1 << 30

// check implements formats.Format's Check: blocks that lie outside the file or twice in one place, and the header's
// count of them.
func check(f *formats.File, o *formats.Opener, report func(formats.Finding)) error {
	d, h, err := read(f)
	if err != nil {
		return err
	}
	blocks := max(0, f.Size-d.data+d.block+d.extra-1) / (d.block + d.extra)
	if blocks > maxCheckBlocks {
		return ondisk.Unsupported("vdi check", "blocks", -1, blocks)
	}
	used := make([]uint64, blocks/64+1)
	var count uint32
	for n := range int64(h.Blocks) {
		kind, at, err := d.entry(n)
		if err != nil {
			return err
		}
		if kind != formats.Data {
			continue
		}
		count++
		what := formats.Finding{What: "block", File: f, Off: d.table + 4*n, Found: fmt.Sprintf("block %d at byte %d", n, at)}
		i := (at - d.data) / (d.block + d.extra)
		switch {
		case i >= blocks:
			what.Expected = fmt.Sprintf("inside a file of %d bytes", f.Size)
			report(what)
		case used[i/64]>>(i%64)&1 == 1:
			what.What = "overlap"
			report(what)
		default:
			used[i/64] |= 1 << (i % 64)
		}
	}
	if count != h.BlocksAllocated {
		report(formats.Finding{What: "header", File: f, Off: 388, Expected: fmt.Sprintf("%d blocks allocated", count), Found: fmt.Sprint(h.BlocksAllocated)})
	}
	return nil
}
