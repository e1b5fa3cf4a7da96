package vhdx

import (
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// maxCheckMiB bounds a check's memory, a bit for each MiB of the file, to 16 MiB: 128 TiB.
const maxCheckMiB = 1 << 27

// check implements formats.Format's Check: what opening tells as odd (headers, copies, a parent's identity), and blocks
// that lie outside the file or over one another or over other structures.
func check(f *formats.File, o *formats.Opener, report func(formats.Finding)) error {
	img, d, h, err := prepare(f, o)
	if err != nil {
		return err
	}
	for _, n := range img.Notes {
		report(formats.Finding{What: "image", File: f, Off: formats.NoPos, Found: n})
	}
	for _, err := range img.Problems {
		report(formats.Finding{What: "image", File: f, Off: formats.NoPos, Found: err.Error()})
	}
	const mib = 1 << 20
	total := (d.r.size + mib - 1) / mib
	if total > maxCheckMiB {
		return ondisk.Unsupported("vhdx check", "length of the file in MiB", -1, total)
	}
	used := make([]uint64, total/64+1)
	mark := func(what string, n, at, size int64) {
		found := formats.Finding{What: "overlap", File: f, Off: at, Found: fmt.Sprintf("%s %d lies where something else does", what, n)}
		if at < 0 || at > d.r.size-size {
			found.What, found.Expected, found.Found = "block", fmt.Sprintf("inside a file of %d bytes", d.r.size), fmt.Sprintf("%s %d at byte %d", what, n, at)
			report(found)
			return
		}
		for i := at / mib; i <= (at+size-1)/mib; i++ {
			if used[i/64]>>(i%64)&1 == 1 {
				report(found)
				return
			}
			used[i/64] |= 1 << (i % 64)
		}
	}
	mark("header section", 0, 0, mib)
	mark("BAT", 0, d.bat.off, d.bat.size)
	mark("metadata region", 0, d.meta.off, d.meta.size)
	if h.LogLength > 0 {
		mark("log", 0, int64(min(h.LogOffset, 1<<62)), int64(h.LogLength))
	}
	for i := range d.entries() {
		state, at, err := d.entry(i)
		if err != nil {
			return err
		}
		n, bitmap := i/(d.chunk+1), i%(d.chunk+1) == d.chunk
		switch {
		case bitmap && state == bitmapPresent:
			mark("sector bitmap", n, at, mib)
		case bitmap && state != blockNotPresent:
			report(formats.Finding{What: "entry", File: f, Off: d.bat.off + 8*i, Found: fmt.Sprintf("sector bitmap %d in state %d", n, state)})
		case !bitmap && (state == blockPresent || state == blockPartial):
			mark("block", i-n, at, d.block)
		case !bitmap && state > blockUnmapped && state != blockUnmapped095:
			report(formats.Finding{What: "entry", File: f, Off: d.bat.off + 8*i, Found: fmt.Sprintf("block %d in state %d", i-n, state)})
		}
	}
	return nil
}
