package partition

import (
	"errors"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Check checks the structure of a disk's partition table: both copies of a GPT with their checksums, chains of boot
// records, partitions that overlap or reach past the end. It calls report for each thing that is wrong, resolved or
// not; an error of its own means that the disk could not be read.
func Check(d formats.Disk, o Options, report func(error)) error {
	s := &scanner{o: o, names: make(map[string]bool)}
	i := s.add(Volume{Kind: KindDisk, Size: d.Size(), In: -1, Disk: d}, "disk")
	t, err := readTable(d, s.sectors(0))
	switch {
	case errors.Is(err, ondisk.ErrUnsupported):
		report(err)
	case err != nil:
		return err
	}
	if t == nil {
		return nil
	}
	s.place(i, t, "")
	for _, v := range s.vols {
		for _, err := range v.Problems {
			report(fmt.Errorf("%s: %w", v.Name, err))
		}
	}
	for _, e := range t.entries {
		if e.sub != nil {
			t.faults = append(t.faults, e.sub.faults...)
		}
	}
	for _, err := range t.faults {
		report(err)
	}
	return nil
}
